"""A hub in one file, and back. A backup may be taken while the hub runs.

In it: database, TUF repository with the online keys, device CA, registry, settings, operator token, and the broker's port.
(Blobs that are kept at another registry stay there; what is in the backup says where.)
Offline keys only when asked for. Whoever has the file can be this hub: keep it as you keep the keys.

Spokes have seen what came after the backup, and refuse whatever looks older. So a restore lifts what the hub alone signs (the
directive generations, the versions of snapshot and timestamp) far above anything they can have seen. What it cannot bring back:

 - Releases and denials that were signed after the backup. Spokes that saw them refuse the older metadata (as a rollback) until
   the people who hold those keys have signed each such role again, under a higher version: release again, or `hub root renew`.
 - Revocations and enrolments after the backup: revoke again, enrol again. Open enrolment codes are void after a restore.
 - Reports and audit lines after the backup. The chain goes on from where the backup ends.
"""

import contextlib
import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hub.config.home import HubHome
from hub.config.settings import load_settings
from hub.context import HubContext, HubMissing
from hub.rules.audit_action import AuditAction
from hub.services.directives import refresh_directive
from hub.store.audit import append_audit
from hub.store.directives import lift_generations
from hub.store.invites import void_invites
from hub.store.spokes import enrolled_zones
from model_formats.core.errors import OperatorError
from model_formats.core.files import atomic_file
from sync.core.clock import Clock

__all__ = ["LIFT", "BackupInvalid", "Restored", "back_up", "restore"]

LIFT = 1_000_000
"""By how much a restore lifts generations and versions: more than a hub signs between two backups."""
_PARTS = ("hub.toml", "operator.token", "tuf", "ca", "registry", "broker/mosquitto.conf")


class BackupInvalid(OperatorError):
    """A file that is no backup of a hub, or a hub that cannot be backed up like this."""

    code = "backup_invalid"
    hint = (
        "Give a file that `hub backup` wrote. With PostgreSQL, back up the database by its own tools, with `--without-database`."
    )


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has done."""

    spokes: int
    codes_void: int
    lifted: int


def back_up(hub: HubContext, out: Path, *, offline_keys: bool = False, database: bool = True) -> int:
    """Write `out` (0600); returns its size in bytes. `database` False leaves out a database that is backed up otherwise.

    Raises BackupInvalid for another database than SQLite.
    """
    home = hub.home
    if database and not home.database.exists():
        raise BackupInvalid("only a SQLite database is copied")
    with (
        hub.trust(),
        tempfile.TemporaryDirectory(dir=home.root) as folder,
        atomic_file(out, mode=0o600) as file,
        tarfile.open(fileobj=file, mode="w|") as tar,
    ):
        if database:
            tar.add(_copy(home.database, Path(folder) / "hub.db"), "hub.db")
        for name in (*_PARTS, *(["keys"] if offline_keys else [])):
            if (home.root / name).exists():
                tar.add(home.root / name, name, filter=partial(_unless_copy, hub))
    return out.stat().st_size


def restore(home: Path, file: Path, clock: Clock | None = None) -> Restored:
    """Make a hub in an empty folder from a backup, so that its spokes follow it. Raises HubMissing, BackupInvalid."""
    if home.exists() and any(home.iterdir()):
        raise HubMissing(f"{home} is not empty")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _unpack(file, home)
    hub = HubContext.open(home, load_settings(home), clock)
    try:
        return _lift(hub)
    finally:
        hub.close()


def _lift(hub: HubContext) -> Restored:
    with hub.trust() as repository:
        repository.lift_online(LIFT)
    with hub.database.begin() as db:
        lift_generations(db, LIFT)
        enrolled = [spoke for spoke, _ in enrolled_zones(db)]
        for spoke in enrolled:
            refresh_directive(
                db, hub.repository.director, spoke, now=hub.now, life_s=hub.settings.directive_ttl_s, ceiling=hub.ceiling
            )
        void = void_invites(db, now=hub.now)
        details = {"spokes": str(len(enrolled)), "codes void": str(void), "lifted by": str(LIFT)}
        append_audit(db, "operator", AuditAction.HUB_RESTORE, hub.settings.name, now=hub.now, details=details)
    return Restored(len(enrolled), void, LIFT)


def _unpack(file: Path, home: Path) -> None:
    try:
        with tarfile.open(file, mode="r:") as tar, _private():
            if "tuf" not in tar.getnames():
                raise BackupInvalid(f"{file} is not the backup of a hub")
            tar.extractall(home, filter="data")
    except (tarfile.TarError, OSError) as e:
        raise BackupInvalid(f"{file}: {e}") from e
    if not HubHome(home).metadata.exists():
        raise BackupInvalid(f"{file} holds no trust metadata")


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Folders that come into being are for nobody else."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _unless_copy(hub: HubContext, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Blobs that are kept at another registry are fetched from there again."""
    return None if hub.registry.contents.is_copy(hub.home.root / member.name) else member


def _copy(database: Path, to: Path) -> Path:
    """One moment of a database that may be in use."""
    with contextlib.closing(sqlite3.connect(database)) as source, contextlib.closing(sqlite3.connect(to)) as target:
        source.backup(target)
    return to
