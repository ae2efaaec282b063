"""`pip install spokeshave[spoke]` into an empty environment: what is there, and that the agent and the server start."""

import json
import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "onnx",
    "pandas",
    "scipy",
    "sigstore",
    "nncf",
    "sklearn",
    "fastapi",
    "sqlalchemy",
    "openvino",
    "pydantic",
    "pydantic_core",
)
ROOMS = ("hub", "model_formats", "provisioning", "spoke_agent", "sync")
EVERY_MODULE = """
import importlib, json, pkgutil, sys
failed = {}
for room in ("model_formats", "sync", "provisioning", "spoke_agent"):
    importlib.import_module(room)
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception as e:
        failed[name] = repr(e)
heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps({"failed": failed, "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("light") / "venv"
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(REPOSITORY / "constraints.txt"), f"{REPOSITORY}[spoke]"], check=True, timeout=280)
    return folder / "bin"


def run(clean: Path, *args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(clean / args[0]), *args[1:]], capture_output=True, text=True, timeout=60, **kwargs)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
def test_none_of_the_heavy_libraries_is_installed(clean: Path) -> None:
    listed = run(clean, "pip", "list", "--format=json", "--disable-pip-version-check").stdout
    installed = {entry["name"].lower() for entry in json.loads(listed)}
    assert not installed & {*HEAVY, "scikit-learn"}


@pytest.mark.slow
def test_every_file_of_the_code_is_installed(clean: Path, tmp_path: Path) -> None:
    """A folder that .gitignore names is left out of the wheel, and nothing in a checkout shows it."""
    where = run(clean, "python", "-c", "import sync; print(sync.__path__[0])", cwd=tmp_path).stdout.strip()
    installed = Path(where).parent
    files = [path.relative_to(REPOSITORY) for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")]
    assert len(files) > 300
    assert [str(file) for file in files if not (installed / file).exists()] == []


@pytest.mark.slow
def test_every_module_of_the_agent_imports(clean: Path, tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((REPOSITORY / "spoke_agent").rglob("*.py"))
        if path.name != "__main__.py" and "grpc" not in path.parts  # a program; what an extra is for
    ]
    done = run(clean, "python", "-c", EVERY_MODULE, json.dumps(modules), json.dumps(HEAVY), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"failed": {}, "heavy": []}


@pytest.mark.slow
def test_the_agent_says_what_it_needs_and_the_server_starts(clean: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    agent = run(clean, "spoke", "--json", "--home", str(home), "agent")
    assert agent.returncode == 2
    assert "enrol" in agent.stderr
    environment = {**os.environ, "SPOKE_HOME": str(home)}
    server = subprocess.Popen([str(clean / "spoke"), "serve", "--port", "0"], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        port = _eventually(home / "run" / "server.port", server)
        live = run(clean, "python", "-c", f"import httpx; print(httpx.get('http://127.0.0.1:{port}/v2/health/live').status_code)")
        assert live.stdout.strip() == "200", live.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=15)
    assert server.returncode == 0


def _eventually(path: Path, process: subprocess.Popen[str]) -> str:
    import time

    for _ in range(300):
        if path.exists() and (text := path.read_text().strip()):
            return text
        if process.poll() is not None:
            pytest.fail(f"spoke serve ended with {process.returncode}: {process.stderr.read() if process.stderr else ''}")
        time.sleep(0.05)
    pytest.fail("spoke serve did not say its port within 15 s")


assert sys.version_info >= (3, 11)
