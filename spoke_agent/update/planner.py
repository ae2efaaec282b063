"""Finds the next event of one model from its directive, its update and what is served. Called again until None."""

from spoke_agent.site.slots import ModelSlots
from spoke_agent.update.state_machine import ACTIVE, Event
from spoke_agent.update.update import Update
from sync.core.types import Reason, State
from sync.protocol.messages import DesiredModel

__all__ = ["cancel_reason", "next_event"]

_SPENT = frozenset({State.FAILED, State.REJECTED, State.ROLLED_BACK})


def next_event(update: Update | None, slots: ModelSlots, desired: DesiredModel | None) -> Event | None:
    """The next event that brings this model towards the directive; None when there is nothing to do, or it is under way.

    A version that failed here is tried again only when the hub asks anew (another rollout or other terms), so a directive that
    is merely sent again does not loop.
    """
    state = update.state if update else State.IDLE
    if state in ACTIVE and update:
        return None if desired and _same(update.desired, desired) else Event.CANCELLED
    if desired is None:
        return Event.RETIRED if slots != ModelSlots() else None
    if slots.champion and slots.champion.index == desired.index:
        same = update is not None and _same(update.desired, desired) and update.desired.rollout == desired.rollout
        settled = same and state is State.COMMITTED
        return None if settled else Event.CONFIRMED
    if update and state in _SPENT and _asked(update.desired) == _asked(desired):
        return None
    if update and state is State.COMMITTED and slots.last_good and slots.last_good.index == desired.index:
        return Event.REVERTED
    return Event.OFFERED


def cancel_reason(update: Update, desired: DesiredModel | None) -> Reason:
    """Why a running update is cancelled: the model leaves, the hub goes back to what was served, or something newer came."""
    if desired is None:
        return Reason.CANCELLED
    if update.base and update.base.index == desired.index:
        return Reason.REVERTED_BY_HUB
    return Reason.SUPERSEDED


def _same(a: DesiredModel, b: DesiredModel) -> bool:
    return (a.model, a.version, a.index) == (b.model, b.version, b.index)


def _asked(desired: DesiredModel) -> DesiredModel:
    """What was asked for, without the shortcuts that happen to be on offer."""
    return desired.replace(deltas=())
