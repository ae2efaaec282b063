"""Which way a model file is run here: the fastest engine and mode that gives the golden outputs, measured once and remembered.

A choice is for one file, number of threads and CPU: a machine that was moved to other hardware chooses again when it starts. What
was chosen is held against the golden vectors once more in the serving process; where it is off there (cores of several kinds, a
child that ran elsewhere), the next way is tried before the variant is given up.
"""

import json
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from msgspec import DecodeError, Struct, ValidationError
from msgspec.json import decode, encode

from model_formats.core.cpu_class import this_class
from model_formats.core.errors import SpokeshaveError
from model_formats.core.files import atomic_write
from model_formats.core.log_event import LogEvent
from model_formats.core.runtime import Candidate, Engine, EngineMissing, LoadFailed, Session, candidates
from model_formats.core.types import digest_of
from model_formats.documents.package_spec import GOLDEN, VariantSpec
from model_formats.package import Package
from model_formats.package.golden import Golden, GoldenMismatch, GoldenResult, check_golden
from model_formats.runtimes.select import open_session
from spoke_agent.server.models.engine_trial import EngineQuestion, EngineResult, apart
from spoke_agent.server.settings import ServeSettings

__all__ = ["Opened", "cpu_word", "open_right", "usable_engines"]

log = logging.getLogger(__name__)

