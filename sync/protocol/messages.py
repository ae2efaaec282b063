"""Every message between hub and spoke, except the records of the outbox (`egress.py`).

`Directive` and `Report` travel inside a DSSE envelope (`sync.trust.dsse`), signed over their canonical bytes; `Status` and
`Want` are hints on which no decision rests, so they are not signed.
"""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.cpu_class import CpuClass
from model_formats.core.document import Document, Value
from model_formats.core.runtime import Engine, Mode
from model_formats.core.types import AwareDatetime, Digest, Name, matching
from sync.core.types import Reason, State
from sync.protocol.serving import Serving

__all__ = [
    "DeltaOffer",
    "DesiredModel",
    "Directive",
    "EgressCeiling",
    "EgressReceipt",
    "PassedOver",
    "ProbationTerms",
    "Report",
    "Serving",
    "ShadowTerms",
    "Status",
    "UpdateEvidence",
    "Want",
]

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]


# ---- hub -> spoke ---------------------------------------------------------------------------------------------------------


class ShadowTerms(Value):
    """What a candidate must show beside the champion before it may answer anyone."""

    min_rows: Count = 0
    """Rows of live traffic mirrored before SHADOW may end; 0 skips the mirror (golden vectors always run)."""
    max_wait_s: Count = 3600
    """After this long SHADOW goes on with the rows it has: a quiet shop must not hold a rollout."""
    max_disagreement: Share = 1.0
    """Largest share of mirrored rows on which candidate and champion may differ (arg-max, or beyond tolerance)."""
    max_latency_ratio: float = 3.0
    """Largest ratio of the candidate's median run time to the champion's."""


class ProbationTerms(Value):
    """What a new champion must show while last-good is kept warm."""

    soak_s: Count = 60
    min_requests: Count = 0
    min_labelled: Count = 0
    """Labelled rows awaited before commit (bounded by `max_wait_s`)."""
    max_wait_s: Count = 86400
    max_error_rate: Share = 0.01
    accuracy_slack: Share = 0.02
    """Accuracy on labelled rows may be this far below the package's own claim; judged by an exact one-sided binomial test."""


class DeltaOffer(Value):
    """An untrusted shortcut from a file the spoke may hold to one it needs; the result must hash to `target`."""

    base: Digest
    target: Digest
    delta: Digest
    size: Count


class DesiredModel(Value):
    """One model version this spoke should serve."""

    model: Name
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    """Digest of the version's OCI index; must equal the TUF target `models/<model>/<version>/index.json`."""
    rollout: Name | None = None
    transport: Literal["auto", "mqtt", "https"] = "auto"
    shadow: ShadowTerms = ShadowTerms()
    probation: ProbationTerms = ProbationTerms()
    deltas: tuple[DeltaOffer, ...] = ()


class EgressCeiling(Value):
    """The hub's limit on the outbox. It can only tighten the site's own policy."""

    kinds: tuple[str, ...] = ("ops", "drift_verdict", "drift_hist", "rff_mean", "perf_estimate")
    max_bytes_per_day: Count = 262_144


class Directive(Document):
    """The desired state of one spoke, whole and level-triggered: a model that is absent is to be retired."""

    max_bytes: ClassVar[int] = 256 * 1024

    kind: Literal["directive"] = "directive"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    zone: Name
    generation: Annotated[int, Meta(ge=1)]
    """Grows with every change for this spoke; a lower one than seen is a replay."""
    issued: AwareDatetime
    expires: AwareDatetime
    models: tuple[DesiredModel, ...]
    egress: EgressCeiling = EgressCeiling()


class EgressReceipt(Document):
    """Confirms that the hub has this record of the outbox and all before it, so that a log that was cut short no longer matches.

    Signed by the director, retained on the spoke's `receipt` topic. It is for one device key: a spoke that was enrolled anew
    counts its records from one again.
    """

    max_bytes: ClassVar[int] = 4096

    kind: Literal["egress-receipt"] = "egress-receipt"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    device: Digest
    """Of the device's public key (SubjectPublicKeyInfo)."""
    sequence: Annotated[int, Meta(ge=1)]
    record: Digest
    time: AwareDatetime


