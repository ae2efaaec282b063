"""Registries to be external to a hub, each a process of its own: Debian's docker-registry (distribution 2.8), and another hub."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

USER, PASSWORD = "ml", "secret"
HASH = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW"  # bcrypt of PASSWORD, which is no secret

needs_distribution = pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed")


@contextmanager
def distribution(folder: Path, *, deletes: bool = True) -> Iterator[dict[str, Any]]:
    """The reference implementation, which has no referrers API, with name and password; gives `registry_*` settings for it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir(parents=True)
    (folder / "htpasswd").write_text(f"{USER}:{HASH}\n")
    storage = {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": deletes}}
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": storage,
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with _process(["docker-registry", "serve", str(folder / "config.yml")], folder / "log"):
        url = f"http://127.0.0.1:{port}"
        _until(lambda: httpx.get(f"{url}/v2/").status_code == 401, folder / "log")
        (folder / "password").write_text(PASSWORD + "\n")
        yield {"registry_url": url, "registry_user": USER, "registry_password_file": str(folder / "password")}


@contextmanager
def another_hub(folder: Path) -> Iterator[dict[str, Any]]:
    """A hub of ours over HTTPS, whose CA must be given and whose token is the password."""
    hub = [str(Path(sys.executable).with_name("hub")), "--home", str(folder)]
    subprocess.run([*hub, "init"], check=True, capture_output=True)
    with _process([*hub, "up"], folder / "log"):
        _until((folder / "run" / "hub.json").is_file, folder / "log")
        told = json.loads((folder / "run" / "hub.json").read_text())
        yield {
            "registry_url": told["url"],
            "registry_user": "other",
            "registry_password": (folder / "operator.token").read_text().strip(),
            "registry_ca_file": told["ca"],
        }


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(15)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _until(condition: Any, log: Path) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"it did not come up: {log.read_text()[-2000:]}")
