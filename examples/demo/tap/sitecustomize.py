"""A tap on the wire, before encryption: with this folder on PYTHONPATH, every byte that the process writes to a network socket is
appended to the file that SPOKESHAVE_TAP names. Unix sockets and pipes stay inside the machine and are not written down.
"""

import os
import socket
import ssl
import threading

_path = os.environ.get("SPOKESHAVE_TAP")


def _tap(path: str) -> None:
    lock = threading.Lock()
    file = open(path, "ab", buffering=0)  # noqa: SIM115, PTH123  # open as long as the process lives

    def note(data: object) -> None:
        with lock:
            file.write(bytes(memoryview(data)))  # type: ignore[arg-type]

    def plain(name: str) -> None:
        original = getattr(socket.socket, name)

        def send(self, data, *args):  # type: ignore[no-untyped-def]
            if self.family in (socket.AF_INET, socket.AF_INET6) and not isinstance(self, ssl.SSLSocket):
                note(data)
            return original(self, data, *args)

        setattr(socket.socket, name, send)

    def encrypted(cls: type, name: str) -> None:
        original = getattr(cls, name)

        def write(self, data, *args):  # type: ignore[no-untyped-def]
            note(data)
            return original(self, data, *args)

        setattr(cls, name, write)

    for name in ("send", "sendall", "sendto"):
        plain(name)
    encrypted(ssl.SSLSocket, "write")  # SSLSocket.send and sendall hand over to the SSL object below
    encrypted(ssl.SSLSocket, "send")
    encrypted(ssl.SSLObject, "write")


if _path:
    _tap(f"{_path}.{os.getpid()}")
