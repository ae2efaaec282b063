"""What the serving process answers on its control socket: documents, read by the agent and the command line."""

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from model_formats.core.document import Document, Value
from model_formats.core.runtime import Engine, Mode
from model_formats.core.types import Digest, Name
from sync.core.types import Reason
from sync.protocol.serving import Serving

__all__ = [
    "AdapterState",
    "GoldenState",
    "LoadedState",
    "ModelState",
    "ReconcileAnswer",
    "RoleStats",
    "ServingAnswer",
    "ShadowStats",
    "StatsAnswer",
    "ModelStats",
]

Count = Annotated[int, Meta(ge=0)]
Role = Literal["champion", "candidate", "challenger", "last_good"]


class GoldenState(Value):
    """Outcome of the golden vectors on this machine, with this engine."""

    ok: bool
    worst: float
    """Largest absolute difference from the expected outputs."""
    detail: str = ""


class LoadedState(Value):
    """One slot after a reconcile: loaded and checked, or not, and why."""

    loaded: bool
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    variant: Name
    file: Digest | None = None
    """This process's own hash of the model file it mapped."""
    engine: Engine | None = None
    mode: Mode | None = None
    placement: Literal["loop", "thread"] | None = None
    golden: GoldenState | None = None
    latency_ms: float | None = None
    """Median run time of one row, measured at load."""
    row_ms_batch: float | None = None
    """Run time per row in a batch of 32, measured at load."""
    load_ms: float | None = None
    rss_mb: float | None = None
    """Growth of this process's resident memory while it loaded."""
    reason: Reason = Reason.NONE
    """Why it is not loaded."""
    detail: str = ""


class AdapterState(Value):
    """The default adapter after a reconcile."""

    name: Name
    file: Digest
    loaded: bool
    detail: str = ""


class ModelState(Value):
    """The places of one model after a reconcile. A slot that is empty in `slots.json` is None here."""

    champion: LoadedState | None = None
    candidate: LoadedState | None = None
    last_good: LoadedState | None = None
    challenger: LoadedState | None = None
    """A challenger with a place of its own; not loaded also when callers of the champion cannot use it alike."""
    adapter: AdapterState | None = None
    answering: Digest | None = None
    """Index digest of the version that answers callers now; differs from the champion's when that one could not be loaded."""
    swap_ms: float | None = None
    """From the start of this reconcile until the new champion answered, when it changed."""


class ReconcileAnswer(Document):
    """Answer to `POST /control/reconcile`."""

    max_bytes: ClassVar[int] = 1 << 20

    kind: Literal["reconciled"] = "reconciled"
    schema_: Literal[1] = 1
    models: dict[Name, ModelState] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every filled slot is loaded."""
        slots = (s for m in self.models.values() for s in (m.champion, m.candidate, m.last_good))
        return all(s is None or s.loaded for s in slots)


class RoleStats(Value):
    """Counts of one loaded version since it was loaded into this process."""

    version: Annotated[int, Meta(ge=1)]
    index: Digest
    variant: Name | None = None
    engine: Engine | None = None
    mode: Mode | None = None
    requests: Count = 0
    rows: Count = 0
    errors: Count = 0
    """Requests that failed inside the model (not bad requests)."""
    latency_ms_p50: float | None = None
    """Median run time of a batch under live traffic."""
    request_ms_p50: float | None = None
    """Median time from a request's arrival to its answer."""
    latency_ms: float | None = None
    """Median run time of one row, measured at load: compare candidate and champion by this one."""


class ShadowStats(Value):
    """What the candidate showed beside the champion on mirrored rows."""

    rows: Count = 0
    disagreements: Count = 0
    """Rows with another arg-max (classification), beyond tolerance (otherwise), or that are not finite."""
    errors: Count = 0
    dropped: Count = 0
    """Rows that were not mirrored because the buffer was full."""


class ModelStats(Value):
    """Counts of one model by role."""

    champion: RoleStats | None = None
    candidate: RoleStats | None = None
    last_good: RoleStats | None = None
    challenger: RoleStats | None = None
    """The version that answers its share now, whether it is the candidate or has a place of its own."""
    shadow: ShadowStats = ShadowStats()
    requests: Count = 0
    """Requests for this model since the process started, whichever version answered."""
    bad_requests: Count = 0
    """Refused with 4xx: the caller's mistake."""
    shed: Count = 0
    """Refused with 503 or 504 under load."""
    idle_s: float | None = None
    """Seconds since the last request; None when there was none."""


class StatsAnswer(Document):
    """Answer to `GET /control/stats`."""

    max_bytes: ClassVar[int] = 1 << 20

    kind: Literal["serve-stats"] = "serve-stats"
    schema_: Literal[1] = 1
    uptime_s: float
    rss_mb: float
    captured_rows: Count = 0
    capture_dropped_rows: Count = 0
    models: dict[Name, ModelStats] = field(default_factory=dict)


class ServingAnswer(Document):
    """Answer to `GET /control/serving`: what callers get right now."""

    max_bytes: ClassVar[int] = 1 << 20

    kind: Literal["serving"] = "serving"
    schema_: Literal[1] = 1
    models: tuple[Serving, ...] = ()
