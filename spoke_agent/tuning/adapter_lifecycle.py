"""The life of adapters: a new base gets its own fit or none; a fresh adapter is in probation until it has enough labels; one
that labels turn against is switched off.

In probation labels are tested as they come, so the test is an e-value, which may be evaluated after every label.
"""

from dataclasses import dataclass, field

import numpy as np

from model_formats.core.errors import SpokeshaveError
from model_formats.statistics.distributions import binomial_at_least
from model_formats.statistics.e_values import e_value_below
from spoke_agent.adapters.gate import GateVerdict, judge_pair, side_by_side
from spoke_agent.data.store import DataStore
from spoke_agent.site.slots import ModelSlots, read_slots
from spoke_agent.tuning.features import labels_of
from spoke_agent.tuning.tuner import Tuner

__all__ = ["PROVEN", "AdapterLifecycle"]

_LEAST = 30
_EVERY = 20
_ALPHA = 0.05
_LEAST_ON_TRIAL, _EVERY_ON_TRIAL = 10, 5
PROVEN = 100
"""Labelled rows since an adapter was fitted, from which on it is out of probation."""


@dataclass(slots=True)
class AdapterLifecycle:
    """Call `look()` from the agent's loop. What it did is returned in words, for the log."""

    tuner: Tuner
    data: DataStore
    _seen: dict[str, int] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Check every model that has a default adapter."""
        told = []
        for model, model_slots in read_slots(self.tuner.home.slots).models.items():
            if model_slots.adapter is not None and model_slots.champion is not None and not model_slots.probation:
                told += self._check(model, model_slots)
        return told

    def _check(self, model: str, model_slots: ModelSlots) -> list[str]:
        if model_slots.champion is None or model_slots.adapter is None:
            return []
        if self.tuner.base_of(model_slots.champion) != model_slots.adapter.base:
            return [self._move_on(model, model_slots)]
        on_trial = model_slots.adapter.probation
        labelled = self.data.labels(model, model_slots.champion.index)
        every = _EVERY_ON_TRIAL if on_trial else _EVERY
        if labelled - self._seen.get(model, -every) < every:
            return []
        self._seen[model] = labelled
        verdict = self._compared(model, model_slots, _LEAST_ON_TRIAL if on_trial else _LEAST)
        return [] if verdict is None else self._judged(model, model_slots.adapter.name, verdict, on_trial=on_trial)

    def _judged(self, model: str, name: str, verdict: GateVerdict, *, on_trial: bool) -> list[str]:
        counts = f"{verdict.losses} labels against it, {verdict.wins} for it"
        if _worse(verdict, on_trial=on_trial):
            self.tuner.use(model, None)
            return [f"{name}: {counts}; the hub's head answers again"]
        if on_trial and verdict.rows >= PROVEN:
            self.tuner.settle(model)
            return [f"{name}: {counts}; its probation is over"]
        return []

    def _move_on(self, model: str, model_slots: ModelSlots) -> str:
        """The champion is another file: refit, or let the new base answer alone."""
        fresh = self.tuner.refit(model, model_slots.champion) if model_slots.champion else None
        self.tuner.use(model, fresh.name if fresh else None)
        return f"{model}: new base; {'refitted as ' + fresh.name if fresh else 'no adapter is better than it'}"

    def _compared(self, model: str, model_slots: ModelSlots, least: int) -> GateVerdict | None:
        """Adapter against hub head on the labelled rows that came after the adapter was made."""
        if model_slots.adapter is None or model_slots.champion is None:
            return None
        try:
            kept = self.tuner.adapter_store.get(model_slots.adapter.name)
            trunk = self.tuner.trunk(model_slots.champion)
            later = [b for b in self.data.labelled(model, limit=1000) if b.id > kept.record.last_batch]
            if sum(b.rows for b in later) < least or not kept.trusted:
                return None
            adapter = trunk.session.load_adapter(str(kept.file), kept.record.name)
            answers = [np.concatenate([trunk.answers(b.inputs, a) for b in later]) for a in (adapter, None)]
            rows, (its, hub) = side_by_side(answers, labels_of(trunk, later))
            rows = rows.take(np.flatnonzero(np.isfinite(rows.features).all(axis=1)))
            return judge_pair(its, hub, rows) if len(rows) >= least else None
        except SpokeshaveError:
            return None  # best effort: an adapter whose base or record is gone is the server's to refuse


def _worse(verdict: GateVerdict, *, on_trial: bool) -> bool:
    n = verdict.wins + verdict.losses
    if verdict.losses <= verdict.wins:
        return False
    if on_trial:
        return e_value_below(n, verdict.wins, 0.5) >= 1 / _ALPHA
    return binomial_at_least(verdict.losses, n, 0.5) <= _ALPHA
