"""`blocks.json`: the SHA-256 of every 128 KiB block of every large file, so that a block can be checked on arrival.

It is part of the package, so the signature covers it. A wrong block is discarded before it is written, and only that block is
asked for again. A file of one block needs no entry: its digest is enough.
"""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document
from model_formats.core.types import Digest, digest_of_file

__all__ = ["BLOCK_BYTES", "BlockList", "hash_blocks"]

BLOCK_BYTES = 128 * 1024
"""Size of a block, bytes; the last one of a file may be shorter."""


class BlockList(Document):
    """`blocks.json` of a package."""

    max_bytes: ClassVar[int] = 32 << 20

    kind: Literal["blocks"] = "blocks"
    schema_: Literal[1] = 1
    block_bytes: Literal[131072] = 131072
    files: dict[Digest, Annotated[str, Meta(max_length=32 << 20)]]
    """File digest -> its block hashes, 32 bytes each, one after the other, base64."""

    def hashes(self, digest: str) -> list[bytes] | None:
        """The block hashes of a file in order; None when it is not listed (it is one block, or the list itself)."""
        text = self.files.get(digest)
        if text is None:
            return None
        data = base64.b64decode(text)
        return [data[i : i + 32] for i in range(0, len(data), 32)]

    @classmethod
    def of(cls, files: Iterable[Path]) -> "BlockList":
        """Hash the files that are longer than one block."""
        large = [path for path in files if path.stat().st_size > BLOCK_BYTES]
        return cls(files={digest_of_file(p): base64.b64encode(b"".join(hash_blocks(p))).decode() for p in large})


def hash_blocks(path: Path) -> list[bytes]:
    """SHA-256 of each block of a file."""
    with path.open("rb") as file:
        return [hashlib.sha256(block).digest() for block in iter(lambda: file.read(BLOCK_BYTES), b"")]
