"""A challenger chosen by this site: another version of a model answers a share of the callers, and the two are compared.

It touches nothing that the hub decides: the champion stays, updates go on beside it. What may challenge is a version that was
verified here and is pinned in the store: the one before, or the candidate of an update. It ends by `stop`, or when the champion
it was set against is no longer the committed one; while a newer version is in probation it rests.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from model_formats.core.errors import OperatorError
from spoke_agent.server_api.client import ControlClient
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.server_api.messages import LoadedState, ModelStats, RoleStats
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.slots import ChallengerSlot, ModelSlots, Slot, edit_slots, read_slots

__all__ = [
    "ChallengerRefused",
    "ChallengerUnknown",
    "ChallengerComparison",
    "VersionStats",
    "chosen",
    "set_challenger",
    "show",
    "stop",
]


class ChallengerUnknown(OperatorError):
    """No such model here, or no such version of it that may challenge."""

    code = "challenger_unknown"
    hint = "Only a version that was verified here and is kept may challenge: `spoke status` shows the last good one."


class ChallengerRefused(OperatorError):
    """The server cannot let the version answer; what was there before is there again."""

    code = "challenger_refused"
    hint = "Choose a version that takes and gives what the champion does and fits into memory."


@dataclass(frozen=True, slots=True)
class VersionStats:
    """One of the two, since it was loaded (labels: since it first answered here)."""

    version: int
    requests: int
    errors: int
    request_ms_p50: float | None
    labelled: int
    right: int


@dataclass(frozen=True, slots=True)
class ChallengerComparison:
    """A champion and its challenger. A side is None while the server is away."""

    model: str
    version: int
    """Of the challenger."""
    percent: int
    sticky: bool
    rests: bool
    """Set, but not answering: another champion answers now, or the server does not have it (yet)."""
    champion: VersionStats | None
    challenger: VersionStats | None


def chosen(model: str, model_slots: ModelSlots, version: int, *, percent: int, sticky: bool) -> ModelSlots:
    """The places with a challenger. Raises ChallengerUnknown."""
    champion = model_slots.champion
    if champion is None:
        raise ChallengerUnknown(f"model {model!r} has no champion here to challenge")
    found = next((s for s in _kept(model_slots) if s.version == version and s.index != champion.index), None)
    if found is None:
        names = ", ".join(sorted({str(s.version) for s in _kept(model_slots) if s.index != champion.index})) or "none"
        raise ChallengerUnknown(f"model {model!r}: version {version} is not kept here beside the champion; there are: {names}")
    share = ChallengerSlot(index=found.index, percent=percent, slot=found, against=champion.index, sticky_only=sticky)
    return model_slots.replace(challenger=share)


def set_challenger(home: SpokeHome, model: str, version: int, *, percent: int, sticky: bool) -> bool:
    """Let it answer its share. Returns whether the server follows already. Raises ChallengerUnknown, ChallengerRefused."""
    before = read_slots(home.slots).models.get(model, ModelSlots()).challenger
    edit_slots(home.slots, model, lambda m: chosen(model, m, version, percent=percent, sticky=sticky))
    state = _followed(home, model)
    if state is not None and not state.loaded:
        edit_slots(home.slots, model, lambda m: m.replace(challenger=before))
        _followed(home, model)
        raise ChallengerRefused(f"{model}@{version}: {state.detail}")
    return state is not None


def stop(home: SpokeHome, model: str) -> bool:
    """End it; the champion answers everybody again. Returns whether there was one. Raises ChallengerUnknown."""
    if model not in read_slots(home.slots).models:
        raise ChallengerUnknown(f"model {model!r} is not served here")
    was = read_slots(home.slots).models[model].challenger is not None
    edit_slots(home.slots, model, lambda m: m.replace(challenger=None))
    _followed(home, model)
    return was


def show(home: SpokeHome) -> list[ChallengerComparison]:
    """Every challenger that is set, beside its champion."""
    stats = _stats(home)
    models = read_slots(home.slots).models
    return [_rivals(home, name, m, stats.get(name, ModelStats())) for name, m in models.items() if m.challenger is not None]


def _rivals(home: SpokeHome, model: str, model_slots: ModelSlots, stats: ModelStats) -> ChallengerComparison:
    share, rival = model_slots.challenger, stats.challenger
    assert share is not None  # noqa: S101 - see `show`
    slot = share.slot or model_slots.candidate
    answers = model_slots.challenging is not None and rival is not None and rival.index == share.index
    return ChallengerComparison(
        model=model,
        version=slot.version if slot is not None else 0,
        percent=share.percent,
        sticky=share.sticky_only,
        rests=not answers,
        champion=_side(home, model, stats.champion),
        challenger=_side(home, model, rival) if answers else None,
    )


def _side(home: SpokeHome, model: str, role: RoleStats | None) -> VersionStats | None:
    if role is None:
        return None
    labelled, right = _labelled(home, model, role.index)
    return VersionStats(role.version, role.requests, role.errors, role.request_ms_p50, labelled, right)


def _labelled(home: SpokeHome, model: str, index: str) -> tuple[int, int]:
    if not home.data.exists():
        return 0, 0
    from spoke_agent.data.store import open_data  # late: most sites keep no labels

    store = open_data(home.root)
    try:
        return store.labelled_accuracy(model, index)
    finally:
        store.close()


def _kept(model_slots: ModelSlots) -> tuple[Slot, ...]:
    own = model_slots.challenger.slot if model_slots.challenger is not None else None
    return tuple(s for s in (model_slots.last_good, model_slots.candidate, own) if s is not None)


def _followed(home: SpokeHome, model: str) -> LoadedState | None:
    """How the server has the challenger; None when it is away (it follows when it starts)."""
    try:
        found = ControlClient(home.control_socket).reconcile().models.get(model)
    except ServerUnreachable:
        return None
    return found.challenger if found is not None else None


def _stats(home: SpokeHome) -> Mapping[str, ModelStats]:
    try:
        return ControlClient(home.control_socket, timeout_s=5).stats().models
    except ServerUnreachable:
        return {}
