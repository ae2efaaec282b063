"""Blobs that are on their way and that no slot names yet. The garbage collection must leave them alone."""

import contextlib
from collections.abc import Callable, Iterator

from spoke_agent.update.journal import Journal
from spoke_agent.update.update import Update
from sync.core.types import State

__all__ = ["Arrivals"]

_ARRIVING = frozenset({State.ADMITTED, State.STAGING, State.VERIFIED, State.SHADOW})
"""States of a version that no slot may name yet."""


class Arrivals:
    """Shared by the handlers, which fetch and collect, and by sideload, which brings blobs in from outside."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._fetching: list[str] = []
        self.files: dict[str, tuple[int, int]] = {}
        """Of the file that is on its way for a model: bytes here, and bytes in all."""

    @contextlib.contextmanager
    def fetching(self, what: str) -> Iterator[None]:
        """While this lasts nothing is collected."""
        self._fetching.append(what)
        try:
            yield
        finally:
            self._fetching.remove(what)

    def forbid_collection(self, model: str | None) -> bool:
        """Whether something is being fetched, or the update of another model than this is on its way."""
        found = self._journal.updates().values()
        return bool(self._fetching) or any(isinstance(u, Update) and u.model != model and u.state in _ARRIVING for u in found)

    def progress(self, model: str) -> Callable[[int, int], None]:
        """What a transfer calls with the bytes it has and the bytes in all."""

        def tell(held: int, size: int) -> None:
            self.files[model] = (held, size)

        return tell

    def arrived(self, model: str) -> None:
        """No file of the model is on its way any more."""
        self.files.pop(model, None)
