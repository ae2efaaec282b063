"""Decides whether this machine can run a variant: compares its facts with the requirements, and gives the reason. Pure.

A variant is passed over for one of three kinds of reason: the machine lacks something, the package's own evidence says that it is
off on this class of CPU, or it was tried here and was off. The first that is left is chosen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from model_formats.core.cpu_class import CpuClass
from model_formats.documents.evidence import Evidence
from model_formats.documents.package_spec import PackageSpec, VariantSpec
from model_formats.package.oci import Descriptor
from sync.core.types import Reason, Regime
from sync.protocol.messages import PassedOver

__all__ = ["OFF", "Capacity", "Choice", "choose", "residency", "unfit"]

OFF = frozenset({Reason.GOLDEN_MISMATCH, Reason.LOAD_FAILED, Reason.ENGINE_MISSING})
"""What speaks against one variant on this machine, once it was tried: the next one may be right."""
_ROOM = (Reason.NO_SPACE, Reason.NO_MEMORY)


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
    cpu_class: CpuClass = "unknown"


@dataclass(frozen=True, slots=True)
class Choice:
    """A variant, or None and why not one; and what was passed over on the way to it."""

    variant: str | None
    reason: Reason
    passed_over: tuple[PassedOver, ...]


def residency(spec: PackageSpec, zone: str, regime: Regime) -> Reason:
    """NONE, or why the package may not be here. An empty list of zones or regimes means nowhere."""
    if zone not in spec.residency.zones:
        return Reason.ZONE_FORBIDDEN
    if regime not in spec.residency.regimes:
        return Reason.REGIME_FORBIDDEN
    return Reason.NONE


def choose(
    spec: PackageSpec,
    evidence: Evidence,
    sizes: Mapping[str, int],
    capacity: Capacity,
    off: Mapping[str, Reason] | None = None,
) -> Choice:
    """The first variant (best first, as the author measured) with nothing against it. `off`: variants that were tried here."""
    passed: list[PassedOver] = []
    for variant in spec.variants:
        reason = (off or {}).get(variant.name, Reason.NONE)
        if reason is Reason.NONE:
            reason = unfit(variant, sizes[variant.name], capacity)
        if reason is Reason.NONE:
            reason = _off_on_class(evidence, variant.name, capacity)
        if reason is Reason.NONE:
            return Choice(variant.name, reason, tuple(passed))
        passed.append(PassedOver(variant=variant.name, reason=reason))
    return Choice(None, _why_none([p.reason for p in passed]), tuple(passed))


def _why_none(reasons: list[Reason]) -> Reason:
    """One word for all. A variant that only lacks room may be right, so room comes first; what was tried comes next."""
    room = [r for r in reasons if r in _ROOM]
    tried = [r for r in (Reason.GOLDEN_MISMATCH, Reason.LOAD_FAILED) if r in reasons]
    lacking = [r for r in reasons if r is not Reason.CPU_CLASS_UNSUPPORTED]
    return (room or tried or lacking or reasons or [Reason.PACKAGE_INVALID])[0]


def _off_on_class(evidence: Evidence, variant: str, capacity: Capacity) -> Reason:
    """What the package says of a variant on this class of CPU, by an engine that is here. Nothing said is nothing against it, and
    what fell in an emulator may stand on a real CPU.
    """
    told = next((v.classes for v in evidence.variants if v.variant == variant), ())
    here = [one for one in told if one.cpu_class == capacity.cpu_class and one.engine in capacity.engines]
    hope = any(one.right or (one.emulated and one.worst is None) for one in here)
    return Reason.CPU_CLASS_UNSUPPORTED if here and not hope else Reason.NONE


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
