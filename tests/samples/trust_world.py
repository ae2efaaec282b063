"""A hub's repository, real packages and spokes on one clock that the test turns by hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from model_formats.core.types import ModelRef, digest_of
from model_formats.package.image_layout import ImageLayout
from model_formats.signing.publisher_policy import PublisherPolicy
from model_formats.signing.signature import KeySigner, sign_package
from sync.core.clock import ManualClock
from sync.core.types import SpokeId
from sync.protocol.messages import DesiredModel, Directive
from sync.trust.client import TrustStore
from sync.trust.dsse import seal
from sync.trust.metadata import Proposal, Repository
from tests.samples.model_folder import packed

POLICY = PublisherPolicy(keys=("any",))
CLINIC = SpokeId("clinic", "main")
DAY = 86400.0


@dataclass
class World:
    """Everything of one test."""

    folder: Path
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.repo = Repository.create(self.folder / "repo", clock=self.clock)
        self.publisher = KeySigner.generate()
        self.device = CryptoSigner.generate_ecdsa()
        self.files: dict[str, bytes] = {}
        """What the way between hub and spoke delivers."""
        self.publish()

    # ---- the hub -----------------------------------------------------------------------------------------------------------

    def release(
        self,
        ref: str,
        content: bytes = b"",
        zones: Sequence[str] = ("eu",),
        fallback: Sequence[int] = (),
        signature: bytes = b"signature",
        policy: PublisherPolicy = POLICY,
    ) -> Proposal:
        """Release some bytes as an index, adding the family when it is new."""
        parsed = ModelRef.parse(ref)
        if parsed.name not in self.repo.families():
            self.repo.add_model_family(parsed.name)
        proposal = self.repo.release(
            parsed,
            digest_of(content or ref.encode()),
            len(content or ref),
            signature_digest=digest_of(signature),
            signature_size=len(signature),
            zones=zones,
            publishers=policy,
            fallback=fallback,
        )
        self.publish()
        return proposal

    def publish_package(
        self, ref: str, zones: Sequence[str] = ("me", "eu"), fallback: Sequence[int] = ()
    ) -> tuple[ImageLayout, str, str]:
        """A real package, signed and released; returns the layout, and the digests of index and signature."""
        parsed = ModelRef.parse(ref)
        layout, index = packed(self.folder / ref, model=parsed.name, version=parsed.version)
        bundle = sign_package(layout, index, self.publisher)
        content = layout.path(index).read_bytes()
        self.release(ref, content, zones, fallback, bundle, self.publisher.policy)
        return layout, index, layout.put(bundle)

    def publish(self) -> None:
        """Deliver all current files."""
        self.files = self.repo.files()

    def directive(
        self, *models: DesiredModel, spoke: SpokeId = CLINIC, zone: str = "me", generation: int = 1, days: float = 7
    ) -> bytes:
        """A directive signed by the hub's director."""
        now = self.clock.now()
        document = Directive(
            site=spoke.site,
            spoke=spoke.spoke,
            zone=zone,
            generation=generation,
            issued=now,
            expires=now + timedelta(days=days),
            models=models,
        )
        return seal(document, self.repo.director)

    # ---- the spoke ---------------------------------------------------------------------------------------------------------

    def spoke(self, name: str = "spoke", **options: object) -> TrustStore:
        """A spoke's trust store; the same name is the same folder, so this is also a restart."""
        return TrustStore(self.folder / name, self.clock, self.repo.anchor, **options)  # type: ignore[arg-type]

    @property
    def fetch(self) -> Callable[[str], bytes | None]:
        """What the spoke is given."""
        return lambda name: self.files.get(name)


def desired(ref: str, index: str = "") -> DesiredModel:
    """One model of a directive, as `World.release` releases it unless `index` is given."""
    parsed = ModelRef.parse(ref)
    return DesiredModel(model=parsed.name, version=parsed.version, index=index or digest_of(ref.encode()))
