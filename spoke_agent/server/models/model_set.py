"""Who answers: the places of every model, following `slots.json`, swapped by one assignment.

A reconcile loads what is new on a thread of its own (verify, golden vectors, measure), then puts one new LoadedModel in place
of the old one. Requests already taken keep the version they were given; it goes away when the last of them is answered. What
cannot be loaded changes nothing for callers: the version that answered before goes on, or last-good.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import replace

from model_formats.core.errors import SpokeshaveError, public_text
from model_formats.core.runtime import HeadAdapter
from model_formats.documents.feature_contract import TensorContract
from model_formats.package import BlobReader
from spoke_agent.server.metrics import ModelCounts
from spoke_agent.server.models.loader import LoadedVersion, load_adapter, load_version, measure, reason_of, stored_adapters
from spoke_agent.server.models.shadow import Mirror
from spoke_agent.server.models.version import Version, Watcher
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.errors import NotServing, UnknownTarget
from spoke_agent.server_api.messages import AdapterState, LoadedState, ModelState, ModelStats, ReconcileAnswer, ShadowStats
from spoke_agent.site.slots import AdapterSlot, ModelSlots, Slot, Slots, read_slots
from sync.protocol.serving import Serving

__all__ = ["BASE_HEAD", "LoadedModel", "ModelSet"]

BASE_HEAD = "none"
"""Adapter name with which a caller asks for the hub's own head."""

Role = Literal["champion", "candidate", "challenger", "last_good"]


class LoadedModel(Struct, frozen=True):
    """One model right now. Replaced whole, never changed."""

    slots: ModelSlots
    answering: Version | None = None
    champion: Version | None = None
    candidate: Version | None = None
    challenger: Version | None = None
    """The version that answers a share of the callers now (see `infer.choose_version`)."""
    last_good: Version | None = None
    adapter_name: str = ""
    """Name of the adapter that answers by default; empty for the hub's head."""
    adapters: Mapping[str, HeadAdapter] = field(default_factory=dict)
    """By name, for the answering version."""
    mirror: Mirror | None = None
    faults: Mapping[str, LoadedState] = field(default_factory=dict)
    """By role: why a slot is not loaded."""
    adapter: AdapterState | None = None

    @property
    def versions(self) -> tuple[Version, ...]:
        """All loaded versions, each once."""
        found = (self.answering, self.champion, self.candidate, self.challenger, self.last_good)
        return tuple(dict.fromkeys(v for v in found if v is not None))


