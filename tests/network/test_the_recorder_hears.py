"""The recorder is no better than what it hears: every kind of try, from a process that no Python hook could see."""

import subprocess
import sys

import pytest

from tests.network.gateway import HUB_ADDRESS, HUB_NAME, answer, question
from tests.network.hosts import Hosts, allowed
from tests.network.traced import strangers, traced

TRIES = """
import ctypes, socket, struct
for target in (("control.example", 443), ("192.0.2.7", 8443)):
    try: socket.create_connection(target, timeout=2)
    except OSError: pass
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("198.51.100.9", 8125))
libc = ctypes.CDLL(None)  # as an engine's own thread would: no audit event, no socket object
handle = libc.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 0)
libc.connect(handle, struct.pack("=H", socket.AF_INET) + struct.pack("!H", 4317) + socket.inet_aton("203.0.113.5") + bytes(8), 16)
socket.create_connection(("127.0.0.1", int(__import__("sys").argv[1]))).close() if len(__import__("sys").argv) > 1 else None
"""


@pytest.mark.skipif(not allowed(), reason="network namespaces cannot be made here")
def test_names_and_addresses_are_heard_whoever_asks(tmp_path) -> None:
    with Hosts(tmp_path, ["hub", "shop"]) as hosts:
        subprocess.run([*hosts.prefix("shop"), sys.executable, "-c", TRIES], check=True, timeout=60)
        found = subprocess.run(
            [*hosts.prefix("shop"), sys.executable, "-c", f"import socket; print(socket.gethostbyname({HUB_NAME!r}))"],
            check=True,
            capture_output=True,
            text=True,
        )
        heard = hosts.heard()
    assert found.stdout.strip() == HUB_ADDRESS
    wanted = {"control.example", "tcp 192.0.2.7:8443", "udp 198.51.100.9:8125", "tcp 203.0.113.5:4317", HUB_NAME}
    assert wanted <= heard["shop"]
    assert heard["hub"] == set()


def test_strace_hears_the_addresses_and_lets_loopback_pass(tmp_path, free_port) -> None:
    import socket

    with socket.create_server(("127.0.0.1", free_port)):
        line = [*traced(tmp_path / "record"), sys.executable, "-c", TRIES, str(free_port)]
        subprocess.run(line, check=True, timeout=60)
    assert {"192.0.2.7", "198.51.100.9", "203.0.113.5"} <= strangers(tmp_path / "record")
    assert not any(address.startswith("127.") for address in strangers(tmp_path / "record"))


def test_the_resolver_answers_the_name_that_was_asked() -> None:
    asked = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + b"\x03hub\x0aspokeshave\x04test\x00" + b"\x00\x01\x00\x01"
    assert question(asked)[:2] == (HUB_NAME, 1)
    assert answer(asked).endswith(bytes(map(int, HUB_ADDRESS.split("."))))
