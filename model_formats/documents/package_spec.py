"""`package.json`: the page that says what is in a package and where it may go. All of it is covered by the signature."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.types import AwareDatetime, Name

__all__ = [
    "ANCHORS",
    "BLOCKS",
    "CARD",
    "CONTRACT",
    "EVIDENCE",
    "GOLDEN",
    "PROFILE",
    "PROVENANCE",
    "SPEC",
    "AdapterPoint",
    "PackageSpec",
    "Requirements",
    "Residency",
    "VariantSpec",
]

# The names of the files beside the variants, relative to the package folder.
SPEC = "package.json"
CONTRACT = "contract.json"
EVIDENCE = "evidence.json"
PROFILE = "profile.json"
GOLDEN = "golden.npz"
ANCHORS = "anchors.npz"
BLOCKS = "blocks.json"
CARD = "README.md"
PROVENANCE = "provenance.json"


class Requirements(Value):
    """What a machine must have to run a variant."""

    opset: int = 0
    memory_mb: int = 0
    isa: tuple[str, ...] = ()
    """CPU flags as Linux names them (`avx2`, `avx512_vnni`, `asimddp`); all are needed."""
    engines: tuple[Literal["onnxruntime", "openvino"], ...] = ("onnxruntime",)
    """Engines that give the golden outputs; the spoke measures which is faster."""


class VariantSpec(Value):
    """One way to run the version: a folder `variants/<name>/` of files."""

    name: Name
    format: Literal["onnx", "openvino-ir"]
    precision: Literal["fp32", "fp16", "int8"]
    main: str
    """Path of the file to open, for example `variants/onnx-int8/model.onnx`."""
    files: tuple[str, ...]
    """All files of the variant, `main` included."""
    requires: Requirements = Requirements()
    allow_bf16: bool = False


class AdapterPoint(Value):
    """Where a site may fit its own head: ONNX names that hold in every ONNX variant of the version.

    The head is `output = features @ weight + bias`, with `weight` [d, k] and `bias` [k] as fp32 overridable initializers, so
    that an ONNX Runtime adapter replaces them per request. `features` [batch, d] is a graph output.
    """

    features: str
    weight: str
    bias: str
    output: str


class Residency(Value):
    """Where the package may be deployed, and what may be learned from it. An empty list means nowhere."""

    zones: tuple[Name, ...]
    regimes: tuple[Literal["ae-pdpl", "ae-health", "ae-cbuae", "difc", "adgm", "gdpr", "none"], ...]
    learning: Literal["adapter", "none"] = "adapter"


class PackageSpec(Document):
    """`package.json` of a package."""

    max_bytes: ClassVar[int] = 1 << 20

    kind: Literal["package"] = "package"
    schema_: Literal[1] = 1
    model: Name
    version: Annotated[int, Meta(ge=1)]
    title: str
    licence: str
    created: AwareDatetime
    variants: tuple[VariantSpec, ...]
    """Best first, by the author's measurements; a spoke measures again."""
    adapter: AdapterPoint | None = None
    """None: the model has no separable head and cannot be adapted at a site."""
    residency: Residency
