"""One holder at a time, over threads and processes, by a lock on a file."""

import fcntl
import os
from pathlib import Path
from typing import Self

__all__ = ["FileLock"]


class FileLock:
    """Taken when it is made, as a file is opened; given back by `release`, at the end of a `with`, or when the process ends.

    `busy` is raised when somebody else holds the lock; without it the call waits. The file is made where there is none.
    """

    def __init__(self, path: Path, *, busy: Exception | None = None) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as e:
            self.release()
            raise (busy or e) from e
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
