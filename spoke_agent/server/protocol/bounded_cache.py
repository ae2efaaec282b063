"""What callers say again and again is read once: the memory for it."""

from collections.abc import Callable
from typing import TypeVar

__all__ = ["BoundedCache"]

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(dict[K, V]):
    """A bounded memory; when it is full it begins anew. Any thread may use it."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def remember(self, key: K, value: V) -> None:
        """Keep it."""
        if len(self) >= self._most:
            self.clear()
        self[key] = value

    def recall(self, key: K, make: Callable[[], V]) -> V:
        """What is known, or what `make` says now. Nothing is kept when it raises."""
        found = self.get(key)
        if found is None:
            found = make()
            self.remember(key, found)
        return found
