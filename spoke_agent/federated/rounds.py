"""What this site stores about each question until it is over: its one-time secret, sealed under the site key, or that it is done.

A secret must be used for one answer only. So the file says `done` and no longer holds the secret before the answer is offered.
After a crash in between the answer is missing, which costs the sum, but no second one can be made.
"""

import base64
import contextlib
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document, DocumentRefused
from model_formats.core.files import atomic_write
from model_formats.core.types import hex_of
from spoke_agent.data.crypto import SiteKey
from spoke_agent.data.errors import StoreDamaged
from sync.federated.documents import Question
from sync.federated.masks import fresh_secret, public_of

__all__ = ["Round", "Rounds"]

_PURPOSE = "federated"


class Round(Document):
    """`federated/<digest of the question>.json`."""

    max_bytes: ClassVar[int] = 64 * 1024

    kind: Literal["federated-round"] = "federated-round"
    schema_: Literal[1] = 1
    question: Question
    state: Literal["joined", "done"]
    sealed: Annotated[str, Meta(max_length=400)] | None = None
    """The secret, while it may still be needed."""


class Rounds:
    """The folder of rounds."""

    def __init__(self, folder: Path, key: SiteKey) -> None:
        self._folder, self._key = folder, key

    def find(self, question: str) -> Round | None:
        """What is remembered of a question (by digest). A file that cannot be read counts as done: no second answer."""
        path = self._path(question)
        with contextlib.suppress(OSError, DocumentRefused):
            return Round.parse(path.read_bytes())
        return None

    def known(self, question: str) -> bool:
        """Whether this question was ever looked at here."""
        return self._path(question).exists()

    def join(self, question: Question) -> bytes:
        """Make and keep a secret; returns its public half."""
        secret = fresh_secret()
        sealed = base64.b64encode(self._key.seal(_PURPOSE, secret, question.digest.encode())).decode()
        self._write(Round(question=question, state="joined", sealed=sealed))
        return public_of(secret)

    def done(self, question: Question) -> None:
        """Forget the secret; nothing more is said to this question."""
        self._write(Round(question=question, state="done"))

    def secret(self, found: Round) -> bytes | None:
        """The secret of a round that was joined; None where there is none, or the site key is another."""
        if found.state != "joined" or found.sealed is None:
            return None
        with contextlib.suppress(StoreDamaged, ValueError):
            return self._key.unseal(_PURPOSE, base64.b64decode(found.sealed), found.question.digest.encode())
        return None

    def joined(self) -> list[Round]:
        """Rounds that wait for their cohort."""
        found = (self.find(f"sha256:{path.stem}") for path in sorted(self._folder.glob("*.json")))
        return [r for r in found if r is not None and r.state == "joined"]

    def forget_expired(self, now: datetime) -> None:
        """Remove what is over; whoever repeats such a question is told that it is."""
        for path in self._folder.glob("*.json"):
            found = self.find(f"sha256:{path.stem}")
            if found is not None and now >= found.question.expires:
                path.unlink(missing_ok=True)

    def _write(self, found: Round) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(self._path(found.question.digest), found.canonical(), mode=0o600)

    def _path(self, question: str) -> Path:
        return self._folder / f"{hex_of(question)}.json"
