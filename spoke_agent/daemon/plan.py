"""What `spoke status --plan` shows: the steps that lie ahead of each model. Read from the spoke's own files; changes nothing."""

from model_formats.core.document import Value
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import load_settings
from spoke_agent.site.slots import ModelSlots, Slots, read_slots
from spoke_agent.site.time_window import SiteHours, Waits
from spoke_agent.tuning.site_context import SiteContext
from spoke_agent.update.capacity import boot_id
from spoke_agent.update.journal import Journal
from spoke_agent.update.step_planner import PlannedState, plan_ahead
from spoke_agent.update.trust import TrustedClock
from spoke_agent.update.update import Timer, Update
from sync.core.clock import Clock
from sync.protocol.messages import DesiredModel, Directive
from sync.trust.client import TrustStore

__all__ = ["ModelPlan", "plan_of", "read_plan"]


class ModelPlan(Value):
    """One model, and the states that lie ahead of it if all goes well. None when it is where it should be."""

    model: str
    ahead: tuple[PlannedState, ...]


def read_plan(home: SpokeHome, *, clock: Clock | None = None) -> tuple[ModelPlan, ...]:
    """The plan of every model, with or without a running agent. Raises NotEnrolled, JournalDamaged, SpokeSettingsInvalid."""
    site, settings, journal = SiteContext.open(home.root, clock=clock), load_settings(home), Journal(home.journal)
    try:
        identity = site.identity
        trust = TrustStore(home.trust, site.clock, identity.tuf_root, site=identity.spoke.site)
        waits = SiteHours.of(settings, TrustedClock(site.clock, trust)).waits()
        return plan_of(journal, read_slots(home.slots), waits, Timer(site.clock.now(), site.clock.monotonic(), boot_id()))
    finally:
        journal.close()


def plan_of(journal: Journal, slots: Slots, waits: Waits, now: Timer) -> tuple[ModelPlan, ...]:
    """The same over opened parts."""
    directive, updates, unsent = journal.directive(), journal.updates(), {draft.model for draft in journal.drafts()}
    wanted = {m.model for m in directive.models} | slots.models.keys() if directive is not None else set[str]()
    plans = []
    for model in sorted(wanted | updates.keys()):
        found, here = updates.get(model), slots.models.get(model, ModelSlots())
        update = found if isinstance(found, Update) else None
        ahead = plan_ahead(update, here, _desired(directive, model, update), waits, now, entered=model not in unsent)
        plans.append(ModelPlan(model=model, ahead=ahead))
    return tuple(plans)


def _desired(directive: Directive | None, model: str, update: Update | None) -> DesiredModel | None:
    if directive is None:
        return update.desired if update is not None else None
    return next((m for m in directive.models if m.model == model), None)
