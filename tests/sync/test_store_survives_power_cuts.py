"""What the disk store keeps when the process dies in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_formats.types import digest_of
from sync.store import BLOCK_SIZE, SAVE_BYTES, BlobStore, DiskFull, disk_errors

SIZE = 6 * 1024 * 1024

WRITER = """
import os, sys
from pathlib import Path
from sync.store import BLOCK_SIZE, BlobStore
data = (Path(sys.argv[1]) / "data").read_bytes()
writer = BlobStore(Path(sys.argv[1]) / "home").writer(sys.argv[2], len(data))
for index in range(int(sys.argv[3])):
    writer.write(index, data[index * BLOCK_SIZE:(index + 1) * BLOCK_SIZE])
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("blocks", [1, 15, 16, 17, 47])
def test_a_killed_transfer_loses_at_most_two_mebibytes(tmp_path: Path, blocks: int) -> None:
    data = os.urandom(SIZE)
    (tmp_path / "data").write_bytes(data)
    died = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), digest_of(data), str(blocks)], check=False)
    assert died.returncode == -signal.SIGKILL
    with BlobStore(tmp_path / "home").writer(digest_of(data), SIZE) as writer:
        assert blocks * BLOCK_SIZE - writer.received < SAVE_BYTES
        for index in writer.missing():
            writer.write(index, data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        writer.commit()


@pytest.mark.parametrize("damage", [b"", b"SSP1", b"garbage" * 10])
def test_a_damaged_map_means_starting_again(tmp_path: Path, damage: bytes) -> None:
    store, data = BlobStore(tmp_path), os.urandom(SIZE)
    with store.writer(digest_of(data), SIZE) as writer:
        writer.write(0, data[:BLOCK_SIZE])
    next((tmp_path / "partial").glob("*.map")).write_bytes(damage)
    with store.writer(digest_of(data), SIZE) as writer:
        assert writer.received == 0


def test_a_full_disk_is_said_before_the_first_byte_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFull):
        BlobStore(tmp_path).writer(digest_of(b"x"), 1 << 40)


def test_the_operating_system_never_shines_through(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="Input/output error") as e, disk_errors(tmp_path / "x"):
        raise OSError(5, "Input/output error")
    assert e.value.code == "disk_failed"
