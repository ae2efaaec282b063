"""Tuning at one spoke, from slots to slots: gather, fit, gate, shelve, switch, and go back when it does not load."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from model_formats.adapter import Head
from model_formats.layout import BlobReader
from model_formats.package import open_package
from spoke_agent.data.store import DataStore, StoredBatch
from spoke_agent.home import SpokeHome
from spoke_agent.serve.answers import ReconcileAnswer
from spoke_agent.serve.errors import ServerUnreachable
from spoke_agent.serve.slim import slim
from spoke_agent.slots import AdapterSlot, ModelSlots, Slot, edit_slots, read_slots
from spoke_agent.tune.errors import AdapterUnknown, GateClosed, NotAdaptable, TooFewLabels
from spoke_agent.tune.features import Trunk, labelled_rows, open_trunk
from spoke_agent.tune.gate import GateTerms
from spoke_agent.tune.recipe import Tuned, tune_head
from spoke_agent.tune.shelf import AdapterRecord, Kept, Shelf
from sync.clock import Clock

__all__ = ["Origin", "Server", "TuneOutcome", "Tuner"]

Origin = Literal["operator", "schedule", "drift", "new_base", "erasure"]
_MOST_ROWS = 5000


class Server(Protocol):
    """The serving process (`spoke_agent.serve.client.ControlClient`)."""

    def reconcile(self) -> ReconcileAnswer:
        """Follow slots.json now. Raises ServerUnreachable."""


@dataclass(frozen=True, slots=True)
class TuneOutcome:
    """What came of a tuning."""

    kept: Kept
    tuned: Tuned
    serving: bool
    """Whether it answers now; False where the server is not running (it will when it starts) or was not asked to."""


class Tuner:
    """Adapts the champions of one spoke. `server` None: slots are written, nobody is told (sideload, tests)."""

    def __init__(
        self,
        home: Path,
        *,
        blobs: BlobReader,
        data: DataStore,
        shelf: Shelf,
        clock: Clock,
        server: Server | None,
        terms: GateTerms | None = None,
    ) -> None:
        self.home, self.shelf = SpokeHome(home), shelf
        self._blobs, self._data, self._clock, self._server = blobs, data, clock, server
        self._terms = terms or GateTerms()

    def tune(self, model: str, *, origin: Origin = "operator", use: bool = True) -> TuneOutcome:
        """Fit a head for the champion on the labelled rows, and serve it when the gate opens.

        Raises NotAdaptable, TooFewLabels, GateClosed (with the counts); then nothing has changed.
        """
        slots = self._slots(model)
        if slots.champion is None:
            raise NotAdaptable(f"{model}: nothing is served here", hint="Wait for a rollout, then tune.")
        kept, tuned = self._fit(model, slots.champion, slots.adapter, origin)
        serving = self.use(model, kept.record.name) if use else False
        return TuneOutcome(kept, tuned, serving)

    def refit(self, model: str, slot: Slot) -> AdapterSlot | None:
        """An adapter for a version that is about to be committed: one from the shelf, or a new fit; None when neither is better.

        Call it before the new base answers. Nothing is switched here.
        """
        try:
            base = self.base_of(slot)
            ready = [k for k in self.shelf.all(model) if k.trusted and k.record.base == base]
            return ready[-1].record.slot if ready else self._fit(model, slot, None, "new_base")[0].record.slot
        except (NotAdaptable, GateClosed, TooFewLabels):
            return None

    def use(self, model: str, name: str | None) -> bool:
        """Make an adapter the default (None: the hub's own head). Returns whether the server follows already.

        Raises AdapterUnknown when it belongs to another base; when the server cannot load it, what was there before comes back.
        """
        chosen = None if name is None else self._fitting(model, name)
        before = self._slots(model).adapter
        self._switch(model, chosen)
        try:
            answer = self._server.reconcile() if self._server else None
        except ServerUnreachable:
            return False
        state = answer.models[model].adapter if answer and model in answer.models else None
        if chosen is not None and state is not None and not state.loaded:
            self._switch(model, before)
            if self._server:
                self._server.reconcile()
            raise AdapterUnknown(f"{name}: the server cannot use it: {state.detail}")
        return answer is not None

    def erase(self, name: str) -> None:
        """Remove an adapter from slots, server and disk. Raises AdapterUnknown."""
        record = self.shelf.get(name).record
        if (used := self._slots(record.model).adapter) is not None and used.name == name:
            self.use(record.model, None)
        self.shelf.erase(name)

    def forget(self, batches: frozenset[int]) -> list[str]:
        """Erase the adapters that were fitted on any of these stored batches; returns their names."""
        if not batches:
            return []
        names = [k.record.name for k in self.shelf.made_from(range(min(batches), max(batches) + 1))]
        for name in names:
            self.erase(name)
        return names

    def trunk(self, slot: Slot) -> Trunk:
        """The variant of a slot, opened for its features. Raises NotAdaptable."""
        return open_trunk(open_package(self._blobs, slot.index), slot.variant)

    def base_of(self, slot: Slot) -> str:
        """Digest of the model file of a slot."""
        package = open_package(self._blobs, slot.index)
        return package.files[package.variant(slot.variant).main].digest

    def _fit(self, model: str, slot: Slot, used: AdapterSlot | None, origin: Origin) -> tuple[Kept, Tuned]:
        trunk = self.trunk(slot)
        batches = list(self._data.labelled(model, limit=_MOST_ROWS))
        rows = labelled_rows(trunk, batches)
        if batches:
            _check_parity(trunk, batches[0])
        slim()  # the engine's code: the fit needs none of it
        tuned = tune_head(rows, trunk.anchors, current=self._current(trunk, used), terms=self._terms)
        if not tuned.verdict.passed:
            raise GateClosed(f"{model}@{slot.version}: {_told(tuned)}")
        if not (np.isfinite(tuned.head.weight).all() and np.isfinite(tuned.head.bias).all()):
            raise NotAdaptable("the fit did not converge to finite numbers")
        kept = self._keep(model, slot, trunk, tuned, [b.id for b in batches], origin)
        return kept, tuned

    def _keep(self, model: str, slot: Slot, trunk: Trunk, tuned: Tuned, batches: list[int], origin: Origin) -> Kept:
        name, now = self.shelf.next_name(model, slot.version), self._now()

        def describe(file: str) -> AdapterRecord:
            return AdapterRecord(
                name=name,
                model=model,
                version=slot.version,
                index=slot.index,
                base=trunk.base,
                file=file,
                created=now,
                origin=origin,
                rows=tuned.rows,
                per_class=tuned.per_class,
                first_batch=min(batches),
                last_batch=max(batches),
                penalty=tuned.penalty,
                gate=tuned.verdict,
            )

        return self.shelf.add(name, trunk.point, tuned.head, describe)

    def _current(self, trunk: Trunk, used: AdapterSlot | None) -> Head | None:
        if used is None or used.base != trunk.base:
            return None
        kept = self.shelf.get(used.name)
        return kept.head() if kept.trusted else None

    def _fitting(self, model: str, name: str) -> AdapterSlot:
        kept, slots = self.shelf.get(name), self._slots(model)
        if not kept.trusted or kept.record.model != model:
            raise AdapterUnknown(f"{name}: not an adapter of {model} made here, or its file was changed")
        if slots.champion is None or self.base_of(slots.champion) != kept.record.base:
            raise AdapterUnknown(f"{name}: was fitted on version {kept.record.version}, which is not what is served")
        return kept.record.slot

    def _switch(self, model: str, adapter: AdapterSlot | None) -> None:
        edit_slots(self.home.slots, model, lambda places: places.model_copy(update={"adapter": adapter}))

    def _slots(self, model: str) -> ModelSlots:
        return read_slots(self.home.slots).models.get(model, ModelSlots())

    def _now(self) -> datetime:
        return self._clock.now().replace(microsecond=0)


def _check_parity(trunk: Trunk, batch: StoredBatch) -> None:
    """The trunk's own head, computed here, must be the model's output: otherwise the adapter point is not what it says."""
    some = {name: array[:16] for name, array in batch.inputs.items()}
    features, output = trunk.session.run(some, [trunk.point.features, trunk.point.output])
    hub = trunk.anchors.head
    here = features.reshape(len(features), -1).astype(np.float64) @ hub.weight + hub.bias
    if not np.allclose(here, output.reshape(len(output), -1), rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(here).max()))):
        raise NotAdaptable("the package's features and head do not give its output; an adapter would not do what was tested")


def _told(tuned: Tuned) -> str:
    v = tuned.verdict
    return (
        f"on {v.rows} held-out rows the new head is right where the old is wrong {v.wins} times, the other way round {v.losses} "
        f"times (p = {v.p:.3f}); on {v.anchors} of the hub's rows it scores {v.anchors_after:.2f} against {v.anchors_before:.2f}"
    )
