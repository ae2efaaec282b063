"""One contract for the store on disk and its twin in memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_formats.core.types import digest_of
from model_formats.package.image_layout import PackageTampered
from sync.store import BLOCK_SIZE, BlobStore, MemoryStore, Store

DATA = os.urandom(3 * BLOCK_SIZE + 17)
DIGEST = digest_of(DATA)


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "disk":
        yield BlobStore(tmp_path / "home")
    else:
        twin = MemoryStore()
        yield twin
        twin.close()


def block(index: int) -> bytes:
    return DATA[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]


def test_what_is_put_is_found_by_its_digest(store: Store) -> None:
    assert not store.has(digest_of(b"x"))
    assert store.put(b"x") == digest_of(b"x")
    assert store.path(digest_of(b"x")).read_bytes() == b"x"
    assert store.digests() == {digest_of(b"x")}


@pytest.mark.parametrize("bad", ["", "sha256:../../etc/passwd", "md5:00", "sha256:" + "G" * 64])
def test_what_is_no_digest_never_becomes_a_path(store: Store, bad: str) -> None:
    with pytest.raises(ValueError):
        store.has(bad)


def test_blocks_in_any_order_make_the_blob(store: Store) -> None:
    with store.writer(DIGEST, len(DATA)) as writer:
        for index in (3, 0, 2, 1):
            assert writer.write(index, block(index))
        assert not writer.write(2, block(2))
        writer.commit()
    assert store.path(DIGEST).read_bytes() == DATA


def test_an_unfinished_blob_is_not_there_and_goes_on_later(store: Store) -> None:
    with store.writer(DIGEST, len(DATA)) as writer:
        writer.write(1, block(1))
        writer.write(3, block(3))
    assert not store.has(DIGEST)
    with store.writer(DIGEST, len(DATA)) as writer:
        assert writer.missing() == [0, 2]
        assert writer.received == BLOCK_SIZE + 17
        writer.write(0, block(0))
        with pytest.raises(PackageTampered, match="only"):
            writer.commit()
        writer.write(2, block(2))
        writer.commit()
    assert store.has(DIGEST)


def test_a_wrong_byte_is_found_at_the_end_and_all_blocks_are_forgotten(store: Store) -> None:
    with store.writer(DIGEST, len(DATA)) as writer:
        for index in range(4):
            writer.write(index, block(index) if index != 2 else bytes(BLOCK_SIZE))
        with pytest.raises(PackageTampered):
            writer.commit()
    assert not store.has(DIGEST)
    with store.writer(DIGEST, len(DATA)) as writer:
        assert writer.missing() == [0, 1, 2, 3]


@pytest.mark.parametrize(("index", "data"), [(4, b"x" * 17), (-1, block(0)), (0, b"short"), (3, b"x" * 18)])
def test_a_block_that_does_not_fit_is_refused(store: Store, index: int, data: bytes) -> None:
    with store.writer(DIGEST, len(DATA)) as writer, pytest.raises(ValueError, match="does not fit"):
        writer.write(index, data)


def test_another_size_or_block_size_starts_again(store: Store) -> None:
    with store.writer(DIGEST, len(DATA)) as writer:
        writer.write(0, block(0))
    with store.writer(DIGEST, len(DATA), BLOCK_SIZE // 2) as writer:
        assert writer.received == 0


def test_an_empty_blob_is_a_blob(store: Store) -> None:
    store.put_stream(digest_of(b""), 0, [])
    assert store.has(digest_of(b""))


def test_a_stream_in_odd_pieces_is_kept(store: Store) -> None:
    store.put_stream(DIGEST, len(DATA), (DATA[i : i + 10_007] for i in range(0, len(DATA), 10_007)))
    assert store.path(DIGEST).read_bytes() == DATA


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", DATA[:BLOCK_SIZE], DATA + bytes(BLOCK_SIZE)])
def test_a_stream_of_another_length_is_refused(store: Store, wrong: bytes) -> None:
    with pytest.raises(PackageTampered):
        store.put_stream(DIGEST, len(DATA), [wrong])
    assert not store.has(DIGEST)


def test_what_is_not_kept_goes_partial_blobs_too(store: Store) -> None:
    kept, gone = store.put(b"kept"), store.put(b"gone")
    with store.writer(DIGEST, len(DATA)) as writer:
        writer.write(0, block(0))
    freed = store.gc({kept})
    assert store.digests() == {kept}
    assert not store.has(gone)
    assert freed >= len(b"gone") + len(DATA)
    with store.writer(DIGEST, len(DATA)) as writer:
        assert writer.received == 0


def test_deleting_twice_is_harmless(store: Store) -> None:
    digest = store.put(b"x")
    assert store.delete(digest) == 1
    assert store.delete(digest) == 0
