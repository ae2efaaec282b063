"""Checks of a hub's machine, one function each: what was found, and what to do. Reads only."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from tuf.api.metadata import Metadata

from hub.client.http import HubClient
from hub.config.home import HubHome
from hub.config.settings import load_settings
from hub.registry.remote_backend import ExternalRegistry
from hub.store.audit import verify_audit
from hub.store.database import Database
from model_formats.core.check_result import CheckResult
from model_formats.core.errors import SpokeshaveError
from provisioning.identity.ca import DeviceCA

__all__ = ["CHECKS", "examine"]


def examine(home: HubHome) -> list[CheckResult]:
    """Run all checks; one that fails to run is a finding itself."""
    return [_run(name, check, home) for name, check in CHECKS.items()]


def _run(name: str, check: Callable[[HubHome], tuple[bool, str, str]], home: HubHome) -> CheckResult:
    try:
        ok, found, advice = check(home)
    except (SpokeshaveError, OSError, ValueError, KeyError) as e:
        return CheckResult(name, ok=False, found=str(e), advice=getattr(e, "hint", "See the message."))
    return CheckResult(name, ok, found, "" if ok else advice)


def _settings(home: HubHome) -> tuple[bool, str, str]:
    settings = load_settings(home.root)
    return True, f"zones {', '.join(settings.zones)}; spokes use {settings.host}", ""


def _database(home: HubHome) -> tuple[bool, str, str]:
    database = Database(load_settings(home.root).database(home)).open()
    try:
        with database.read() as db:
            misfit = verify_audit(db)
    finally:
        database.close()
    return (
        (misfit is None),
        "audit chain whole" if misfit is None else f"audit line {misfit} does not fit",
        "Compare with a backup.",
    )


def _private(home: HubHome) -> tuple[bool, str, str]:
    open_ = [
        p.name for p in (*home.keys.glob("*.pem"), *home.metadata.glob("online/*.pem"), home.token) if p.stat().st_mode & 0o077
    ]
    return (not open_), f"readable by others: {', '.join(open_)}" if open_ else "key files and token are private", "chmod 600"


def _metadata(home: HubHome) -> tuple[bool, str, str]:
    now, soonest = datetime.now(UTC), datetime.max.replace(tzinfo=UTC)
    what = "none"
    for path in sorted((home.metadata / "metadata").glob("*.json")):
        signed = Metadata.from_bytes(path.read_bytes()).signed
        superseded = path.name.endswith(".root.json") and path.name != _newest_root(home)
        if signed.expires < soonest and not superseded:
            soonest, what = signed.expires, path.name
    left = soonest - now
    return (
        left > timedelta(hours=12),
        f"{what} expires first, in {left.days} days",
        "Run `hub up`; for root and targets, sign them anew.",
    )


def _newest_root(home: HubHome) -> str:
    roots = (home.metadata / "metadata").glob("*.root.json")
    return max((p.name for p in roots), key=lambda name: int(name.partition(".")[0]))


def _authority(home: HubHome) -> tuple[bool, str, str]:
    left = x509.load_pem_x509_certificate(DeviceCA.open(home.ca).certificate).not_valid_after_utc - datetime.now(UTC)
    return (
        left > timedelta(days=90),
        f"the device CA is good for {left.days} days",
        "Plan a new CA and the enrolment of all spokes.",
    )


def _broker(_home: HubHome) -> tuple[bool, str, str]:
    place = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/bin")
    return place is not None, place or "mosquitto is not installed", "apt-get install mosquitto"


def _registry(home: HubHome) -> tuple[bool, str, str]:
    settings = load_settings(home.root)
    if not settings.registry_url:
        return True, "blobs are kept in the hub's folder", ""
    registry = ExternalRegistry.of(settings)
    try:
        return True, registry.check(), ""
    finally:
        registry.client.close()


def _disk(home: HubHome) -> tuple[bool, str, str]:
    usage = shutil.disk_usage(home.root)
    return (
        usage.free > max(1 << 30, usage.total // 50),
        f"{usage.free >> 20} MiB free",
        "Make room: the registry is the largest folder.",
    )


def _offline_keys(home: HubHome) -> tuple[bool, str, str]:
    here = sorted(p.stem for p in home.keys.glob("root-*.pem"))
    found = f"{len(here)} root keys are on this machine" if here else "root keys are elsewhere"
    return len(here) < 2, found, "Move all root keys, and best also targets.pem, to machines that are off the network."


def _running(home: HubHome) -> tuple[bool, str, str]:
    with HubClient.local(home.root) as hub:
        answer = hub.ready()
    bad = [f"{name}: {state}" for name, state in answer["checks"].items() if state != "ok"]
    return answer["ready"], "; ".join(bad) or f"answers at {hub.http.base_url}", "See the log of `hub up`."


CHECKS: dict[str, Callable[[HubHome], tuple[bool, str, str]]] = {
    "settings": _settings,
    "database": _database,
    "private files": _private,
    "release metadata": _metadata,
    "device CA": _authority,
    "broker program": _broker,
    "registry": _registry,
    "disk": _disk,
    "offline keys": _offline_keys,
    "running": _running,
}
