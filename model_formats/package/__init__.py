"""The package of one model version: an OCI image layout that any OCI tool can carry, and that only this format's rules can open.

    index (one per version; the TUF target)
    ├── manifest of variant onnx-int8   (ModelPack)
    │     ├── package.json contract.json evidence.json profile.json golden.npz anchors.npz blocks.json README.md provenance.json
    │     └── variants/onnx-int8/model.onnx
    └── manifest of variant onnx-fp32   (the same common files, by the same digests)
    referrers of the index: signature, evidence, card, provenance

`pack` and `unpack` are in `write.py`, `missing` and `open_package` in `read.py`, the allow-list of files in `allowed_files.py`.
"""

from model_formats.package.block_hashes import BLOCK_BYTES, BlockList
from model_formats.package.image_layout import BlobReader, ImageLayout, PackageIncomplete, PackageTampered, read_blob
from model_formats.package.oci import SIGNATURE, Descriptor, PackageInvalid
from model_formats.package.read import Package, block_hashes, closure, missing, open_package
from model_formats.package.write import ModelFolderInvalid, attach, pack, unpack

__all__ = [
    "BLOCK_BYTES",
    "SIGNATURE",
    "BlobReader",
    "BlockList",
    "Descriptor",
    "ImageLayout",
    "ModelFolderInvalid",
    "Package",
    "PackageIncomplete",
    "PackageInvalid",
    "PackageTampered",
    "attach",
    "block_hashes",
    "closure",
    "missing",
    "open_package",
    "pack",
    "read_blob",
    "unpack",
]