_REMEMBERED = 64
_TELLING = frozenset(
    {"vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features"}
    | {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"}
)
"""Lines of /proc/cpuinfo that differ from one kind of CPU to another, and not from one moment to the next."""


class Opened(Struct, frozen=True):
    """A session that gives the golden outputs in this process."""

    session: Session
    golden: GoldenResult


class _Way(Struct, frozen=True):
    """A file with what it takes to run it."""

    path: Path
    package: Package
    variant: VariantSpec
    golden: Golden
    settings: ServeSettings

    def open(self, candidate: Candidate) -> Opened:
        """Raises what an engine raises, and GoldenMismatch."""
        session = open_session(
            self.path,
            engine=candidate.engine,
            mode=candidate.mode,
            threads=self.settings.threads,
            allow_bf16=self.variant.allow_bf16,
        )
        result = check_golden(session, self.golden, self.variant.name)
        if not result.ok:
            raise GoldenMismatch(result.detail)
        return Opened(session, result)


def open_right(
    settings: ServeSettings, path: Path, file: str, package: Package, variant: VariantSpec, *, adaptable: bool
) -> Opened:
    """Open a file the best way that is right. `adaptable`: ONNX Runtime comes first, for it can switch heads.

    Raises EngineMissing, GoldenMismatch when at least one way ran, LoadFailed when none did.
    """
    engines = usable_engines(settings, variant)
    if not engines:
        raise EngineMissing(f"{variant.main}: none of {', '.join(variant.requires.engines)} can be used here")
    way = _Way(path, package, variant, package.golden(), settings)
    memory = _Memory(settings.folder.run / "engines.json")
    failed: list[EngineResult] = []
    for group in _groups(engines, adaptable=adaptable):
        key = f"{file}/{settings.threads}/{'+'.join(c.engine for c in group)}/{cpu_word()}"
        found = _known(way, memory, key, group) or _tried(way, memory, key, group, failed)
        if found is not None:
            return found
    name, told = f"{package.spec.model}@{package.spec.version} {variant.name}", "; ".join(map(str, failed))
    if any(tried.ran for tried in failed):
        raise GoldenMismatch(f"{name}: no way to run it here gives the golden outputs: {told}")
    raise LoadFailed(f"{name}: nothing here can run it: {told}")


def usable_engines(settings: ServeSettings, variant: VariantSpec) -> tuple[Engine, ...]:
    """Engines that are installed, allowed here, and take the variant."""
    found = tuple(e for e in settings.engines if e in variant.requires.engines and find_spec(e) is not None)
    return tuple(e for e in found if e == "openvino") if variant.format == "openvino-ir" else found


def _groups(engines: tuple[Engine, ...], *, adaptable: bool) -> Iterator[tuple[Candidate, ...]]:
    """All ways at once; where heads are switched, those that can first and the others if none of them is right."""
    if not adaptable:
        yield candidates(engines)
        return
    for wanted in (True, False):
        if some := tuple(e for e in engines if (e == "onnxruntime") is wanted):
            yield candidates(some)


def _known(way: _Way, memory: "_Memory", key: str, group: tuple[Candidate, ...]) -> Opened | None:
    """As an earlier start chose, where that is still right."""
    candidate = memory.get(key)
    if candidate not in group:
        return None
    try:
        return way.open(candidate)
    except SpokeshaveError as e:
        log.warning(LogEvent.SERVE_CHOICE_OFF, extra={"file": way.path.name, "engine": candidate.engine, "error": e.message})
        return None


def _tried(way: _Way, memory: "_Memory", key: str, group: tuple[Candidate, ...], failed: list[EngineResult]) -> Opened | None:
    """The best of what a trial finds right; adds to `failed` what is not."""
    trials = {t.candidate: t for t in _trial(way, group)}
    failed += [t for t in trials.values() if not t.right]
    for candidate in _order(group, trials):
        try:
            found = way.open(candidate)
        except SpokeshaveError as e:
            failed.append(EngineResult(candidate, right=False, detail=e.message, ran=isinstance(e, GoldenMismatch)))
            continue
        memory.keep(key, candidate)
        return found
    return None


def _trial(way: _Way, group: tuple[Candidate, ...]) -> list[EngineResult]:
    """In a child process; nothing where none can be started (the golden vectors then decide in this one)."""
    golden = str(way.package.path(GOLDEN))
    question = EngineQuestion(str(way.path), golden, way.variant.name, group, way.settings.threads, way.variant.allow_bf16)
    try:
        return apart(question, limit_s=way.settings.trial_s, tell=_tell)
    except OSError as e:
        log.warning(LogEvent.SERVE_NO_TRIAL, extra={"error": str(e)})
        return []


def _tell(fallen: EngineResult) -> None:
    candidate = fallen.candidate
    log.warning(LogEvent.SERVE_ENGINE_FELL, extra={"engine": candidate.engine, "mode": candidate.mode, "error": fallen.detail})


def _order(group: tuple[Candidate, ...], trials: Mapping[Candidate, EngineResult]) -> list[Candidate]:
    """What was right, fastest first; then what the trial left out."""
    right = sorted((t for t in trials.values() if t.right), key=lambda t: t.latency_ms or 0.0)
    return [t.candidate for t in right] + [c for c in group if c not in trials]


class _Memory:
    """`engines.json`: choices of earlier starts. A damaged file is only a lost measurement."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> Candidate | None:
        """The choice under a key."""
        return self._read().get(key)

    def keep(self, key: str, candidate: Candidate) -> None:
        """Remember it; of many choices the oldest go."""
        known = self._read()
        known.pop(key, None)
        kept = dict([*known.items(), (key, candidate)][-_REMEMBERED:])
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path, encode(kept))

    def _read(self) -> dict[str, Candidate]:
        try:
            return decode(self._path.read_bytes(), type=dict[str, Candidate])
        except (OSError, DecodeError, ValidationError):
            return {}


@cache
def cpu_word() -> str:
    """This CPU and the engines on it, in one word to remember choices under."""
    try:
        listed = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        listed = platform.processor()
    facts = {"class": this_class(), "machine": platform.machine(), "cpu": _telling(listed.splitlines()), "engines": _versions()}
    return f"{this_class()}-{digest_of(json.dumps(facts, sort_keys=True).encode())[7:23]}"


def _telling(lines: Iterable[str]) -> list[str]:
    """Of every kind of core once: chips may have cores of several kinds."""
    pairs = (line.partition(":")[::2] for line in lines)
    return sorted({f"{key.strip()}: {value.strip()}" for key, value in pairs if key.strip() in _TELLING})


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for engine in ("onnxruntime", "openvino"):
        try:
            found[engine] = version(engine)
        except PackageNotFoundError:
            continue
    return found
