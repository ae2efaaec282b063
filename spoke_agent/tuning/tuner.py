"""Tunes the champions of one spoke: gathers rows, fits, gates, stores, switches, and goes back if the adapter does not load."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from model_formats.core.errors import SpokeshaveError
from model_formats.core.runtime import Array, HeadAdapter
from model_formats.package import open_package
from model_formats.package.adapter import Head
from model_formats.package.image_layout import BlobReader
from spoke_agent.adapters.errors import AdapterUnknown, GateClosed, NotAdaptable, TooFewLabels
from spoke_agent.adapters.gate import AdapterGateTerms, GateVerdict
from spoke_agent.adapters.store import AdapterRecord, AdapterStore, Retired, ShadowComparison, StoredAdapter
from spoke_agent.data.store import DataStore, StoredBatch
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.server_api.messages import ReconcileAnswer
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.memory import release_unused
from spoke_agent.site.slots import AdapterSlot, ModelSlots, Slot, edit_slots, read_slots
from spoke_agent.tuning.features import Trunk, labelled_rows, open_trunk
from spoke_agent.tuning.recipe import Tuned, tune_head
from sync.core.clock import Clock

if TYPE_CHECKING:
    from model_formats.finetune import FitTerms
    from model_formats.finetune import Method as Whole
    from spoke_agent.tuning.full_model import TunedModel

__all__ = ["Method", "Origin", "ServerControl", "TuneOutcome", "Tuner"]

Origin = Literal["operator", "schedule", "drift", "new_base", "erasure"]
Method = Literal["head", "lora", "full"]
_MOST_ROWS = 5000
_SHADOW_ROWS = 500


class ServerControl(Protocol):
    """The serving process (`spoke_agent.server_api.client.ControlClient`)."""

    def reconcile(self) -> ReconcileAnswer:
        """Follow slots.json now. Raises ServerUnreachable."""


@dataclass(frozen=True, slots=True)
class TuneOutcome:
    """The outcome of a tuning."""

    kept: StoredAdapter
    verdict: GateVerdict
    serving: bool
    """Whether it answers now; False where the server is not running (it will when it starts) or was not asked to."""


class Tuner:
    """Adapts the champions of one spoke. `server` None: slots are written and no server is notified (sideload, tests)."""

    def __init__(
        self,
        home: Path,
        *,
        blobs: BlobReader,
        data: DataStore,
        adapter_store: AdapterStore,
        clock: Clock,
        server: ServerControl | None,
        terms: AdapterGateTerms | None = None,
        fit_terms: "FitTerms | None" = None,
    ) -> None:
        self.home, self.adapter_store = SpokeHome(home), adapter_store
        self._blobs, self._data, self._clock, self._server = blobs, data, clock, server
        self._terms, self._fit_terms = terms or AdapterGateTerms(), fit_terms

    def tune(
        self, model: str, *, method: Method = "head", origin: Origin = "operator", use: bool = True, limit_s: float = 600.0
    ) -> TuneOutcome:
        """Fit a head for the champion (or, where torch is installed, the whole model) on the labelled rows, and serve it when the
        gate opens. `limit_s` bounds the fit of a whole model.

        Raises NotAdaptable, TooFewLabels, GateClosed (with the counts), TrainMissing, NotDifferentiable, FitTooLong; then nothing
        has changed.
        """
        slots = self._slots(model)
        if slots.champion is None:
            raise NotAdaptable(f"{model}: nothing is served here", hint="Wait for a rollout, then tune.")
        with _young_garbage_only():
            if method == "head":
                kept = self._fit(model, slots.champion, slots.adapter, origin)
            else:
                kept = self._fit_whole(model, slots.champion, slots.adapter, origin, method, limit_s)
        serving = self.use(model, kept.record.name) if use else False
        return TuneOutcome(kept, kept.record.gate, serving)

    def refit(self, model: str, slot: Slot) -> AdapterSlot | None:
        """An adapter for a version that is about to be committed: a stored one, or a new fit; None when neither is better.

        Call it before the new base answers. Nothing is switched here.
        """
        try:
            base = self.base_of(slot)
            ready = [k for k in self.adapter_store.all(model) if k.trusted and k.record.base == base]
            return ready[-1].record.slot if ready else self._fit(model, slot, None, "new_base").record.slot
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
        record = self.adapter_store.get(name).record
        if (used := self._slots(record.model).adapter) is not None and used.name == name:
            self.use(record.model, None)
        self.adapter_store.erase(name)

    def forget(self, batches: frozenset[int]) -> list[Retired]:
        """Erase the adapters that were fitted on any of these stored batches, and what a cut-off fit left."""
        self.adapter_store.remove_leftovers()
        records = [k.record for k in self.adapter_store.made_from(range(min(batches), max(batches) + 1))] if batches else []
        found = [Retired(r.name, r.model, answered=self._answers(r)) for r in records]
        for retired in found:
            self.erase(retired.name)
        return found

    def _answers(self, record: AdapterRecord) -> bool:
        used = self._slots(record.model).adapter
        return used is not None and (used.name, used.file) == (record.name, record.file)

    def renew(self, model: str) -> str | None:
        """A head fitted on the rows that are left after an erasure. None where they prove none: the hub's head answers."""
        try:
            return self.tune(model, origin="erasure").kept.record.name
        except SpokeshaveError:
            return None  # best effort: what was asked for, the erasure, is done

    def trunk(self, slot: Slot) -> Trunk:
        """The variant of a slot, opened for its features. Raises NotAdaptable."""
        return open_trunk(open_package(self._blobs, slot.index), slot.variant)

    def base_of(self, slot: Slot) -> str:
        """Digest of the model file of a slot."""
        package = open_package(self._blobs, slot.index)
        return package.files[package.variant(slot.variant).main].digest

    def _fit(self, model: str, slot: Slot, used: AdapterSlot | None, origin: Origin) -> StoredAdapter:
        trunk = self.trunk(slot)
        batches = list(self._data.labelled(model, limit=_MOST_ROWS))
        rows = labelled_rows(trunk, batches)
        if batches:
            _check_parity(trunk, batches[0])
        release_unused()  # the engine's code: the fit needs none of it
        tuned = tune_head(rows, trunk.anchors, current=self._current(trunk, used), terms=self._terms)
        if not tuned.verdict.passed:
            raise GateClosed(f"{model}@{slot.version}: {_gate_counts(tuned.verdict)}")
        if not (np.isfinite(tuned.head.weight).all() and np.isfinite(tuned.head.bias).all()):
            raise NotAdaptable("the fit did not converge to finite numbers")
        release_unused()  # the fit's code: writing the adapter needs the engine's again
        head = tuned.head
        seen = self._shadow(model, trunk, lambda inputs: trunk.features(inputs) @ head.weight + head.bias)
        name = self.adapter_store.next_name(model, slot.version)
        describe = self._record(name, model, slot, trunk, tuned, batches, origin, "head", tuned.penalty, seen)
        return self.adapter_store.add(name, trunk.point, tuned.head, describe)

    def _fit_whole(
        self, model: str, slot: Slot, used: AdapterSlot | None, origin: Origin, method: "Whole", limit_s: float
    ) -> StoredAdapter:
        from spoke_agent.tuning.full_model import MOST_ROWS, tune_model  # late: heads are fitted without it

        trunk, source = self.trunk(slot), self._blobs.path(self.base_of(slot))
        batches = list(self._data.labelled(model, limit=MOST_ROWS))
        current = self._adapter_in_use(trunk, used)
        with self.adapter_store.workspace() as work:
            file = work / "model.onnx"
            tuned = tune_model(
                trunk, source, file, batches, method, current=current, limit_s=limit_s, gate=self._terms, fit=self._fit_terms
            )
            if not tuned.verdict.passed:
                raise GateClosed(f"{model}@{slot.version}: {_gate_counts(tuned.verdict)}")
            fitted = trunk.session.load_adapter(str(file), "fitted")
            seen = self._shadow(model, trunk, lambda inputs: trunk.answers(inputs, fitted))
            name = self.adapter_store.next_name(model, slot.version)
            describe = self._record(name, model, slot, trunk, tuned, batches, origin, method, 0.0, seen)
            return self.adapter_store.add_model(name, file, describe)

    def _shadow(self, model: str, trunk: Trunk, answers: Callable[[dict[str, Array]], Array]) -> ShadowComparison:
        """What it would have answered to what callers sent last, labelled or not. Raises GateClosed where that is no number."""
        rows = changed = 0
        for batch in self._data.latest(model, limit=_SHADOW_ROWS):
            new, old = answers(batch.inputs), trunk.answers(batch.inputs)
            sound = np.isfinite(old).all(axis=1)  # callers may send what no model can answer
            if not np.isfinite(new[sound]).all():
                raise GateClosed(f"{model}: in shadow, what was fitted gives no finite answer to rows that callers sent")
            rows, changed = rows + int(sound.sum()), changed + _changed(new[sound], old[sound], trunk)
        return ShadowComparison(rows=rows, changed=changed)

    def _record(
        self,
        name: str,
        model: str,
        slot: Slot,
        trunk: Trunk,
        tuned: "Tuned | TunedModel",
        batches: Sequence[StoredBatch],
        origin: Origin,
        method: Method,
        penalty: float,
        seen: ShadowComparison,
    ) -> Callable[[str], AdapterRecord]:
        """What the record will say, once the file's digest is known."""
        numbers, now = [b.id for b in batches], self._now()

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
                method=method,
                rows=tuned.rows,
                per_class=tuned.per_class,
                first_batch=min(numbers),
                last_batch=max(numbers),
                penalty=penalty,
                gate=tuned.verdict,
                shadow=seen,
            )

        return describe

    def _current(self, trunk: Trunk, used: AdapterSlot | None) -> Head | None:
        if used is None or used.base != trunk.base:
            return None
        kept = self.adapter_store.get(used.name)
        if kept.trusted and kept.record.method != "head":
            raise NotAdaptable(
                f"{used.name} is a whole fitted model; a head fitted on the hub's trunk is no step on from it",
                hint="Fit it again with the method it was made by, or put it away first: `spoke adapter use --none`.",
            )
        return kept.head() if kept.trusted else None

    def _adapter_in_use(self, trunk: Trunk, used: AdapterSlot | None) -> HeadAdapter | None:
        if used is None or used.base != trunk.base:
            return None
        kept = self.adapter_store.get(used.name)
        return trunk.session.load_adapter(str(kept.file), used.name) if kept.trusted else None

    def _fitting(self, model: str, name: str) -> AdapterSlot:
        kept, slots = self.adapter_store.get(name), self._slots(model)
        if not kept.trusted or kept.record.model != model:
            raise AdapterUnknown(f"{name}: not an adapter of {model} made here, or its file was changed")
        if slots.champion is None or self.base_of(slots.champion) != kept.record.base:
            raise AdapterUnknown(f"{name}: was fitted on version {kept.record.version}, which is not what is served")
        return kept.record.slot.replace(probation=True)

    def settle(self, model: str) -> None:
        """The default adapter has stood the labels: its probation is over."""
        edit_slots(
            self.home.slots,
            model,
            lambda model_slots: model_slots.replace(adapter=model_slots.adapter and model_slots.adapter.replace(probation=False)),
        )

    def _switch(self, model: str, adapter: AdapterSlot | None) -> None:
        edit_slots(self.home.slots, model, lambda model_slots: model_slots.replace(adapter=adapter))

    def _slots(self, model: str) -> ModelSlots:
        return read_slots(self.home.slots).models.get(model, ModelSlots())

    def _now(self) -> datetime:
        return self._clock.now().replace(microsecond=0)


