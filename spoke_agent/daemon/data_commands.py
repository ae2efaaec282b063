"""Import and erasure at one home: opens the parts, does the one thing, closes them."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from model_formats.package import Package, open_package
from model_formats.runtimes.select import open_exact
from spoke_agent.daemon.erasure import Scope, erase
from spoke_agent.data.importing import ImportedRows, ImportRefused, read_rows
from spoke_agent.data.rows import RowBatch
from spoke_agent.data.store import DataStore, open_data
from spoke_agent.site.slots import Slot, read_slots
from sync.store import BlobStore

__all__ = ["bring_in", "erase_at", "store_imported"]


def bring_in(home: Path, model: str, path: Path, *, batch_name: str, now: datetime, dry_run: bool) -> dict[str, Any]:
    """Read, check, run through the champion and store. Raises ImportRefused; then nothing is stored."""
    champion = read_slots(home / "slots.json").models.get(model)
    if champion is None or champion.champion is None:
        raise ImportRefused(f"{model}: nothing is served here, so the rows have no contract", hint="Wait for a rollout first.")
    package = open_package(BlobStore(home), champion.champion.index)
    found = list(read_rows(path, package.contract))
    if not found:
        raise ImportRefused(f"{path.name}: holds no .csv, .npz or .parquet file")
    if not dry_run:
        data = open_data(home)
        try:
            store_imported(data, package, champion.champion, found, batch_name=batch_name, now=now)
        finally:
            data.close()
    rows = sum(len(i.labels) for i in found)
    return {"rows": rows, "labelled": int(sum((~np.isnan(i.labels)).sum() for i in found)), "files": [i.file for i in found]}


def store_imported(
    data: DataStore, package: Package, slot: Slot, found: Sequence[ImportedRows], *, batch_name: str, now: datetime
) -> None:
    """Store rows with the answers of one version, and their labels."""
    session = open_exact(package.path(package.variant(slot.variant).main))
    names = [t.name for t in package.contract.outputs]
    for part, imported in enumerate(found):
        rows = len(imported.labels)
        ids = [f"import-{batch_name}-{part}-{i}" for i in range(rows)]
        outputs = dict(zip(names, session.run(imported.inputs, names), strict=True))
        times = np.full(rows, now.timestamp())
        model = package.spec.model
        data.append(RowBatch(model, slot.version, slot.index, ids, times, imported.inputs, outputs, purpose="tuning"))
        data.label_rows({i: float(v) for i, v in zip(ids, imported.labels, strict=True) if not np.isnan(v)})


def erase_at(home: Path, subjects: Sequence[str], before: datetime | None, *, everything: bool, dry_run: bool) -> dict[str, Any]:
    """Erase at a home, its adapters and sums included. With everything, a store whose key is lost is removed whole."""
    from spoke_agent.data.errors import DataKeyLost
    from spoke_agent.tuning.site_context import SiteContext

    with SiteContext.open(home) as site:
        try:
            data = site.data
        except DataKeyLost:
            if not everything or dry_run:
                raise
            for name in ("data.db", "data.db-wal", "data.db-shm"):
                (home / name).unlink(missing_ok=True)
            data = site.data
        if dry_run:
            rows = data.would_erase(before=before, request_ids=subjects, everything=everything)
            return {"rows": rows, "adapters": [], "dry_run": True}
        scope, signer = Scope(tuple(subjects), before, everything), site.identity.signer()
        erased: dict[str, Any] = erase(home, data, scope, derived=site.tuner, clock=site.clock, signer=signer).plain
        return erased
