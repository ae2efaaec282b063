"""A broker in memory, with the same manners as the real one: access lists, retained messages, wills, shared subscriptions.

Signatures first; the body follows within the hour.
"""

from sync.bus import Bus
from sync.topics import Right

__all__ = ["MemoryBroker"]


class MemoryBroker:
    """A broker for tests and simulations; clients of one broker see each other, across threads of one process."""

    def client(self, name: str, rights: tuple[Right, ...] | None = None) -> Bus:
        """A client with these rights (None: all)."""
        raise NotImplementedError
