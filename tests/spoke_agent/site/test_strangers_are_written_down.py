"""A process of a spoke that tries to call somebody is written down, whoever in it did it, and `spoke doctor` tells."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning.identity.enrol import HubAddress
from spoke_agent.doctor import network, telemetry
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.network_watch import remote_ends, strangers, who_may_be_called

WATCHED = """
import sys, time
from pathlib import Path
from spoke_agent.site import network_watch
from spoke_agent.site.home import SpokeHome
network_watch.PAUSE_S = 0.05
network_watch.watch(SpokeHome(Path(sys.argv[1])), "server", sys.argv[3:], resolves=len(sys.argv) > 3)
exec(sys.argv[2])
time.sleep(0.6)
"""
PYTHON = "import socket\ntry: socket.create_connection(('192.0.2.7', 443), timeout=0.1)\nexcept OSError: pass"
NAME = "import socket\ntry: socket.getaddrinfo('collector.invalid', 443)\nexcept OSError: pass"
NATIVE = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
handle = libc.socket(socket.AF_INET, socket.SOCK_DGRAM, 0)
libc.connect(handle, struct.pack("=H", socket.AF_INET) + struct.pack("!H", 4317) + socket.inet_aton("203.0.113.5") + bytes(8), 16)
"""
LOOPBACK = """
import socket
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_UNIX, None)):
    try: socket.socket(family).connect((host, 9) if host else "/nowhere")
    except OSError: pass
socket.getaddrinfo("localhost", 80)
"""


def watched(home: Path, tries: str, *allowed: str) -> dict[str, int]:
    home.joinpath("run").mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", WATCHED, str(home), tries, *allowed], check=True, timeout=60)
    return {s.where: s.times for s in strangers(SpokeHome(home))}


@pytest.mark.parametrize(
    ("tries", "where"),
    [(PYTHON, "192.0.2.7:443"), (NAME, "collector.invalid")],
    ids=["an address", "a name"],
)
def test_what_python_code_tries_is_written_down_however_short_it_is(tmp_path: Path, tries: str, where: str) -> None:
    assert where in watched(tmp_path, tries)


@pytest.mark.skipif(not Path("/proc/self/net/udp").exists(), reason="needs Linux's /proc")
def test_what_native_code_holds_open_is_written_down(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tried:
            tried.connect(("203.0.113.5", 4317))
    except OSError:
        pytest.skip("this machine has no route that a datagram socket could be bound to")
    assert watched(tmp_path, NATIVE) == {"203.0.113.5:4317": 1}


def test_this_machine_and_those_who_are_allowed_are_no_strangers(tmp_path: Path) -> None:
    assert watched(tmp_path, LOOPBACK) == {}
    assert watched(tmp_path, PYTHON, "192.0.2.7") == {}


def test_a_caller_is_not_taken_for_somebody_called() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert list(remote_ends(Path("/proc/self"))) == []


def test_addresses_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    line = "   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"
    (tmp_path / "net").mkdir()
    (tmp_path / "fd").mkdir()
    tcp = [
        ("0100007F:1F90", "00000000:0000", "0A", 1),  # listens
        ("0200000A:1F90", "0500000A:D431", "01", 2),  # a caller of it
        ("0200000A:D432", "070200C0:01BB", "02", 3),  # we call 192.0.2.7:443
        ("0200000A:D433", "080200C0:01BB", "01", 4),  # another process does
    ]
    rows = [line.format(local=a, remote=b, state=c, inode=d) for a, b, c, d in tcp]
    (tmp_path / "net" / "tcp").write_text(head + "".join(rows))
    wide = "0000000000000000FFFF0000090200C0:0050"
    (tmp_path / "net" / "tcp6").write_text(head + line.format(local=wide, remote=wide, state="01", inode=5))
    for inode in (1, 2, 3, 5):
        (tmp_path / "fd" / str(inode)).symlink_to(f"socket:[{inode}]")
    assert set(remote_ends(tmp_path)) == ({("192.0.2.7", 443), ("192.0.2.9", 80)} if sys.byteorder == "little" else set())


def test_the_agent_may_call_its_hub_its_proxy_and_whom_the_site_lists() -> None:
    hub = HubAddress(url="https://hub.example:8443", broker_host="mqtt.example", broker_port=8883)
    environment = {"HTTPS_PROXY": "http://user:word@proxy.example:3128"}
    assert who_may_be_called(hub, ("traces.example",), environment) == {
        "hub.example",
        "mqtt.example",
        "proxy.example",
        "traces.example",
    }


def test_doctor_names_the_process_the_address_and_what_to_do(tmp_path: Path) -> None:
    home = SpokeHome(tmp_path)
    assert network.check(home) is None
    watched(tmp_path, PYTHON)
    found = network.check(home)
    assert found is not None
    assert "server: 192.0.2.7:443" in found.found
    assert "may_call" in found.advice
    home.strangers("agent").write_text("{half a")
    assert network.check(home) == found


def test_doctor_finds_what_a_telemetry_client_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    assert telemetry.check(SpokeHome(tmp_path)) is None
    left = tmp_path / "Microsoft" / "DeveloperTools" / ".onnxruntime"
    left.mkdir(parents=True)
    found = telemetry.check(SpokeHome(tmp_path))
    assert found is not None
    assert str(left) in found.found
    assert json.dumps(f"rm -r {left}")[1:-1] in found.advice
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
