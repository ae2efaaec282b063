"""What the disk store keeps when the process dies in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_formats.core.types import digest_of
from sync.store import BLOCK_SIZE, SYNC_BYTES, BlobStore, DiskFailed, DiskFull, disk_errors

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


@pytest.mark.parametrize("blocks", [1, 17, 47])
def test_a_killed_transfer_loses_nothing_that_was_written(tmp_path: Path, blocks: int) -> None:
    data = os.urandom(SIZE)
    (tmp_path / "data").write_bytes(data)
    died = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), digest_of(data), str(blocks)], check=False)
    assert died.returncode == -signal.SIGKILL
    with BlobStore(tmp_path / "home").writer(digest_of(data), SIZE) as writer:
        assert writer.received == blocks * BLOCK_SIZE
        for index in writer.missing():
            writer.write(index, data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        writer.commit()


def test_after_a_power_cut_only_what_was_synced_is_believed(tmp_path: Path) -> None:
    data, synced = os.urandom(4 * SYNC_BYTES), 2 * SYNC_BYTES // BLOCK_SIZE
    (tmp_path / "data").write_bytes(data)
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path), digest_of(data), str(synced + 20)], check=False)
    part = next((tmp_path / "home" / "partial").glob("*.part"))
    with part.open("r+b") as file:
        file.seek(synced * BLOCK_SIZE)
        file.write(bytes(20 * BLOCK_SIZE))  # what was never synced is gone
    store = BlobStore(tmp_path / "home", boot=b"another")
    with store.writer(digest_of(data), len(data)) as writer:
        assert SYNC_BYTES <= writer.received <= 2 * SYNC_BYTES
        for index in writer.missing():
            writer.write(index, data[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        writer.commit()
    store.gc({digest_of(data)})  # a map that was being written when it fell
    assert not list(store.partial.iterdir())
    assert store.path(digest_of(data)).read_bytes() == data


def test_what_a_failed_sync_lost_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, data = BlobStore(tmp_path), os.urandom(SIZE)
    sync, calls = os.fdatasync, [0]

    def once(fd: int) -> None:
        calls[0] += 1
        if calls[0] == 1:
            raise OSError(5, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", once)
    writer = store.writer(digest_of(data), SIZE)
    writer.write(0, data[:BLOCK_SIZE])
    with pytest.raises(DiskFailed):
        writer.save()
    with pytest.raises(DiskFailed):
        writer.close()
    with store.writer(digest_of(data), SIZE) as writer:
        assert writer.received == 0


@pytest.mark.parametrize("damage", [b"", b"SSP1", b"garbage" * 10])
def test_a_damaged_map_means_starting_again(tmp_path: Path, damage: bytes) -> None:
    store, data = BlobStore(tmp_path), os.urandom(SIZE)
    with store.writer(digest_of(data), SIZE) as writer:
        writer.write(0, data[:BLOCK_SIZE])
    for name in ("*.map", "*.live"):
        next((tmp_path / "partial").glob(name)).write_bytes(damage)
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
