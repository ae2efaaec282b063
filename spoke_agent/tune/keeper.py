"""Upkeep of adapters: a new base gets its own fit or none, and an adapter that labels turn against retreats by itself."""

from dataclasses import dataclass, field

import numpy as np

from model_formats.errors import SpokeshaveError
from model_formats.pvalues import binomial_tail
from spoke_agent.data.store import DataStore
from spoke_agent.slots import ModelSlots, read_slots
from spoke_agent.tune.features import labels_of
from spoke_agent.tune.gate import GateVerdict, judge_pair, side_by_side
from spoke_agent.tune.site import Tuner

__all__ = ["AdapterKeeper"]

_LEAST = 30
_EVERY = 20
_ALPHA = 0.05


@dataclass(slots=True)
class AdapterKeeper:
    """Call `look()` from the agent's loop. What it did is returned in words, for the log."""

    tuner: Tuner
    data: DataStore
    _seen: dict[str, int] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Check every model that has a default adapter."""
        told = []
        for model, places in read_slots(self.tuner.home.slots).models.items():
            if places.adapter is not None and places.champion is not None and not places.probation:
                told += self._check(model, places)
        return told

    def _check(self, model: str, places: ModelSlots) -> list[str]:
        if places.champion is None or places.adapter is None:
            return []
        if self.tuner.base_of(places.champion) != places.adapter.base:
            return [self._move_on(model, places)]
        labelled, _ = self.data.labelled_accuracy(model, places.champion.index)
        if labelled - self._seen.get(model, -_EVERY) < _EVERY:
            return []
        self._seen[model] = labelled
        verdict = self._compared(model, places)
        if verdict is None or verdict.losses <= verdict.wins:
            return []
        if binomial_tail(verdict.losses, verdict.wins + verdict.losses, 0.5) > _ALPHA:
            return []
        self.tuner.use(model, None)
        return [f"{places.adapter.name}: {verdict.losses} labels against it, {verdict.wins} for it; the hub's head answers again"]

    def _move_on(self, model: str, places: ModelSlots) -> str:
        """The champion is another file: refit, or let the new base answer alone."""
        fresh = self.tuner.refit(model, places.champion) if places.champion else None
        self.tuner.use(model, fresh.name if fresh else None)
        return f"{model}: new base; {'refitted as ' + fresh.name if fresh else 'no adapter is better than it'}"

    def _compared(self, model: str, places: ModelSlots) -> GateVerdict | None:
        """Adapter against hub head on the labelled rows that came after the adapter was made."""
        if places.adapter is None or places.champion is None:
            return None
        try:
            kept = self.tuner.shelf.get(places.adapter.name)
            trunk = self.tuner.trunk(places.champion)
            later = [b for b in self.data.labelled(model, limit=1000) if b.id > kept.record.last_batch]
            if sum(b.rows for b in later) < _LEAST or not kept.trusted:
                return None
            adapter = trunk.session.load_adapter(str(kept.file), kept.record.name)
            answers = [np.concatenate([trunk.answers(b.inputs, a) for b in later]) for a in (adapter, None)]
            rows, (its, hub) = side_by_side(answers, labels_of(trunk, later))
            rows = rows.take(np.flatnonzero(np.isfinite(rows.features).all(axis=1)))
            return judge_pair(its, hub, rows) if len(rows) >= _LEAST else None
        except SpokeshaveError:
            return None  # best effort: an adapter whose base or record is gone is the server's to refuse
