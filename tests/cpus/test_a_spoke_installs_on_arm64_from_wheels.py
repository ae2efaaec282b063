"""Every dependency of `[spoke]` has a wheel for arm64: nothing is compiled at a site. Resolved only."""

import json
import subprocess
import sys

import pytest

from tests.cpus.arm64 import PLATFORMS
from tests.cpus.rig import ROOT


@pytest.mark.slow
def test_every_dependency_of_a_spoke_has_an_arm64_wheel() -> None:
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--disable-pip-version-check"]
    only = ["--only-binary=:all:", "--python-version=3.11", "--target=unused", *(f"--platform={p}" for p in PLATFORMS)]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    done = subprocess.run(
        [*pip, *only, *constraints, "--report=-", f"{ROOT}[spoke]"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = {entry["metadata"]["name"]: entry["download_info"]["url"] for entry in json.loads(done.stdout)["install"]}
    assert {"onnxruntime", "numpy", "cryptography", "uvloop"} <= files.keys()
    sources = {name: url for name, url in files.items() if name != "spokeshave" and not url.endswith(".whl")}
    assert sources == {}
    native = [name for name, url in files.items() if "aarch64" in url]
    assert {"onnxruntime", "numpy", "cryptography", "uvloop"} <= set(native)
