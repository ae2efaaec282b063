"""Mosquitto for one machine, configured and run by the hub; for many machines the hub is given another broker's address instead.

The process outlives a hub that dies, so that spokes keep their connections: the next start adopts it when its configuration is
still the same, and replaces it when not.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from model_formats.core.errors import HubError, OperatorError
from model_formats.core.files import atomic_write
from provisioning.brokers.access_list import HUB_USERS, NO_RELAYS, render_acl
from provisioning.brokers.relay import Bridge
from sync.core.tls import TlsFiles
from sync.core.types import SpokeId

__all__ = ["Broker", "BrokerFailed", "BrokerMissing", "render_config"]

MAX_PACKET_BYTES = 1 << 20
"""Largest message the broker takes, bytes."""
MAX_QUEUED_BYTES = 64 << 20
"""What the broker holds for one slow client, bytes."""


class BrokerMissing(OperatorError):
    """The mosquitto program is not installed."""

    code = "broker_missing"
    hint = "Install it: apt-get install mosquitto (its system service is not needed and may stay off)."


class BrokerFailed(HubError):
    """Mosquitto did not start, or stopped at once."""

    code = "broker_failed"
    hint = "Its own words are in mosquitto.log in the broker's folder; most often the port is taken."


def render_config(
    folder: Path, tls: TlsFiles, *, host: str, port: int, crl: Path | None = None, bridge: Bridge | None = None
) -> str:
    """`mosquitto.conf`: MQTT over mutual TLS only, nobody anonymous, identity from the certificate, persistent, bounded.

    The client id is the certificate's name, so that no client can push another one off by taking its id.
    """
    lines = [
        "# Written by `hub up`; changes here are lost.",
        "per_listener_settings false",
        # Mosquitto started by root would otherwise drop to a user that cannot read this folder.
        f"user {getpass.getuser()}",
        f"pid_file {folder}/mosquitto.pid",
        "persistence true",
        f"persistence_location {folder}/data/",
        "autosave_interval 60",
        # Spokes that are gone for good must not keep queues for ever.
        "persistent_client_expiration 30d",
        "allow_anonymous false",
        f"acl_file {folder}/acl",
        f"log_dest file {folder}/mosquitto.log",
        "log_type error",
        "log_type warning",
        "log_type notice",
        "log_type information",
        # A fleet that reconnects would fill the log.
        "connection_messages false",
        f"max_packet_size {MAX_PACKET_BYTES}",
        # What one slow spoke can make the broker hold.
        f"max_queued_bytes {MAX_QUEUED_BYTES}",
        "max_queued_messages 10000",
        "max_inflight_messages 100",
        "set_tcp_nodelay true",
        "",
        f"listener {port} {host}",
        f"cafile {tls.ca}",
        f"certfile {tls.certificate}",
        f"keyfile {tls.key}",
        *([f"crlfile {crl}"] if crl else []),
        "tls_version tlsv1.2",
        "require_certificate true",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        *(["", *bridge.lines()] if bridge else []),
    ]
    return "\n".join(lines) + "\n"


class Broker:
    """One Mosquitto process in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        tls: TlsFiles,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        crl: Path | None = None,
        bridge: Bridge | None = None,
    ) -> None:
        """`tls`: the CA that clients are checked against, and the server's certificate and key. `bridge` makes it a relay.

        `host`: the address to listen on (`0.0.0.0` for all). Port 0 takes the one of last time, else a free one.
        """
        self.folder = folder.resolve()
        self._tls, self._host, self._port, self._crl, self._bridge = tls, host, port, crl, bridge
        self._process: subprocess.Popen[bytes] | None = None
        self._pid: int | None = None

    @property
    def port(self) -> int:
        """Where it listens; 0 before the first start."""
        return self._port

    def start(
        self,
        spokes: Iterable[tuple[SpokeId, str]] = (),
        *,
        relays: Mapping[str, Iterable[tuple[SpokeId, str]]] = NO_RELAYS,
        timeout: float = 10.0,
    ) -> None:
        """Write configuration and access list for these spokes (and their zones), start or adopt, and wait until it answers.

        Raises BrokerMissing, BrokerFailed.
        """
        program = _program()
        (self.folder / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write_acl(spokes, relays)
        self._port = self._port or self._last_port() or _free_port(self._host)
        config = self._config()
        if self._adopt(config):
            return
        if not _is_free(self._host, self._port):
            raise BrokerFailed(f"port {self._port} on {self._host} is taken by another program")
        atomic_write(self.folder / "mosquitto.conf", config, mode=0o600)
        self._launch(program, timeout)

    def _launch(self, program: str, timeout: float) -> None:
        seen = _size(self.folder / "mosquitto.log")
        self._process = subprocess.Popen(
            [program, "-c", str(self.folder / "mosquitto.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt from the terminal is for the hub, which then stops it in order
        )
        self._pid = self._process.pid
        self._wait(seen, timeout)

    def allow(
        self,
        spokes: Iterable[tuple[SpokeId, str]],
        *,
        relays: Mapping[str, Iterable[tuple[SpokeId, str]]] = NO_RELAYS,
    ) -> None:
        """Replace the access list by these spokes (with zones); returns when it holds, for connected clients as well.

        Raises BrokerFailed when the broker does not say that it took it.
        """
        self._write_acl(spokes, relays)
        if self._pid is not None and self.alive():
            self._reload(self._pid)

    def alive(self) -> bool:
        """Whether the process runs."""
        if self._process is not None:
            return self._process.poll() is None
        return self._pid is not None and self._ours(self._pid)

    def stop(self, *, timeout: float = 10.0) -> None:
        """Stop it, so that its persistence is saved; kill it when it does not listen."""
        if self._pid is not None:
            self._end(self._pid, timeout)
        self._process = self._pid = None

    # ---- within -------------------------------------------------------------------------------------------------------------

    def _config(self) -> bytes:
        text = render_config(self.folder, self._tls, host=self._host, port=self._port, crl=self._crl, bridge=self._bridge)
        return text.encode()

    def _write_acl(self, spokes: Iterable[tuple[SpokeId, str]], relays: Mapping[str, Iterable[tuple[SpokeId, str]]]) -> None:
        users = () if self._bridge else HUB_USERS
        atomic_write(self.folder / "acl", render_acl(spokes, hub_users=users, relays=relays).encode(), mode=0o600)

    def _adopt(self, config: bytes) -> bool:
        pid = self._running_pid()
        if pid is None:
            return False
        path = self.folder / "mosquitto.conf"
        if path.exists() and path.read_bytes() == config and _answers(self._host, self._port):
            self._pid = pid
            self._reload(pid)
            return True
        self._end(pid, 10.0)
        return False

    def _reload(self, pid: int) -> None:
        log = self.folder / "mosquitto.log"
        seen = _size(log)
        os.kill(pid, signal.SIGHUP)
        end = time.monotonic() + 5.0
        while b"Reloading config" not in _tail(log, seen):
            if time.monotonic() > end:
                raise BrokerFailed("mosquitto does not take up its new access list")
            time.sleep(0.01)

    def _running_pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.folder / "mosquitto.pid").read_text())
            return pid if self._ours(pid) else None
        return None

    def _ours(self, pid: int) -> bool:
        """Whether a process is a Mosquitto on this folder: a number in a file may be anybody's by now."""
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return str(self.folder / "mosquitto.conf").encode() in words
        return False

    def _last_port(self) -> int:
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (self.folder / "mosquitto.conf").read_text()
            port = int(next(line for line in text.splitlines() if line.startswith("listener ")).split()[1])
            if self._running_pid() is not None or _is_free(self._host, port):
                return port
        return 0

    def _wait(self, seen: int, timeout: float) -> None:
        end = time.monotonic() + timeout
        while b" running" not in _tail(self.folder / "mosquitto.log", seen):
            if not self.alive() or time.monotonic() > end:
                self.stop()
                raise BrokerFailed(f"mosquitto did not start on {self._host}:{self._port}: {self._last_words()}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "mosquitto.log").read_text(errors="replace").splitlines()
            return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it said nothing")
        return "it said nothing"

    def _end(self, pid: int, timeout: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not self._gone(pid, timeout):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._gone(pid, timeout)

    def _gone(self, pid: int, timeout: float) -> bool:
        if self._process is not None and self._process.pid == pid:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
            return self._process.poll() is not None
        end = time.monotonic() + timeout
        while _lives(pid) and time.monotonic() < end:
            time.sleep(0.02)
        return not _lives(pid)


def _lives(pid: int) -> bool:
    """Whether a process still runs. Its command line goes first and its sockets later, so only its state tells."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def _program() -> str:
    for place in (shutil.which("mosquitto"), "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"):
        if place and os.access(place, os.X_OK):
            return place
    raise BrokerMissing("the program mosquitto is not on this machine")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(path: Path, offset: int) -> bytes:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        return file.read()
    return b""


def _near(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # where all addresses can be reached from here


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((_near(host), port), timeout=1.0):
        return True
    return False


def _is_free(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server((host, port)):
        return True
    return False


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])