class ModelSet:
    """All models of this process. Everything but the loading itself happens on the loop."""

    def __init__(self, settings: ServeSettings, blobs: BlobReader, *, watcher: Watcher | None = None) -> None:
        self.live: dict[str, LoadedModel] = {}
        self.counts: dict[str, ModelCounts] = {}
        self.slots_error: str | None = None
        self._followed = False
        """Whether `slots.json` was followed once: before, a model that is not here may still come."""
        self._settings = settings
        self._blobs = blobs
        self._watcher = watcher
        self.loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")

    # ---- asking

    def current(self, model: str) -> LoadedModel:
        """Raises UnknownTarget, and NotServing while the server starts."""
        current = self.live.get(model)
        if current is None:
            if not self._followed:
                raise NotServing(f"model {model!r}: {self.unready}")
            raise UnknownTarget(f"model {model!r} is not served here; `POST /v2/repository/index` lists the models")
        return current

    def version(self, model: str, number: str | None = None) -> tuple[LoadedModel, Version]:
        """The version that answers, or a given one of those that may answer. Raises UnknownTarget, NotServing."""
        current = self.live.get(model) or self.current(model)
        if number is None:
            if current.answering is None:
                raise NotServing(f"model {model!r}: no version is loaded; {self._why(current)}")
            return current, current.answering
        for version in (current.answering, current.champion, current.challenger, current.last_good):
            if version is not None and str(version.number) == number:
                return current, version
        raise UnknownTarget(f"model {model!r} has no version {number!r} here")

    @property
    def ready(self) -> bool:
        """Whether the models of the start are loaded and every model that has a champion answers."""
        return not self.unready

    @property
    def unready(self) -> str:
        """Why `ready` is not; empty when it is."""
        if self.slots_error is not None:
            return self.slots_error
        answer = all(p.answering is not None for p in self.live.values() if p.slots.champion is not None)
        return "" if self._followed and answer else "not every model is loaded yet"

    def serving(self) -> tuple[Serving, ...]:
        """What callers get right now."""
        return tuple(p.answering.serving(adapted=bool(p.adapter_name)) for p in self.live.values() if p.answering is not None)

    def stats(self) -> dict[str, ModelStats]:
        """Counts by model and role."""
        return {name: self._stats(name, current) for name, current in self.live.items()}

    # ---- following slots.json

    async def reconcile(self) -> ReconcileAnswer:
        """Follow `slots.json` now. Raises DocumentRefused on a damaged file; then everything stays as it is."""
        async with self._lock:
            started = time.perf_counter()
            slots = self._read()
            for name in [*self.live]:
                if name not in slots.models:
                    self._retire(name)
            states = {n: await self._follow(n, m, started) for n, m in slots.models.items()}
            self._followed = True
            return ReconcileAnswer(models=states)

    async def close(self) -> None:
        """Let everything go."""
        async with self._lock:
            for name in [*self.live]:
                self._retire(name)
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _read(self) -> Slots:
        try:
            slots = read_slots(self._settings.folder.slots)
        except SpokeshaveError as e:
            self.slots_error = e.message
            raise
        self.slots_error = None
        return slots

    async def _follow(self, name: str, slots: ModelSlots, started: float) -> ModelState:
        old = self.live.get(name, LoadedModel(slots))
        faults: dict[str, LoadedState] = {}
        champion = await self._load(name, slots.champion, old, faults, "champion", adaptable=slots.adapter is not None)
        last_good = None
        if slots.probation or (slots.champion is not None and champion is None):
            last_good = await self._load(name, slots.last_good, old, faults, "last_good", adaptable=False)
        answering = champion or (last_good or old.answering if slots.champion is not None else None)
        current = LoadedModel(slots, answering, champion, old.candidate, last_good=last_good, mirror=old.mirror, faults=faults)
        current = self._adapted(current, await self._adapter(answering, slots.adapter), await self._adapters(answering))
        swapped = (answering is not old.answering) and answering is not None
        self._put(name, current)
        swap_ms = (time.perf_counter() - started) * 1e3 if swapped else None
        candidate = await self._load(name, slots.candidate, current, faults, "candidate", adaptable=slots.adapter is not None)
        if candidate is not None and candidate not in current.versions:
            await self._measure_again(champion)
        share = slots.challenging
        own = share.slot if share is not None else None
        rival = candidate if own is None else await self._load(name, own, old, faults, "challenger", adaptable=False)
        self._put(name, self._with_others(current, candidate, rival))
        return self._state(name, swap_ms)

    async def _load(
        self, name: str, slot: Slot | None, old: LoadedModel, faults: dict[str, LoadedState], role: Role, *, adaptable: bool
    ) -> Version | None:
        """The version of a slot: one that is loaded already, or a new one. None, and a fault, when it cannot be loaded."""
        if slot is None:
            return None
        for version in (*self.live.get(name, old).versions, *old.versions):
            if version.loaded_version.slot == slot and (version.loaded_version.best_for_adapters or not adaptable):
                return version
        try:
            return self._version(name, await self._prepared(name, slot, adaptable=adaptable))
        except Exception as e:  # noqa: BLE001 - whatever a model file does, callers keep their version and the agent hears why
            faults[role] = _fault(slot, e)
            return None

    async def _prepared(self, name: str, slot: Slot, *, adaptable: bool) -> LoadedVersion:
        load: Callable[[], LoadedVersion] = lambda: load_version(self._settings, self._blobs, name, slot, adaptable=adaptable)  # noqa: E731
        return await self.loop.run_in_executor(self._loader, load)

    def _version(self, name: str, loaded_version: LoadedVersion) -> Version:
        return Version(loaded_version, self._settings, self.loop, self.counts.setdefault(name, ModelCounts()))

    async def _adapter(self, version: Version | None, slot: AdapterSlot | None) -> tuple[HeadAdapter | None, AdapterState | None]:
        """The default adapter. One that does not fit is told, and the hub's head answers."""
        if version is None or slot is None:
            return None, None
        folder = self._settings.folder.adapters
        try:
            adapter = await self.loop.run_in_executor(self._loader, load_adapter, folder, version.loaded_version, slot)
        except (SpokeshaveError, OSError, RuntimeError) as e:
            return None, AdapterState(name=slot.name, file=slot.file, loaded=False, detail=public_text(e))
        return adapter, AdapterState(name=slot.name, file=slot.file, loaded=True)

    async def _adapters(self, version: Version | None) -> Mapping[str, HeadAdapter]:
        """What callers may ask for by name besides the default."""
        if version is None:
            return {}
        return await self.loop.run_in_executor(self._loader, stored_adapters, self._settings.folder, version.loaded_version)

    def _adapted(
        self,
        current: LoadedModel,
        found: tuple[HeadAdapter | None, AdapterState | None],
        adapter_store: Mapping[str, HeadAdapter],
    ) -> LoadedModel:
        adapter, state = found
        if adapter is None or state is None:
            return replace(current, adapter=state, adapters=adapter_store)
        return replace(current, adapter=state, adapter_name=state.name, adapters={**adapter_store, state.name: adapter})

    async def _measure_again(self, champion: Version | None) -> None:
        """Time the champion in the same minute as its candidate, so that the two can be compared."""
        if champion is None:
            return
        e = champion.loaded_version
        golden = e.package.golden()
        _, e.latency_ms, e.row_ms_batch = await self.loop.run_in_executor(self._loader, measure, e.session, golden, e.signature)

    def _with_others(self, current: LoadedModel, candidate: Version | None, rival: Version | None) -> LoadedModel:
        mirror = current.mirror
        if mirror is not None and (mirror.candidate is not candidate or mirror.champion is not current.answering):
            mirror.stop()
            mirror = None
        if mirror is None and candidate is not None and current.answering is not None and candidate is not current.answering:
            mirror = Mirror(current.answering, candidate, self.loop)
        return replace(current, candidate=candidate, mirror=mirror, challenger=_challenger(current, rival))

    def _put(self, name: str, current: LoadedModel) -> None:
        """The swap: one assignment. Versions that have no place any more end after their last answer."""
        old = self.live.get(name)
        self.counts.setdefault(name, ModelCounts())
        watchers = tuple(w for w in (self._watcher, current.mirror.watch if current.mirror else None) if w is not None)
        for version in current.versions:
            version.watchers = watchers if version is current.answering else watchers[:1] if self._watcher else ()
        self.live[name] = current
        kept = current.versions
        for version in old.versions if old is not None else ():
            if version not in kept:
                version.close()

    def _retire(self, name: str) -> None:
        current = self.live.pop(name)
        if current.mirror is not None:
            current.mirror.stop()
        for version in current.versions:
            version.close()

    # ---- telling

    def _state(self, name: str, swap_ms: float | None) -> ModelState:
        current = self.live[name]
        slots = current.slots
        return ModelState(
            champion=_slot_state(slots.champion, current.champion, current.faults.get("champion")),
            candidate=_slot_state(slots.candidate, current.candidate, current.faults.get("candidate")),
            last_good=_slot_state(slots.last_good, current.last_good, current.faults.get("last_good")),
            challenger=_challenger_state(current),
            adapter=current.adapter,
            answering=current.answering.index if current.answering is not None else None,
            swap_ms=swap_ms,
        )

    def _stats(self, name: str, current: LoadedModel) -> ModelStats:
        counts = self.counts[name]
        return ModelStats(
            champion=current.champion.stats() if current.champion else None,
            candidate=current.candidate.stats() if current.candidate else None,
            last_good=current.last_good.stats() if current.last_good else None,
            challenger=current.challenger.stats() if current.challenger else None,
            shadow=current.mirror.stats() if current.mirror else ShadowStats(),
            requests=counts.requests,
            bad_requests=counts.bad_requests,
            shed=counts.shed,
            idle_s=time.monotonic() - counts.last_request if counts.last_request else None,
        )

    def _why(self, current: LoadedModel) -> str:
        fault = current.faults.get("champion")
        return fault.detail if fault is not None else "slots.json names no champion"


