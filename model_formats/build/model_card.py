"""Writes the model card: the package's own documents as Markdown.

Each statement is measured or comes from the author.
"""

from collections.abc import Iterable, Iterator

from model_formats.documents.evidence import ClassEvidence, Evidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import PackageSpec
from model_formats.statistics.reference_profile import ReferenceProfile

__all__ = ["card"]


def card(spec: PackageSpec, contract: FeatureContract, evidence: Evidence, profile: ReferenceProfile | None) -> str:
    """`README.md` of a package."""
    parts = [
        _head(spec, evidence),
        _gate(evidence),
        _variants(evidence),
        _classes(evidence),
        _slices(evidence),
        _contract(contract),
    ]
    return "\n".join(line for part in (*parts, _limits(spec, evidence, profile), _lineage(evidence)) for line in part) + "\n"


def _head(spec: PackageSpec, evidence: Evidence) -> Iterator[str]:
    yield f"# {spec.title}\n\n`{spec.model}@{spec.version}`, licence {spec.licence}, built {spec.created:%Y-%m-%d %H:%M} UTC.\n"
    best, rows = evidence.variants[0], evidence.held_out_rows
    yield f"**{evidence.metric} {best.score:.4f}** on {rows} held-out rows (`{best.variant}`, {best.bytes:,} bytes).\n"


def _gate(evidence: Evidence) -> Iterator[str]:
    gate = evidence.gate
    verdict = "passed" if gate.passed else "**failed**"
    yield f"Accuracy gate: {verdict}; INT8 loses {gate.drop:+.4f} of at most {gate.max_drop:.4f}."
    if gate.overridden_by:
        yield f"\n> **The evaluation was overridden by hand by {gate.overridden_by}.** Do not approve this without asking why."
    yield ""


def _variants(evidence: Evidence) -> Iterator[str]:
    yield f"## Variants\n\nMeasured on {evidence.cpu}, one thread.\n"
    rows = (
        (
            f"`{v.variant}`",
            f"{v.bytes:,}",
            f"{v.score:.4f}",
            f"{v.latency_ms_batch1:.3f}",
            f"{v.latency_ms_batch32:.3f}",
            f"{v.cpu_ms_batch32:.3f}",
            f"{v.peak_rss_mb:.0f}" if v.peak_rss_mb else "",
            v.recipe + (f"; in float: {', '.join(v.kept_float)}" if v.kept_float else ""),
        )
        for v in evidence.variants
    )
    yield from _table(("variant", "bytes", evidence.metric, "ms (1)", "ms (32)", "CPU ms (32)", "MB", "recipe"), rows)


def _classes(evidence: Evidence) -> Iterator[str]:
    """Nothing for a package of before this was measured."""
    rows = [
        (
            one.cpu_class + (" (emulated)" if one.emulated else ""),
            f"`{v.variant}`",
            one.engine + (", exact" if one.mode == "exact" else ""),
            "not run" if one.worst is None else f"{one.worst:.3f}" + ("" if one.right else " **off**"),
            "" if one.score is None else f"{one.score:.4f}" + (f" ({one.rows} rows)" if _partly(one, evidence) else ""),
            "" if one.latency_ms_batch32 is None else f"{one.latency_ms_batch32:.3f}",
        )
        for v in evidence.variants
        for one in v.classes
    ]
    if not rows:
        return
    yield "## Classes of CPU\n\nDeviation from the golden vectors, in units of what is allowed. An emulator has no times.\n"
    yield from _table(("class", "variant", "engine", "deviation", evidence.metric, "ms (32)"), sorted(rows))


def _partly(one: ClassEvidence, evidence: Evidence) -> bool:
    return one.rows is not None and one.rows < evidence.held_out_rows


def _slices(evidence: Evidence) -> Iterator[str]:
    best = evidence.variants[0]
    if best.slices:
        yield f"## Slices of `{best.variant}`\n"
        yield from _table(
            ("column", "value", "rows", "score"), ((s.column, s.value, s.rows, f"{s.score:.4f}") for s in best.slices)
        )


def _contract(contract: FeatureContract) -> Iterator[str]:
    yield f"## Inputs and outputs\n\nTask: {contract.task}. Out of contract: {contract.out_of_contract}.\n"
    tensors = [("in", t) for t in contract.inputs] + [("out", t) for t in contract.outputs]
    rows = (
        (way, f"`{t.name}`", t.datatype, list(t.shape), "" if t.low is None else f"{t.low} to {t.high}") for way, t in tensors
    )
    yield from _table(("", "tensor", "type", "shape", "range"), rows)
    if contract.classes:
        yield f"Classes: {', '.join(contract.classes)}.\n"


def _limits(spec: PackageSpec, evidence: Evidence, profile: ReferenceProfile | None) -> Iterator[str]:
    yield "## Where it may go, and what it cannot do\n"
    where = spec.residency
    yield f"- Zones: {', '.join(where.zones) or 'nowhere'}; regimes: {', '.join(where.regimes) or 'none allowed'}."
    yield "- Sites may fit their own head." if spec.adapter else "- It has no separable head: sites cannot adapt it."
    if profile and profile.estimate:
        estimate = profile.estimate
        yield (
            f"- Accuracy without labels is estimated with a mean error of {estimate.error:.3f} on kinds of damage never seen "
            f"({', '.join(estimate.families)}; 90 % within {estimate.interval:.3f})."
        )
    worst = min(evidence.variants[0].slices, key=lambda s: s.score, default=None)
    if worst:
        yield f"- Weakest slice: {worst.column} = {worst.value}, {worst.score:.4f} on {worst.rows} rows."
    yield ""


def _lineage(evidence: Evidence) -> Iterator[str]:
    lineage = evidence.lineage
    yield "## Lineage\n"
    named: dict[str, object] = {
        "source": lineage.source_format,
        "run": lineage.run,
        "code": lineage.code_version,
        "training rows": lineage.rows,
    }
    named |= {"training set": lineage.dataset, "calibration set": evidence.calibration.digest if evidence.calibration else None}
    named |= {"parent": lineage.parent} | dict(lineage.parameters)
    yield from (f"- {name}: `{value}`" for name, value in named.items() if value is not None)


def _table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    columns = list(columns)
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    yield from ("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
    yield ""
