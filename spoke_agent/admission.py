"""Whether this machine can take a variant: facts on one side, requirements on the other, a reason between them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from model_formats.oci import Descriptor
from model_formats.spec import PackageSpec, VariantSpec
from sync.types import Reason, Regime

__all__ = ["Capacity", "choose", "residency", "unfit"]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What this machine has now."""

    disk_free: int
    """Bytes that may still be written, the reserve already taken off."""
    memory_free_mb: int
    """The reserve already taken off."""
    isa: frozenset[str]
    """CPU flags as /proc/cpuinfo names them."""
    opset: int
    """Highest ONNX opset that the installed engine runs."""
    engines: frozenset[str]


def residency(spec: PackageSpec, zone: str, regime: Regime) -> Reason:
    """NONE, or why the package may not be here. An empty list of zones or regimes means nowhere."""
    if zone not in spec.residency.zones:
        return Reason.ZONE_FORBIDDEN
    if regime not in spec.residency.regimes:
        return Reason.REGIME_FORBIDDEN
    return Reason.NONE


def choose(spec: PackageSpec, sizes: Mapping[str, int], capacity: Capacity) -> tuple[str | None, Reason]:
    """The first variant (best first, as the author measured) that fits, or the reason why the first one does not."""
    reasons = [(v.name, unfit(v, sizes[v.name], capacity)) for v in spec.variants]
    fitting = [name for name, reason in reasons if reason is Reason.NONE]
    return (fitting[0], Reason.NONE) if fitting else (None, reasons[0][1] if reasons else Reason.PACKAGE_INVALID)


def unfit(variant: VariantSpec, download: int, capacity: Capacity) -> Reason:
    """NONE, or the first requirement that is not met. `download` is the bytes still to be fetched."""
    needs = variant.requires
    checks = (
        (capacity.engines.isdisjoint(needs.engines), Reason.ENGINE_MISSING),
        (needs.opset > capacity.opset, Reason.OPSET_UNSUPPORTED),
        (not capacity.isa.issuperset(needs.isa), Reason.ISA_UNSUPPORTED),
        (needs.memory_mb > capacity.memory_free_mb, Reason.NO_MEMORY),
        (download > capacity.disk_free, Reason.NO_SPACE),
    )
    return next((reason for failed, reason in checks if failed), Reason.NONE)


def download_size(files: Mapping[str, Descriptor], variant: VariantSpec, here: frozenset[str]) -> int:
    """Bytes of a variant that are not in the store."""
    blobs = {files[name].digest: files[name].size for name in variant.files}
    return sum(size for digest, size in blobs.items() if digest not in here)
