"""What a program and its children call, by strace: for machines where no network namespaces can be made (see hosts.py)."""

import re
import shutil
from pathlib import Path

import pytest

_CALLED = re.compile(r"sa_family=AF_INET6?,.*?(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([^\"]+)\"")
_OWN = re.compile(r"127\.|::1$|::ffff:127\.|0\.0\.0\.0$|::$")


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
