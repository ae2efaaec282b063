"""Which blocks to ask for now, and which again: the receiver's rules, pure.

A spoke does not ask for all it misses at once. It keeps a window of blocks in flight and asks for more when half of them have
arrived, so that the line is not idle while a want travels. A block counts as lost when blocks of a later want have arrived
before it, or when nothing has arrived for a while. The window doubles (up to a limit) each time the line was idle, as on a long
link, and halves when blocks had to be asked for again.

Blocks that other spokes asked for arrive too. So a spoke that sees blocks arrive asks for the ones that come next, as the
others do, and for those it missed at the end, as other latecomers do; what it hears others ask for it does not ask for itself.
The wants of a ring are therefore few, ask for the same blocks, and cost one publish.
"""

from collections import deque
from collections.abc import Iterable

__all__ = ["InFlightWindow"]


class InFlightWindow:
    """The window of one blob of `blocks` blocks. `first` and `largest`: blocks on the way at the start, and at most."""

    def __init__(self, missing: Iterable[int], blocks: int, *, first: int = 16, largest: int = 64) -> None:
        self.missing = set(missing)
        self.size, self._first, self._largest = first, first, largest
        self._blocks, self._cursor = blocks, 0
        self._asked: dict[int, int] = {}
        self._lost: deque[int] = deque()
        self._want = 0
        self._dry = False

    @property
    def done(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    def arrived(self, block: int) -> bool:
        """A block is here; whether it was one that was asked for."""
        self.missing.discard(block)
        want = self._asked.pop(block, None)
        if want is None:
            self._cursor = (block + 1) % self._blocks
            return False
        if self._dry:
            self._dry = False
            self.grow()
        # Blocks come in the order of the wants: once one of a later want is here, the earlier ones are lost.
        overtaken = [b for b, w in self._asked.items() if w < want]
        for other in overtaken:
            del self._asked[other]
        self._lost.extend(overtaken)
        self._dry = not self._asked and bool(self.missing)
        return True

    def grow(self) -> None:
        """The window is too small for the line."""
        self.size = min(self.size * 2, self._largest)

    @property
    def wants_more(self) -> bool:
        """Whether less than half of the window is on the way, and there is something left to ask for."""
        return (self.size - len(self._asked)) * 2 >= self.size and len(self._asked) < len(self.missing)

    def due(self, most: int | None = None) -> list[int]:
        """What to ask for now, `most` blocks at most; empty while enough is on the way."""
        if not self.wants_more:
            return []
        room = self.size - len(self._asked) if most is None else most
        # Lost blocks first: the hash of the whole file follows the transfer from its beginning (store.py).
        asking = self._again(room)
        asking += self._next(room - len(asking), set(asking))
        self._want += 1
        self._asked.update(dict.fromkeys(asking, self._want))
        return sorted(asking)

    def asked_by_another(self, blocks: Iterable[int]) -> None:
        """Somebody else asked for these: they are on the way to us too, and count in the window as if we had asked."""
        self._want += 1
        self._asked.update((b, self._want) for b in blocks if b in self.missing and b not in self._asked)

    def ask_again(self) -> None:
        """Take all that is on the way for lost: the connection was new, or nothing came for a while."""
        self._lost.extend(self._asked)
        self._asked.clear()
        self._dry = False
        # As TCP does: less in flight after a loss, but never so little that the line stands still.
        self.size = max(self._first // 2, self.size // 2, 1)

    def _again(self, count: int) -> list[int]:
        found: list[int] = []
        while self._lost and len(found) < count:
            block = self._lost.popleft()
            if block in self.missing and block not in self._asked:
                found.append(block)
        return found

    def _next(self, count: int, taken: set[int]) -> list[int]:
        found: list[int] = []
        for _ in range(self._blocks):
            if len(found) >= count:
                break
            if self._cursor in self.missing and self._cursor not in self._asked and self._cursor not in taken:
                found.append(self._cursor)
            self._cursor = (self._cursor + 1) % self._blocks
        return found