def _changed(new: Array, old: Array, trunk: Trunk) -> int:
    """Rows with another class, or (no classes) further off than a twentieth of the spread."""
    if trunk.contract.task == "classification":
        return int((new.argmax(axis=1) != old.argmax(axis=1)).sum())
    return int((np.abs(new - old).max(axis=1) > 0.05 * float(old.std())).sum())


@contextlib.contextmanager
def _young_garbage_only() -> Iterator[None]:
    """Garbage is looked for among what is made here: to go through all that the process has imported costs a fit."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _check_parity(trunk: Trunk, batch: StoredBatch) -> None:
    """The trunk's own head, computed here, must be the model's output: otherwise the adapter point is not what it says."""
    some = {name: array[:16] for name, array in batch.inputs.items()}
    features, output = trunk.session.run(some, [trunk.point.features, trunk.point.output])
    hub = trunk.anchors.head
    here = features.reshape(len(features), -1).astype(np.float64) @ hub.weight + hub.bias
    if not np.allclose(here, output.reshape(len(output), -1), rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(here).max()))):
        raise NotAdaptable("the package's features and head do not give its output; an adapter would not do what was tested")


def _gate_counts(v: GateVerdict) -> str:
    return (
        f"on {v.rows} held-out rows what was fitted is right where the old is wrong {v.wins} times, the other way round "
        f"{v.losses} times (p = {v.p:.3f}); on {v.anchors} of the hub's rows it scores {v.anchors_after:.2f} against "
        f"{v.anchors_before:.2f}"
    )
