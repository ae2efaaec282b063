"""What a program and its children call, by strace: for machines where no network namespaces can be made (see hosts.py)."""

import itertools
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

_CALLED = re.compile(r"sa_family=AF_INET6?,.*?(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([^\"]+)\"")
_OWN = re.compile(r"127\.|::1$|::ffff:127\.|0\.0\.0\.0$|::$")


class TracedHosts:
    """`Hosts` where no namespaces can be made: all on this machine, each program watched by strace."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names, self._count = folder, tuple(names), itertools.count()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def prefix(self, name: str) -> tuple[str, ...]:
        """See `Hosts.prefix`."""
        return traced(self.folder / f"{name}-{next(self._count)}.strace")

    def environment(self) -> Mapping[str, str]:
        """See `Hosts.environment`: the hub is `localhost` to all."""
        return {}

    def strangers(self) -> set[str]:
        """See `Hosts.strangers`."""
        records = [file for file in self.folder.glob("*.strace") if _CALLED.search(file.read_text(errors="replace"))]
        assert records, "strace recorded no call at all"
        return set().union(*map(strangers, records))


def traced(record: Path) -> tuple[str, ...]:
    """Words before a command that record the addresses that it and its children call. Skips the test without strace."""
    if shutil.which("strace") is None:
        pytest.skip("neither network namespaces nor strace: nothing can be recorded here")
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    return ("strace", "-f", "-qq", "--seccomp-bpf", "-s", "256", "-e", calls, "-e", "signal=none", "-o", str(record))


def strangers(record: Path) -> set[str]:
    """Addresses that were called and are not of this machine itself. Nothing recorded at all is an error."""
    called = set(_CALLED.findall(record.read_text(errors="replace")))
    assert called, "strace recorded no call at all"
    return {address for address in called if not _OWN.match(address)}
