"""Hosts on a recorded network: each is a network namespace whose only way out is a gateway of ours (see gateway.py).

Needs root, `ip`, `nsenter` and a kernel that lets us make namespaces: `allowed()` tells. Nothing of this machine's own network is
touched, and no packet can leave: the gateway has no route to anywhere else.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.network.gateway import HUB_ADDRESS, HUB_NAME, RESOLVER

_TELLTALES = ("CI", "PYTEST", "TF_BUILD", "JENKINS", "GITHUB_", "GITLAB_", "BUILD_", "TRAVIS", "NNCF_CI", "DO_NOT_TRACK", "ORT_")
REPOSITORY = Path(__file__).parents[2]


def allowed() -> bool:
    """Whether namespaces can be made here."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "nsenter", "unshare"))):
        return False
    tried = ["unshare", "--net", "--mount", "sh", "-c", "ip link add one type veth peer name two"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def unwatched() -> dict[str, str]:
    """The environment without the words by which telemetry clients notice that they are being tested, and keep quiet."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_TELLTALES)}


class Hosts:
    """Use as a context manager. The first name is the hub's machine, `hub.spokeshave.test` to the others."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, tuple(names)
        self.record = folder / "record.jsonl"
        self._tag = f"ss{os.getpid()}"
        self._gateway: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._gateway is not None:
            self._gateway.communicate("")
        for name in ("gw", *self.names):
            subprocess.run(["ip", "netns", "delete", self._namespace(name)], capture_output=True, check=False)

    def prefix(self, name: str) -> tuple[str, ...]:
        """Words before a command that run it on that host."""
        network = f"nsenter --net=/run/netns/{self._namespace(name)}"
        inside = f'mount --bind {self.folder}/resolv.conf /etc/resolv.conf && exec {network} -- "$@"'
        return ("unshare", "--mount", "sh", "-c", inside, "on")

    def environment(self) -> Mapping[str, str]:
        """What a hub needs to be found by the others."""
        return {"HUB_HOST": HUB_NAME, "HUB_BIND": "0.0.0.0"}

    def heard(self) -> dict[str, set[str]]:
        """By host: names as they are, addresses as `tcp 10.77.1.2:8443`."""
        found: dict[str, set[str]] = {name: set() for name in self.names}
        for line in self.record.read_text().splitlines():
            event = json.loads(line)
            what = event.get("name") or f"{event['protocol']} {event['address']}:{event['port']}"
            found[event["host"]].add(what)
        return found

    def strangers(self) -> set[str]:
        """Names and addresses that any host tried, other than the hub's. Nothing heard of the hub at all is an error."""
        heard = set().union(*self.heard().values())
        assert HUB_NAME in heard, "the recorder heard nobody call the hub"
        return {what for what in heard if what != HUB_NAME and f" {HUB_ADDRESS}:" not in what}

    # ---- within

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "resolv.conf").write_text(f"nameserver {RESOLVER}\noptions timeout:1 attempts:1\n")
        self.record.touch()
        self._add("gw")
        self._on("gw", "ip", "link", "set", "lo", "up")
        self._on("gw", "ip", "address", "add", f"{RESOLVER}/32", "dev", "lo")
        for number, name in enumerate(self.names, 1):
            self._connect(name, number)
        self._on("gw", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        interfaces = [f"{name}=v{number}" for number, name in enumerate(self.names, 1)]
        self._gateway = subprocess.Popen(
            [*self._in("gw"), sys.executable, "-m", "tests.network.gateway", self.record, *interfaces],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._gateway.stdout is not None
        assert self._gateway.stdout.readline() == "ready\n"

    def _connect(self, name: str, number: int) -> None:
        space, ours, theirs = self._namespace(name), f"v{number}", f"10.77.{number}"
        self._add(name)
        self._on("gw", "ip", "link", "add", ours, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._on("gw", "ip", "address", "add", f"{theirs}.1/24", "dev", ours)
        self._on("gw", "ip", "link", "set", ours, "up")
        link = ("link set lo up", f"address add {theirs}.2/24 dev eth0", "link set eth0 up")
        for words in (*link, f"route add default via {theirs}.1"):
            self._on(name, "ip", *words.split())
        if Path("/proc/sys/net/ipv6").exists():
            self._on("gw", "ip", "-6", "address", "add", f"fd77:{number}::1/64", "dev", ours, "nodad")
            self._on(name, "ip", "-6", "address", "add", f"fd77:{number}::2/64", "dev", "eth0", "nodad")
            self._on(name, "ip", "-6", "route", "add", "default", "via", f"fd77:{number}::1")

    def _on(self, name: str, *words: str) -> None:
        done = subprocess.run([*self._in(name), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"on {name}: {' '.join(words)}: {done.stderr.strip()}")

    def _in(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self._namespace(name)]

    def _add(self, name: str) -> None:
        subprocess.run(["ip", "netns", "add", self._namespace(name)], check=True)


def wait_for(what: str, path: Path, seconds: float = 30) -> str:
    """The text of a file that a program writes when it is ready."""
    end = time.monotonic() + seconds
    while not path.exists() or not path.read_text().strip():
        assert time.monotonic() < end, f"{what} was not there after {seconds} s"
        time.sleep(0.05)
    return path.read_text().strip()
