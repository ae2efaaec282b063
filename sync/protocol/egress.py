"""Every record about its data that can leave a site.

The outbox is the only way out, and it can send nothing but these types: closed enums, bounded integers, digests and names that
the hub already knows. Raw rows (R0) and anything made from single rows (R1: embeddings, example values, sketches that keep
values, free text) have no field, so no policy can let them out by mistake. Floors are part of the types: a histogram cell
between 1 and 9 cannot be parsed, on either side.

Law: for every record r, `EgressRecord.parse(r.canonical()) == r`.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, ClassVar, Literal, cast, get_args

from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.types import AwareDatetime, Digest, Direction, Name
from sync.core.types import Reason, Regime

__all__ = [
    "FLOORS",
    "MASKED",
    "MASK_BITS",
    "MAX_BYTES",
    "MAX_SITES",
    "MERGED",
    "MIN_CELL",
    "MIN_ROWS",
    "MIN_SITES",
    "QUARTER",
    "ROW_STEPS",
    "Body",
    "Direction",
    "DriftHist",
    "DriftVerdict",
    "EgressRecord",
    "FeatureCounts",
    "FeatureNumber",
    "FeatureVerdict",
    "Kind",
    "Level",
    "MaskedKey",
    "MaskedSum",
    "Ops",
    "NEWEST_DAYS",
    "PerfEstimate",
    "RffMean",
    "coarse_end",
    "coarse_start",
    "need_coarse",
    "p_bucket",
    "rows_at_least",
]

Kind = Literal["ops", "drift_verdict", "drift_hist", "rff_mean", "perf_estimate", "masked_key", "masked_sum"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MIN_CELL = 10
"""Smallest count that may stand in a histogram cell; smaller cells are merged with a neighbour."""
MERGED = -1
"""In place of a count: this cell was merged into the nearest one before it."""

MASKED: frozenset[Kind] = frozenset({"masked_key", "masked_sum"})
"""A site's two words in a federated sum (`sync.federated`). A policy lists `masked_sum`; the key goes with it."""
MIN_SITES, MAX_SITES = 10, 256
"""Fewest and most sites of one masked sum."""
MASK_BITS = 48
"""Masked values are whole numbers modulo 2 to this power."""

MIN_ROWS: dict[Kind, int] = {
    "ops": 0,
    "drift_verdict": 200,
    "drift_hist": 2000,
    "rff_mean": 1000,
    "perf_estimate": 200,
    "masked_key": 30,
    "masked_sum": 30,
}
"""Fewest rows that a record of a kind may speak about."""

MAX_BYTES: dict[Kind, int] = {
    "ops": 4096,
    "drift_verdict": 16_384,
    "drift_hist": 65_536,
    "rff_mean": 8192,
    "perf_estimate": 2048,
    "masked_key": 2048,
    "masked_sum": 262_144,
}
"""Largest canonical record of a kind; the hub drops what is larger."""

_VERDICTS: frozenset[Kind] = frozenset({"ops", "drift_verdict"})
_AGGREGATES: frozenset[Kind] = frozenset({*_VERDICTS, "drift_hist", "rff_mean", "perf_estimate", *MASKED})

FLOORS: dict[Regime, frozenset[Kind]] = {
    "ae-health": _VERDICTS,
    "ae-cbuae": _VERDICTS | {"perf_estimate"},
    "ae-pdpl": _AGGREGATES,
    "difc": _AGGREGATES,
    "adgm": _AGGREGATES,
    "gdpr": _AGGREGATES,
    "none": _AGGREGATES,
}
"""What a regime allows at most. Health and banking data have laws of their own, under which even statistics count as data."""

RowsAtLeast = Literal[0, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 1_000_000]
"""How many rows, as the largest step not above it."""
ROW_STEPS: tuple[RowsAtLeast, ...] = get_args(RowsAtLeast)

PBucket = Annotated[int, Meta(ge=0, le=12)]
"""k means p <= 10^-k."""
Percent = Annotated[int, Meta(ge=0, le=100)]
FeatureNumber = Annotated[int, Meta(ge=0, le=4095)]
"""Position of a feature in the package's reference profile; names stay in the signed package."""
Level = Literal["quiet", "watch", "alarm"]