# ---- spoke -> hub ---------------------------------------------------------------------------------------------------------


class PassedOver(Value):
    """A variant that comes before the chosen one in the package, and why it does not serve here."""

    variant: Name
    reason: Reason


class UpdateEvidence(Value):
    """Counts gathered on the way through an update, and what runs it. No rows, no values: counts, times, closed lists."""

    cpu_class: CpuClass | None = None
    """Of the CPU at the site; None from a spoke that is too old to say it."""
    variant: Name | None = None
    """The variant chosen for this machine; None before the choice, and where none is right."""
    engine: Engine | None = None
    """Set when the variant is loaded."""
    mode: Mode | None = None
    passed_over: tuple[PassedOver, ...] = ()
    """Variants that were skipped or tried before, in the order of the package. Serving another one is no failure."""

    withheld: bool = False
    """The site keeps all that it counted over its rows to itself (`without_rows`): zero then means untold."""
    shadow_rows: Count = 0
    shadow_disagreements: Count = 0
    latency_ratio: float | None = None
    probation_requests: Count = 0
    probation_errors: Count = 0
    labelled: Count = 0
    labelled_correct: Count = 0
    champion_labelled: Count = 0
    champion_labelled_correct: Count = 0
    claimed_accuracy: Share | None = None
    bytes_received: Count = 0
    bytes_total: Count = 0
    used_delta: bool = False
    rollback_ms: Count | None = None
    """From the moment the fault was seen to last-good answering again."""

    def without_rows(self) -> "UpdateEvidence":
        """What is left when nothing that was counted over the site's rows may be told: bytes, times, the package's own claim,
        and what runs it.
        """
        runs = ("cpu_class", "variant", "engine", "mode", "passed_over")
        kept = (*runs, "claimed_accuracy", "bytes_received", "bytes_total", "used_delta", "rollback_ms")
        return UpdateEvidence(withheld=True, **{name: getattr(self, name) for name in kept})


class Report(Document):
    """A signed transition of one model's update machine, with what is served right now."""

    max_bytes: ClassVar[int] = 64 * 1024

    kind: Literal["report"] = "report"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    sequence: Annotated[int, Meta(ge=1)]
    """Grows by one with every report of this spoke, for ever (it is in the journal); a replay shows."""
    nonce: Annotated[str, matching("^[0-9a-f]{32}$")]
    time: AwareDatetime
    generation: Count
    model: Name
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    previous: State
    state: State
    reason: Reason
    serving: tuple[Serving, ...]
    evidence: UpdateEvidence = UpdateEvidence()


class Status(Document):
    """Retained hint of liveness; also the last will (`online` false). Never evidence."""

    max_bytes: ClassVar[int] = 16 * 1024

    kind: Literal["status"] = "status"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    online: bool
    time: AwareDatetime
    generation: Count = 0
    serving: tuple[Serving, ...] = ()
    asks_time: Annotated[str, matching("^[0-9a-f]{32}$")] | None = None
    """A nonce, from a spoke whose clock may be wrong: the hub answers it on the spoke's `time` topic."""


class Want(Document):
    """The blocks of one blob that a spoke still misses, and how many it will take now."""

    max_bytes: ClassVar[int] = 64 * 1024

    kind: Literal["want"] = "want"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    start: Count
    """Index of the first block that `missing` speaks of."""
    missing: Annotated[str, Meta(max_length=24_000)]
    """Bitmap of missing blocks from `start` on, most significant bit first, base64."""
    credit: Annotated[int, Meta(ge=0, le=4096)]
    """Blocks the spoke will take before it asks again; 0 is pause."""
