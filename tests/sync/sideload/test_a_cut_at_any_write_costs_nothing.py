"""Stop `apply_bundle` at every fsync, rename and write in turn: the next try completes, and trust is never half."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sync.sideload.bundle import apply_bundle
from sync.store import BlobStore
from sync.trust.errors import MetadataIncomplete
from tests.samples.trust_world import CLINIC, World
from tests.sync.sideload.test_a_bundle_carries_a_whole_update import export


class Cut(BaseException):
    """The power is gone."""


@contextmanager
def cut_at(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[int]]:
    """Raise Cut instead of the n-th durable operation; yields how many there were."""
    count = [0]

    def counted(real: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            count[0] += 1
            if count[0] == number:
                raise Cut
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("fsync", "fdatasync", "replace", "pwrite", "posix_fallocate", "unlink"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield count


def test_at_every_point(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(world)

    def apply(name: str):
        trust = world.spoke(f"trust-{name}", lane="sideload", site="clinic")
        return apply_bundle(path, me=CLINIC, zone="me", store=BlobStore(world.folder / name), trust=trust)

    with cut_at(monkeypatch, -1) as points:
        whole = apply("whole")
    assert points[0] > 40
    for number in range(1, points[0] + 1, 3):
        name = f"cut-{number}"
        with cut_at(monkeypatch, number), pytest.raises(Cut):
            apply(name)
        with contextlib.suppress(MetadataIncomplete):  # nothing was believed yet
            assert not world.spoke(f"trust-{name}", lane="sideload", site="clinic").released().refused
        assert apply(name).released == whole.released
        store = BlobStore(world.folder / name)
        assert store.digests() == BlobStore(world.folder / "whole").digests()
        store.gc(store.digests())
        assert not list(store.partial.iterdir())
