import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from model_formats.core.file_lock import FileLock

HOLDS = """
import sys; from pathlib import Path; from model_formats.core.file_lock import FileLock
lock = FileLock(Path(sys.argv[1])); print("held", flush=True); sys.stdin.read()
"""


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_who_does_not_wait_is_told_in_the_callers_words(tmp_path: Path):
    path = tmp_path / "lock"
    with FileLock(path):
        before = _open_files()
        with pytest.raises(ValueError, match="somebody"):
            FileLock(path, busy=ValueError("somebody is here"))
        assert _open_files() == before
    with FileLock(path, busy=ValueError("somebody is here")):
        pass


def test_threads_go_one_after_the_other(tmp_path: Path):
    count = [0]

    def add() -> None:
        for _ in range(200):
            with FileLock(tmp_path / "lock"):
                seen = count[0]
                os.sched_yield()
                count[0] = seen + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [800]


def test_a_process_that_is_killed_gives_it_back_and_what_the_file_holds_stays(tmp_path: Path):
    path = tmp_path / "lock"
    path.write_text("kept")
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="somebody"):
            FileLock(path, busy=ValueError("somebody is here"))
        other.kill()
        with FileLock(path):
            assert path.read_text() == "kept"
