"""Served files that do not match their digest: a failing disk, or tampering."""

import contextlib

from model_formats.core.check_result import CheckResult
from model_formats.core.errors import SpokeshaveError
from model_formats.core.types import digest_of_file
from model_formats.package import open_package
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.slots import Slot, read_slots
from sync.store import BlobStore


def check(home: SpokeHome) -> CheckResult | None:
    """Hash every file of every version that is pinned. Raises DocumentRefused when slots.json is damaged."""
    store = BlobStore(home.store)
    for name, model_slots in read_slots(home.slots).models.items():
        for slot in {s for s in (model_slots.champion, model_slots.last_good) if s}:
            if bad := _damaged(store, slot):
                issue = f"{name}@{slot.version}: {bad} is missing or damaged"
                return CheckResult.failed(
                    "files", issue, "Roll the version out again, or sideload it; check the disk (dmesg, smartctl)."
                )
    return None


def _damaged(store: BlobStore, slot: Slot) -> str | None:
    with contextlib.suppress(SpokeshaveError):
        package = open_package(store, slot.index)
        for path in package.variant(slot.variant).files:
            blob = package.files[path]
            if not store.has(blob.digest) or digest_of_file(store.path(blob.digest)) != blob.digest:
                return path
        return None
    return "its package"