QUARTER = timedelta(minutes=15)


def coarse_start(time: datetime) -> datetime:
    """The quarter of an hour that holds `time`, from its start, in UTC."""
    at = time.astimezone(UTC)
    return at.replace(minute=at.minute - at.minute % 15, second=0, microsecond=0)


def coarse_end(time: datetime) -> datetime:
    """The first full quarter of an hour at or after `time`, in UTC."""
    start = coarse_start(time)
    return start if start == time else start + QUARTER


def rows_at_least(rows: int) -> RowsAtLeast:
    """The step for a number of rows."""
    return max(s for s in ROW_STEPS if s <= max(rows, 0))


def p_bucket(p: float) -> int:
    """The bucket of a p-value: the largest k up to 12 with p <= 10^-k."""
    return max(k for k in range(13) if k == 0 or p <= 10.0**-k)


def need_coarse(**times: datetime) -> None:
    """For `__post_init__`. Raises ValueError that names the time which does not stand on a full quarter of an hour."""
    for name, time in times.items():
        if coarse_start(time) != time:
            raise ValueError(f"{name} must stand on a full quarter of an hour, so that a record tells no single event")


# ---- bodies ---------------------------------------------------------------------------------------------------------------


class _Spoken(Value, tag_field="kind"):
    @property
    def kind(self) -> Kind:
        """Which of the bodies it is."""
        return cast(Kind, self.__struct_config__.tag)


class FeatureVerdict(Value):
    """One feature that differs from the reference: how surely, and which way."""

    feature: FeatureNumber
    p: PBucket
    direction: Direction


class DriftVerdict(_Spoken, tag="drift_verdict"):
    """R3: whether the last windows look like the reference. Tested at the site on exact counts; only the verdict leaves."""

    edges: Digest
    """Digest of the reference profile's edges, so that verdicts on different references are never mixed."""
    level: Level
    evidence: Annotated[int, Meta(ge=0, le=12)]
    """Floor of log10 of the e-detector's statistic."""
    budget: Annotated[int, Meta(ge=1, le=10_000_000)]
    """The detector alarms falsely at most once in this many windows."""
    p: PBucket
    """Union of univariate and joint test on the last window."""
    joint: PBucket
    """Joint test alone (random Fourier features, Hotelling)."""
    features: Annotated[tuple[FeatureVerdict, ...], Meta(max_length=64)] = ()
    """The features that stand out, surest first."""
    confidence_fell: bool = False
    """Early signal on the stream of confidences (ADWIN)."""
    missing_percent: Percent = 0
    windows: Annotated[int, Meta(ge=1, le=1_000_000)]
    """Windows since the detector was last at rest."""
    rows: RowsAtLeast


