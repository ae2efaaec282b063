"""The hub's half of the wire, made of the real parts of `sync` and `provisioning`: TUF, directives, block sender, device CA."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from model_formats.core.types import ModelRef
from model_formats.package.image_layout import ImageLayout
from model_formats.signing.signature import KeySigner, sign_package
from provisioning.identity.ca import DeviceCA
from provisioning.identity.enrol import HubAddress, admit, begin, finish, grant, invite
from provisioning.identity.identity import Identity
from sync.bus.bus import Bus, Message
from sync.core.clock import SystemClock
from sync.core.types import Regime, SpokeId
from sync.protocol import topics
from sync.protocol.messages import DesiredModel, Directive, ProbationTerms, Report, Status
from sync.transfer.sender import BlobSender
from sync.trust.dsse import seal
from sync.trust.freshness import answer_time
from sync.trust.keys import key_of_pem
from sync.trust.metadata import Repository
from sync.trust.verifier import verify_report

ADDRESS = HubAddress(url="https://localhost:1", broker_host="localhost", broker_port=1)


class SmallHub:
    """Releases packages, sends directives, collects verified reports."""

    def __init__(
        self, folder: Path, bus: Bus, *, zone: str = "eu", address: HubAddress = ADDRESS, ca: DeviceCA | None = None
    ) -> None:
        self.folder, self.bus, self.zone, self.address, self.clock = folder, bus, zone, address, SystemClock()
        self.ca = ca or DeviceCA.create(folder / "ca", now=self.clock.now())
        self.repository = Repository.create(folder / "tuf")
        self.repository.add_model_family("digits")
        self.publisher = KeySigner.generate()
        self.layout = ImageLayout(folder / "layout")
        self.identities: dict[SpokeId, Identity] = {}
        self.reports: dict[SpokeId, list[Report]] = {}
        self.raw: list[bytes] = []
        self.statuses: list[Status] = []
        self.generation = 0
        self.sender = BlobSender(bus, self.layout, grace=0.05)

    def open(self) -> None:
        anyone = SpokeId("+", "+")
        self.bus.connect()
        self.bus.subscribe(topics.report(anyone), self._report)
        self.bus.subscribe(topics.status(anyone), self._status)
        self.sender.start()
        self.publish()

    def close(self) -> None:
        self.sender.stop()
        self.bus.close()

    def enrol(self, home: Path, name: str = "frankfurt", regime: Regime = "gdpr") -> Identity:
        spoke, now = SpokeId.parse(name), self.clock.now()
        code, kept = invite(spoke, zone=self.zone, regime=regime, ca=self.ca, now=now)
        request = begin(home, code)
        admit(request, kept, used=False, now=now)
        answer = grant(request, kept, self.ca, hub=self.address, tuf_root=self.repository.anchor, now=now)
        self.identities[spoke] = finish(home, answer)
        self.reports[spoke] = []
        return self.identities[spoke]

    def release(self, index: str, version: int, *, zones: Sequence[str] = ("eu",), fallback: Sequence[int] = ()) -> str:
        bundle = sign_package(self.layout, index, self.publisher)
        self.repository.release(
            ModelRef("digits", version),
            index,
            self.layout.path(index).stat().st_size,
            signature_digest=self.layout.put(bundle),
            signature_size=len(bundle),
            zones=zones,
            publishers=self.publisher.policy,
            fallback=fallback,
        )
        self.publish()
        return index

    def publish(self) -> None:
        self.repository.refresh_online()
        for name, data in self.repository.files().items():
            self.bus.publish(Message(topics.tuf(self.zone, name), data, retain=True))

    def directive(self, spoke: SpokeId, *models: DesiredModel, generation: int | None = None) -> bytes:
        self.generation = generation if generation is not None else self.generation + 1
        now = datetime.now(UTC).replace(microsecond=0)
        wish = Directive(
            site=spoke.site,
            spoke=spoke.spoke,
            zone=self.zone,
            generation=self.generation,
            issued=now,
            expires=now + timedelta(days=7),
            models=models,
        )
        return seal(wish, self.repository.director)

    def want(self, spoke: SpokeId, index: str, version: int, **terms: object) -> None:
        terms = {"probation": ProbationTerms(soak_s=0), "transport": "mqtt", **terms}
        model = DesiredModel(model="digits", version=version, index=index, **terms)  # type: ignore[arg-type]
        self.send(spoke, self.directive(spoke, model))

    def send(self, spoke: SpokeId, data: bytes) -> None:
        self.bus.publish(Message(topics.desired(spoke), data, retain=True))

    def chain(self, spoke: SpokeId) -> list[str]:
        return [str(r.state) for r in self.reports[spoke]]

    def _status(self, message: Message) -> None:
        status, spoke = Status.parse(message.payload), topics.spoke_of(message.topic)
        self.statuses.append(status)
        if status.asks_time:
            answer = answer_time(spoke, status.asks_time, self.clock.now(), self.repository.director)
            self.bus.publish(Message(topics.time(spoke), answer))

    def _report(self, message: Message) -> None:
        self.raw.append(message.payload)
        spoke = topics.spoke_of(message.topic)
        taken = self.reports[spoke]
        key = key_of_pem(self.identities[spoke].public_key)
        report = verify_report(message.payload, key, spoke, 0, self.clock.now())
        if report.sequence not in {r.sequence for r in taken}:
            taken.append(report)
