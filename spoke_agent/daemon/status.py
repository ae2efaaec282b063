"""What `spoke status` shows: read from the spoke's own files and processes; works with or without a running agent."""

from dataclasses import dataclass
from pathlib import Path

from model_formats.core.cpu_class import this_class
from model_formats.core.errors import SpokeshaveError
from provisioning.identity.identity import Identity
from spoke_agent.daemon.agent import AgentRunning, hold_home
from spoke_agent.daemon.local_socket import AgentAway, call_agent
from spoke_agent.server_api.client import ControlClient, serving_now
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.slots import ModelSlots, Slots, read_slots
from spoke_agent.update.journal import Entry, Journal, UnreadableRow
from sync.protocol.messages import PassedOver, Serving

__all__ = ["ModelStatus", "SpokeStatus", "agent_runs", "ask_agent", "read_status", "refuse_second_agent"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model on this spoke."""

    model: str
    champion: int | None
    candidate: int | None
    last_good: int | None
    challenger: int | None
    """Version that answers a share of the callers."""
    challenger_percent: int
    adapter: str | None
    serving: int | None
    """Version that answers right now; None when the server is away or has none."""
    file: str | None
    variant: str | None
    """Of the version that answers."""
    engine: str | None
    mode: str | None
    """How the engine sums INT8 products: `fast`, or `exact` where that is off on this CPU."""
    passed_over: tuple[PassedOver, ...]
    """Variants of the wanted version that come before the chosen one, and why they do not serve here."""
    wanted: int | None
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class SpokeStatus:
    """The whole spoke."""

    spoke: str
    zone: str
    regime: str
    hub: str
    cpu_class: str
    agent: bool
    server: bool
    generation: int
    unsent_reports: int
    models: tuple[ModelStatus, ...]
    history: tuple[Entry, ...]


def read_status(home: SpokeHome, *, lines: int = 10) -> SpokeStatus:
    """Look; changes nothing. Raises NotEnrolled, JournalDamaged."""
    identity = Identity.load(home.root)
    journal = Journal(home.journal)
    try:
        serving = serving_now(ControlClient(home.control_socket, timeout_s=5))
        slots = _slots(home.slots)
        return SpokeStatus(
            spoke=str(identity.spoke),
            zone=identity.zone,
            regime=identity.regime,
            hub=identity.hub_url,
            cpu_class=this_class(),
            agent=agent_runs(home),
            server=serving is not None,
            generation=journal.generation,
            unsent_reports=len(journal.unacknowledged()),
            models=tuple(_model(name, slots, journal, serving or ()) for name in _names(slots, journal)),
            history=tuple(journal.history(lines)),
        )
    finally:
        journal.close()


def agent_runs(home: SpokeHome) -> bool:
    """Whether an agent holds this home."""
    try:
        with hold_home(home.agent_lock):
            return False
    except AgentRunning:
        return True


def ask_agent(home: SpokeHome) -> dict[str, object]:
    """What only a running agent knows; nothing without one."""
    try:
        answer = list(call_agent(home.agent_socket, "state"))[-1]
    except AgentAway:
        return {}
    return dict(answer) if isinstance(answer, dict) else {}


def refuse_second_agent(home: SpokeHome) -> None:
    """Raises AgentRunning when another agent works on this home."""
    with hold_home(home.agent_lock):
        return


def _names(slots: Slots, journal: Journal) -> list[str]:
    return sorted(slots.models.keys() | journal.updates().keys())


def _model(name: str, slots: Slots, journal: Journal, serving: tuple[Serving, ...]) -> ModelStatus:
    model_slots, update = slots.models.get(name, ModelSlots()), journal.update(name)
    answers = next((s for s in serving if s.model == name), None)
    share = model_slots.challenging
    rival = (share.slot or model_slots.candidate) if share is not None else None
    known = update if update is not None and not isinstance(update, UnreadableRow) else None
    return ModelStatus(
        model=name,
        champion=model_slots.champion.version if model_slots.champion else None,
        candidate=model_slots.candidate.version if model_slots.candidate else None,
        last_good=model_slots.last_good.version if model_slots.last_good else None,
        challenger=rival.version if rival and share and rival.index == share.index else None,
        challenger_percent=share.percent if share and rival and rival.index == share.index else 0,
        adapter=model_slots.adapter.name if model_slots.adapter else None,
        serving=answers.version if answers else None,
        file=answers.file if answers else None,
        variant=answers.variant if answers else None,
        engine=answers.engine if answers else None,
        mode=answers.mode if answers else None,
        passed_over=known.evidence.passed_over if known else (),
        wanted=known.desired.version if known else None,
        state=str(known.state) if known else "unknown",
        reason=str(known.reason) if known else "state_unknown",
    )


def _slots(path: Path) -> Slots:
    try:
        return read_slots(path)
    except SpokeshaveError:
        return Slots()
