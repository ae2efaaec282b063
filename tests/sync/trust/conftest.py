"""A repository and a spoke's trust store, on one clock that the test turns by hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from model_formats.publisher import PublisherPolicy
from model_formats.types import ModelRef, digest_of
from sync.clock import ManualClock
from sync.trust.client import TrustStore
from sync.trust.metadata import Proposal, Repository

POLICY = PublisherPolicy(keys=("any",))


@dataclass
class World:
    """Hub and spoke of one test."""

    folder: Path
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.repo = Repository.create(self.folder / "repo", clock=self.clock)
        self.files: dict[str, bytes] = {}
        """What the way between them delivers; a test may falsify it."""
        self.publish()

    def release(
        self, ref: str, content: bytes = b"", zones: tuple[str, ...] = ("eu",), fallback: tuple[int, ...] = ()
    ) -> Proposal:
        """Release some bytes as an index, adding the family when it is new."""
        parsed = ModelRef.parse(ref)
        if parsed.name not in self.repo.families():
            self.repo.add_model_family(parsed.name)
        proposal = self.repo.release(
            parsed,
            digest_of(content or ref.encode()),
            len(content or ref),
            signature_digest=digest_of(b"signature"),
            signature_size=9,
            zones=zones,
            publishers=POLICY,
            fallback=fallback,
        )
        self.publish()
        return proposal

    def publish(self) -> None:
        """Deliver all current files."""
        self.files = self.repo.files()

    def spoke(self, name: str = "spoke", **options: object) -> TrustStore:
        """A spoke's trust store; the same name is the same folder."""
        return TrustStore(self.folder / name, self.clock, self.repo.anchor, **options)  # type: ignore[arg-type]

    @property
    def fetch(self) -> Callable[[str], bytes | None]:
        """What the spoke is given."""
        return lambda name: self.files.get(name)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
