"""Records addresses that a process of this spoke tried to call and may not call. `spoke doctor` reads it.

There are two sources. Python's audit events name every address that Python code resolves or connects to, however short the try.
The kernel's socket tables, looked at every two seconds, show connections of native code too, as long as they last; where the
unit's firewall drops their packets (see `provisioning/deploy/templates`), that is long. The firewall forbids; this only
reports.
"""

import contextlib
import ipaddress
import json
import re
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from model_formats.core.files import atomic_write
from spoke_agent.site.home import SpokeHome

if TYPE_CHECKING:
    from provisioning.identity.enrol import HubAddress

__all__ = ["UnexpectedConnection", "remote_ends", "strangers", "watch", "who_may_be_called"]

PAUSE_S: Final = 2.0
_MOST: Final = 64
"""Addresses written down for a process."""
_LISTENS: Final = "0A"
_DNS: Final = 53
_RESOLVED: Final = ("socket.getaddrinfo", "socket.gethostbyname")
_CALLED: Final = ("socket.connect", "socket.sendto", "socket.sendmsg")


class UnexpectedConnection(Struct, frozen=True):
    """An address or a name that a process tried and should not have."""

    process: str
    where: str
    """`192.0.2.7:443`, or a name that was looked up."""
    times: int
    last: float
    """Seconds since the epoch."""


def watch(home: SpokeHome, process: str, allowed: Collection[str] = (), *, resolves: bool = False) -> None:
    """Watch this process until it ends. `allowed`: names and addresses it may call, besides this machine; `resolves`: whether it
    may ask a resolver. Takes one thread; starts once in a process.
    """
    book = _Book(home.strangers(process), process, allowed, resolves=resolves)
    sys.addaudithook(book.hear)
    threading.Thread(target=book.look, name="network-watch", daemon=True).start()


def who_may_be_called(hub: "HubAddress", more: Iterable[str], environment: Mapping[str, str]) -> set[str]:
    """By an agent: the hub, its broker, the machine's proxy where there is one, and `more` that the site lists."""
    addresses = (hub.url, *(environment.get(n) or environment.get(n.lower(), "") for n in ("HTTPS_PROXY", "ALL_PROXY")))
    return {hub.broker_host, *more, *(host for url in addresses if (host := urlsplit(url).hostname))}


def strangers(home: SpokeHome) -> list[UnexpectedConnection]:
    """What all processes of this home wrote down, the newest last."""
    found: list[UnexpectedConnection] = []
    for file in sorted(home.run.glob("strangers-*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # half a file is a lost remark, no more
            told = json.loads(file.read_bytes())
            found += [
                UnexpectedConnection(told["process"], where, int(t), float(last)) for where, (t, last) in told["found"].items()
            ]
    return sorted(found, key=lambda s: s.last)


class _Book:
    """What one process tried. The audit hook only hands over; all else is done on the watch's own thread."""

    def __init__(self, file: Path, process: str, allowed: Collection[str], *, resolves: bool) -> None:
        self._file, self._process, self._names, self._resolves = file, process, frozenset(allowed), resolves
        self._heard: deque[tuple[str, int]] = deque(maxlen=1024)
        self._found: dict[str, tuple[int, float]] = {}
        self._open: frozenset[tuple[str, int]] = frozenset()
        self._addresses: frozenset[str] = frozenset()
        self._thread = 0

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """An audit hook: called for every event of the interpreter, so it leaves at once where it can."""
        if not event.startswith("socket.") or threading.get_ident() == self._thread:
            return
        if event in _RESOLVED and isinstance(args[0], str):
            self._heard.append((args[0], 0))
        elif event in _CALLED and isinstance(args[1], tuple) and isinstance(args[1][0], str):
            self._heard.append((args[1][0], int(args[1][1])))

    def look(self) -> None:
        """The thread: what was heard, then the kernel's tables; what is new is written down."""
        self._thread = threading.get_ident()
        while True:
            open_now = frozenset(remote_ends(Path("/proc/self")))
            tried = [self._heard.popleft() for _ in range(len(self._heard))] + sorted(open_now - self._open)
            self._open = open_now
            if strange := [end for end in tried if not self._may(*end)]:
                for host, port in strange:
                    self._note(f"{host}:{port}" if port else host)
                self._write()
            time.sleep(PAUSE_S)

    def _may(self, host: str, port: int) -> bool:
        if _is_own(host) or host in self._names or (self._resolves and port == _DNS) or host in self._addresses:
            return True
        if self._names:  # the hub may have moved
            self._addresses = frozenset(a for name in self._names for a in _addresses_of(name))
        return host in self._addresses

    def _note(self, where: str) -> None:
        if where in self._found or len(self._found) < _MOST:
            self._found[where] = (self._found.get(where, (0, 0.0))[0] + 1, time.time())

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # a full disk: it is written down with the next one
            atomic_write(self._file, json.dumps({"process": self._process, "found": self._found}).encode())


def _addresses_of(name: str) -> list[str]:
    try:
        return [str(known[4][0]) for known in socket.getaddrinfo(name, None)]
    except OSError:
        return []


def _is_own(host: str) -> bool:
    if host in ("", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def remote_ends(process: Path) -> Iterator[tuple[str, int]]:
    """Address and port of whoever this process has called (not of who called it), by the kernel's tables under /proc/PID."""
    rows = [row for table in ("tcp", "tcp6", "udp", "udp6") for row in _rows(process / "net" / table)]
    listening = {local for local, _, state, _ in rows if state == _LISTENS}
    called = {inode: remote for local, remote, _, inode in rows if local not in listening and not _is_own(remote[0])}
    if called:
        held = _sockets(process / "fd")
        yield from {remote for inode, remote in called.items() if inode in held}


def _rows(table: Path) -> Iterator[tuple[int, tuple[str, int], str, str]]:
    """Local port, remote end, state, inode. This machine's own talk is passed over early: it can be thousands of lines."""
    try:
        lines = table.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        words = line.split()
        remote, state = words[2], words[3]
        if state != _LISTENS and remote.startswith(("0100007F:", "00000000:", "00000000000000000000000001000000:")):
            continue
        address, _, port = remote.partition(":")
        yield int(words[1].rpartition(":")[2], 16), (_address(address), int(port, 16)), state, words[9]


def _address(text: str) -> str:
    """From the kernel's hexadecimal words in the machine's byte order."""
    raw = b"".join(int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8))
    found = ipaddress.ip_address(raw)
    return str(getattr(found, "ipv4_mapped", None) or found)


def _sockets(folder: Path) -> set[str]:
    """Inodes of the sockets that a process holds."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                if match := re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink())):
                    found.add(match[1])
    return found
