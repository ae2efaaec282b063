"""The gateway and resolver of recorded hosts, and the recorder: `python -m tests.network.gateway OUT HOST=INTERFACE ...`.

It runs in a network namespace of its own and writes one JSON line for each name that a host asks for and each address that a host
tries, as the kernel sees them: packets, whoever in the process sent them. It answers the hub's name; every other name gets an
address to which no route leads, so that a caller that resolved something goes on to try it.
"""

import ctypes
import json
import selectors
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

HUB_NAME, HUB_ADDRESS, RESOLVER, NOWHERE = "hub.spokeshave.test", "10.77.1.2", "10.77.0.53", "10.77.250.1"
_ALL, _OUTGOING, _ATTACH_FILTER = 3, 4, 26
_TCP, _UDP, _A = 6, 17, 1
_ETHERNET = 14


def first_packets() -> bytes:
    """A classic BPF program: all but TCP segments over IPv4 that carry an ACK. So a connection costs us one packet."""
    code = [
        (0x28, 0, 0, 12),  # ether type
        (0x15, 0, 6, 0x0800),  # not IPv4: keep
        (0x30, 0, 0, 23),  # protocol
        (0x15, 0, 4, _TCP),  # not TCP: keep
        (0xB1, 0, 0, _ETHERNET),  # x = length of the IP header
        (0x50, 0, 0, _ETHERNET + 13),  # TCP flags
        (0x45, 0, 1, 0x10),  # ACK is set: drop
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 65535),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in code)


def listen(interface: str) -> socket.socket:
    """Every packet of an interface that the filter keeps."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    program = ctypes.create_string_buffer(first_packets())
    length = len(first_packets()) // 8
    found.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", length, ctypes.addressof(program)))
    found.bind((interface, 0))
    found.setblocking(False)
    return found


def events(frame: bytes) -> Iterator[dict[str, object]]:
    """What a frame asks or tries. ARP, neighbour discovery and ICMP are the network's own talk."""
    kind = struct.unpack_from("!H", frame, 12)[0]
    if kind == 0x0800:
        header = (frame[_ETHERNET] & 0xF) * 4
        protocol, target = frame[23], socket.inet_ntop(socket.AF_INET, frame[30:34])
    elif kind == 0x86DD:
        header, protocol = 40, frame[20]
        target = socket.inet_ntop(socket.AF_INET6, frame[38:54])
    else:
        return
    body = frame[_ETHERNET + header :]
    if protocol not in (_TCP, _UDP) or len(body) < 8:
        return
    port = struct.unpack_from("!H", body, 2)[0]
    if port == 53 and protocol == _UDP and target == RESOLVER:
        yield {"name": question(body[8:])[0]}
    else:
        yield {"address": target, "port": port, "protocol": "tcp" if protocol == _TCP else "udp"}


def question(message: bytes) -> tuple[str, int, int]:
    """The name that a DNS message asks for, its type, and where the question ends."""
    labels, at = [], 12
    while at < len(message) and (length := message[at]):
        labels.append(message[at + 1 : at + 1 + length].decode(errors="replace"))
        at += 1 + length
    kind = struct.unpack_from("!H", message, at + 1)[0] if at + 3 <= len(message) else 0
    return ".".join(labels).lower(), kind, at + 5


def answer(message: bytes) -> bytes:
    """An address for every name (IPv4 only)."""
    name, kind, end = question(message)
    found = HUB_ADDRESS if name == HUB_NAME else NOWHERE
    record = b"\xc0\x0c" + struct.pack("!HHIH", _A, 1, 1, 4) + socket.inet_aton(found) if kind == _A else b""
    return message[:2] + struct.pack("!HHHHH", 0x8580, 1, int(bool(record)), 0, 0) + message[12:end] + record


def main(out: Path, interfaces: dict[str, str]) -> None:
    """Record until the end of standard input."""
    watch = selectors.DefaultSelector()
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind((RESOLVER, 53))
    watch.register(resolver, selectors.EVENT_READ, None)
    watch.register(sys.stdin, selectors.EVENT_READ, None)
    for host, interface in interfaces.items():
        watch.register(listen(interface), selectors.EVENT_READ, host)
    with out.open("a", buffering=1) as lines:
        print("ready", flush=True)
        while True:
            for key, _ in watch.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is resolver:
                    message, asker = resolver.recvfrom(4096)
                    resolver.sendto(answer(message), asker)
                    continue
                frame, about = key.fileobj.recvfrom(2048)  # type: ignore[union-attr]
                if about[2] != _OUTGOING:
                    for event in events(frame):
                        lines.write(json.dumps({"host": key.data, **event}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), dict(pair.split("=") for pair in sys.argv[2:]))