class FeatureCounts(Value):
    """One feature's histogram over the package's edges: each cell 0, at least MIN_CELL, or MERGED (into the one before)."""

    feature: FeatureNumber
    counts: Annotated[tuple[Annotated[int, Meta(ge=MERGED, le=2**40)], ...], Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        if self.counts[0] == MERGED:
            raise ValueError("the first cell cannot be merged into one before it")
        if any(0 < c < MIN_CELL for c in self.counts):
            raise ValueError(f"a cell counts fewer than {MIN_CELL} rows")


class DriftHist(_Spoken, tag="drift_hist"):
    """R2: integer counts over the hub's own edges. No minimum, no maximum, no value, no label that the contract does not list."""

    edges: Digest
    rounded_to: Annotated[int, Meta(ge=1, le=100)]
    noise_epsilon_milli: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Discrete Laplace noise was added at this epsilon (thousandths); 0 is none. Merging and rounding alone are not DP."""
    features: Annotated[tuple[FeatureCounts, ...], Meta(min_length=1, max_length=512)]


class RffMean(_Spoken, tag="rff_mean"):
    """R2: means of the profile's random Fourier features over at least 1000 rows, in steps of 1/32768."""

    edges: Digest
    rows: RowsAtLeast
    mean: Annotated[tuple[Annotated[int, Meta(ge=-65_536, le=65_536)], ...], Meta(min_length=1, max_length=256)]


NEWEST_DAYS = 7
"""What the newest rows are, for an estimate."""


class PerfEstimate(_Spoken, tag="perf_estimate"):
    """R3: how well the model does here, in whole percent, always with an interval; never a bare number."""

    method: Literal["labels", "regression"]
    estimate: Percent
    low: Percent
    high: Percent
    valid: bool
    """False: too many rows are unlike anything the estimator saw; the number means nothing."""
    days: Annotated[int, Meta(ge=1, le=90)] = NEWEST_DAYS
    """It is about rows of the last so many days: where labels come late, about more than the newest."""
    rows: RowsAtLeast

    @property
    def span(self) -> str:
        """In words, what rows it is about; nothing where that is the newest."""
        return "" if self.days <= NEWEST_DAYS else f" of rows of the last {self.days} days"

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise ValueError("needs low <= estimate <= high")


class MaskedKey(_Spoken, tag="masked_key"):
    """R4, opt-in: this site would take part in a federated sum; here is its one-time public key for that question."""

    question: Digest
    key: Annotated[tuple[Annotated[int, Meta(ge=0, le=255)], ...], Meta(min_length=32, max_length=32)]
    """X25519 (RFC 7748), byte by byte: there is no text in this language."""


class MaskedSum(_Spoken, tag="masked_sum"):
    """R2, opt-in: one site's share of a federated sum, noisy and masked. Uniformly random, and so meaningless, alone.

    Integers modulo 2^48 under pairwise masks of at least ten sites; only the sum over all of them says anything.
    """

    question: Digest
    cohort: Digest
    """Who else answers: this site checked their certificates, and that they are enough."""
    sites: Annotated[int, Meta(ge=MIN_SITES, le=MAX_SITES)]
    values: Annotated[tuple[Annotated[int, Meta(ge=0, lt=2**MASK_BITS)], ...], Meta(min_length=1, max_length=8192)]


class Ops(_Spoken, tag="ops"):
    """R4: how the machine does. Codes from closed lists and coarse numbers; never text."""

    version: Annotated[tuple[Annotated[int, Meta(ge=0, le=9999)], ...], Meta(min_length=3, max_length=3)]
    """Of this program."""
    disk_free_percent: Percent
    memory_free_percent: Percent
    uptime_hours: Annotated[int, Meta(ge=0, le=1_000_000)]
    latency_buckets: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**40)], ...], Meta(max_length=16)] = ()
    """Requests faster than 1, 2, 4, 8 ... milliseconds, rounded to tens."""
    problems: Annotated[tuple[Reason, ...], Meta(max_length=32)] = ()
    staleness_hours: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Since release metadata was last fresh."""


Body = DriftVerdict | DriftHist | RffMean | PerfEstimate | MaskedKey | MaskedSum | Ops


# ---- the record -----------------------------------------------------------------------------------------------------------


class EgressRecord(Document):
    """One message of the outbox, on topic `site/<site>/<spoke>/egress/<kind>`, in a DSSE envelope of the device key."""

    max_bytes: ClassVar[int] = max(MAX_BYTES.values())

    kind: Literal["egress"] = "egress"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    sequence: Annotated[int, Meta(ge=1)]
    """Counts the records of this spoke, for ever; a gap shows at the hub."""
    previous: Digest | None
    """Digest of the record before this one; None for the first. The hub can check the chain without seeing the site's log."""
    policy: Digest
    """Digest of the site policy that allowed it."""
    model: Name | None = None
    version: Annotated[int, Meta(ge=1)] | None = None
    index: Digest | None = None
    start: AwareDatetime
    """A full quarter of an hour, as `end` is."""
    end: AwareDatetime
    body: Body

    def __post_init__(self) -> None:
        need_coarse(start=self.start, end=self.end)
        about_a_model = self.body.kind != "ops"
        if about_a_model and (self.model is None or self.version is None or self.index is None):
            raise ValueError("needs model, version and index")
        if self.end < self.start:
            raise ValueError("end lies before start")