def _challenger(current: LoadedModel, rival: Version | None) -> Version | None:
    """It, when slots give it a share and callers of the champion can be answered by it."""
    share, champion = current.slots.challenging, current.answering
    if share is None or rival is None or champion is None or rival is champion or share.index != rival.index:
        return None
    if share.against not in (None, champion.index):
        return None  # last-good answers for a champion that could not be loaded
    mine, its = ((v.signature.inputs, v.signature.outputs) for v in (champion, rival))
    return rival if [*map(_face, (*mine[0], *mine[1]))] == [*map(_face, (*its[0], *its[1]))] else None


def _face(tensor: TensorContract) -> tuple[str, str, tuple[int, ...]]:
    return tensor.name, tensor.datatype, tensor.shape


def _slot_state(slot: Slot | None, version: Version | None, fault: LoadedState | None) -> LoadedState | None:
    if slot is None:
        return None
    return fault if fault is not None else version.state() if version is not None else None


def _challenger_state(current: LoadedModel) -> LoadedState | None:
    share = current.slots.challenging
    if share is None or share.slot is None:
        return None
    if current.challenger is not None or "challenger" in current.faults:
        return _slot_state(share.slot, current.challenger, current.faults.get("challenger"))
    slot = share.slot
    detail = "callers of the champion cannot use it alike: it takes or gives other tensors, or it is the champion"
    return LoadedState(loaded=False, version=slot.version, index=slot.index, variant=slot.variant, detail=detail)


def _fault(slot: Slot, error: Exception) -> LoadedState:
    return LoadedState(
        loaded=False,
        version=slot.version,
        index=slot.index,
        variant=slot.variant,
        reason=reason_of(error),
        detail=public_text(error)[:2000],
    )
