"""Evidently and alibi-detect on our windows, each in an environment of its own under build/peers/ (a gigabyte).

Their dependencies and ours exclude each other (Evidently 0.7 needs pandas below 3, alibi-detect NumPy below 2). A peer that
cannot be installed is told as such in its row. Verdicts are their defaults; alibi's also at the bench's one per cent.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Windows = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Peer:
    name: str
    requirements: tuple[str, ...]
    windows: int
    """As many of each case as its speed allows."""


PEERS = (
    Peer("evidently", ("evidently==0.7.23", "pandas<3"), 16),
    Peer("alibi", ("alibi-detect==0.13.0",), 60),
)


def ask(peer: Peer, cases: dict[str, Windows]) -> dict[str, dict[str, Any]]:
    """For each case its columns, and `about`: version and milliseconds a window, or why there is nothing."""
    from tests.bench.house import environment  # here: the peers' own Python runs this file too

    python, why = environment(peer.name, peer.requirements)
    if python is None:
        return {"about": {"skipped": f"not installed: {why}"}}
    with tempfile.TemporaryDirectory() as folder:
        for number, windows in enumerate(cases.values()):
            references = [windows[0][0]]
            which = []
            for kept, _ in windows:
                if kept is not references[-1]:
                    references.append(kept)
                which.append(len(references) - 1)
            held = {"references": np.stack(references), "which": np.array(which), "windows": np.stack([w for _, w in windows])}
            np.savez(Path(folder) / f"{number}.npz", **held)
        done = subprocess.run([python, __file__, peer.name, folder, str(len(cases))], capture_output=True, text=True)
    if done.returncode:
        return {"about": {"skipped": f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}"}}
    answer = json.loads(done.stdout.splitlines()[-1])
    found = dict(zip(cases, answer["cases"], strict=True))
    return {
        "about": {
            "version": answer["version"],
            "ms_per_window": answer["ms"],
            "windows_per_case": len(next(iter(cases.values()))),
        },
        **found,
    }


def main() -> None:
    import time

    name, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    verdicts, version = {"evidently": evidently, "alibi": alibi}[name]()
    cases, spent, windows = [], 0.0, 0
    for case in range(number):
        with np.load(folder / f"{case}.npz") as held:
            references, which, rows = held["references"], held["which"], held["windows"]
        seen: list[dict[str, bool]] = []
        for at, window in zip(which, rows, strict=True):
            began = time.perf_counter()
            seen.append(verdicts(references[at], window))
            spent, windows = spent + time.perf_counter() - began, windows + 1
        cases.append({key: round(sum(s[key] for s in seen) / len(seen), 3) for key in seen[0]})
    print(json.dumps({"cases": cases, "version": version, "ms": round(spent / windows * 1e3, 1)}))


def evidently() -> tuple[Any, str]:
    import warnings

    warnings.simplefilter("ignore")
    import evidently as library
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = [f"c{i}" for i in range(10)]
    definition = DataDefinition(numerical_columns=names[:8], categorical_columns=names[8:])

    def dataset(rows: np.ndarray) -> Any:
        frame = pandas.DataFrame(rows, columns=names).astype(dict.fromkeys(names[8:], int)).astype(dict.fromkeys(names[8:], str))
        return Dataset.from_pandas(frame, data_definition=definition)

    def verdicts(kept: np.ndarray, window: np.ndarray) -> dict[str, bool]:
        report = Report([DataDriftPreset()]).run(dataset(window), dataset(kept)).dict()
        count = next(m["value"] for m in report["metrics"] if "DriftedColumnsCount" in m["metric_name"])
        return {"evidently_any": bool(count["count"] > 0), "evidently_dataset": bool(count["share"] >= 0.5)}

    return verdicts, library.__version__


def alibi() -> tuple[Any, str]:
    import warnings

    warnings.simplefilter("ignore")
    import alibi_detect
    from alibi_detect.cd import TabularDrift

    def verdicts(kept: np.ndarray, window: np.ndarray) -> dict[str, bool]:
        detector = TabularDrift(kept, p_val=0.05, categories_per_feature={8: None, 9: None})
        found = detector.predict(window)["data"]
        return {
            "alibi_tabular_05": bool(found["is_drift"]),
            "alibi_tabular_01": bool(found["p_val"].min() < 0.01 / len(found["p_val"])),
        }

    return verdicts, alibi_detect.__version__


if __name__ == "__main__":
    main()
