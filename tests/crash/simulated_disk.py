"""A model of the disk under the files: what of it would be left if the power failed now.

Written bytes count once their file was synced; new names, new places of files and removals count once their folder was. `fail`
makes the files look as they would then: at worst all that was not synced is gone, at random some pages of it are there and some
are not, and of the changes of names the first few are (a journalling file system keeps their order).
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

PAGE = 4096
_link, _unlink, _replace, _rmdir = os.link, os.unlink, os.replace, os.rmdir
"""The real ones: `points` puts its own in their place."""


@dataclass(frozen=True, slots=True)
class _Change:
    """Of names in a folder that was not synced since."""

    folder: str
    what: str
    undo: Callable[[], None]


@dataclass
class SimulatedDisk:
    """`attic`: a folder on the same file system, for files that have no name any more but may have one after the failure."""

    attic: Path
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], None]
    _images: dict[str, bytes] = field(default_factory=dict)
    _changes: list[_Change] = field(default_factory=list)
    _kept: int = 0

    # ---- before something happens

    def touches(self, path: str) -> None:
        """A file's bytes are about to change."""
        if path not in self._images and Path(path).is_file():
            self._images[path] = self.read(path)

    def creates(self, path: str) -> None:
        """A name is about to appear."""
        self._images[path] = b""
        self._note(path, path, lambda: _unlink(path))

    def makes_folder(self, path: str) -> None:
        self._note(path, path, lambda: _rmdir(path))

    def removes(self, path: str) -> None:
        """A name is about to go."""
        kept = self._keep(path)
        self._note(path, path, lambda: _link(kept, path))

    def moves(self, source: str, target: str) -> None:
        """A file is about to take another name, and perhaps the place of another file."""
        kept = self._keep(target) if Path(target).exists() else None

        def undo() -> None:
            _replace(target, source)
            if kept is not None:
                _link(kept, target)

        self._note(target, target, undo)
        if source in self._images:
            self._images[target] = self._images.pop(source)

    # ---- after something happened

    def synced(self, path: str) -> None:
        """A file's bytes, or a folder's names, are safe."""
        if Path(path).is_dir():
            self._changes = [c for c in self._changes if c.folder != path]
        else:
            self._images.pop(path, None)

    def is_new(self, path: str) -> bool:
        """Whether a name is not safe yet."""
        return any(c.what == path for c in self._changes)

    # ---- the failure

    def fail(self, random: Random | None = None) -> None:
        """Leave what the disk would have; with `random` not the worst, but something between."""
        for path in list(self._images):
            self.drop(path, random)
        safe = random.randint(0, len(self._changes)) if random else 0
        for change in reversed(self._changes[safe:]):
            with contextlib.suppress(FileNotFoundError, FileExistsError, OSError):  # undone by what lies under it
                change.undo()
        shutil.rmtree(self.attic, ignore_errors=True)

    def drop(self, path: str, random: Random | None = None) -> None:
        """Take back what was written to one file since its last sync."""
        image = self._images.pop(path, None)
        if image is not None and Path(path).is_file():
            self.write(path, _mixed(image, self.read(path), random) if random else image)

    # ---- inside

    def _note(self, path: str, what: str, undo: Callable[[], None]) -> None:
        self._changes.append(_Change(str(Path(path).parent), what, undo))

    def _keep(self, path: str) -> str:
        self.attic.mkdir(parents=True, exist_ok=True)
        self._kept += 1
        kept = str(self.attic / str(self._kept))
        _link(path, kept)
        if path in self._images:
            self._images[kept] = self._images.pop(path)
        return kept


def _mixed(old: bytes, new: bytes, random: Random) -> bytes:
    """Each page the old one or the new one; where one of them has none, zeros."""
    size = len(random.choice((old, new)))
    pages = (random.choice((old, new))[at : at + PAGE].ljust(PAGE, b"\0") for at in range(0, size, PAGE))
    return b"".join(pages)[:size]
