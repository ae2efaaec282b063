"""What a fuzzer throws bytes at, and the laws that must hold: shared by the tests (hypothesis) and `make fuzz` (atheris)."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from spoke_agent.server.caches.request_templates import RequestTemplates
from spoke_agent.server.grpc import codec as grpc_tensors
from spoke_agent.server.grpc.codec import ParsedRequest, parse_infer
from spoke_agent.server.http.transport import HttpLimits, HttpServer, _Connection
from spoke_agent.server.protocol.json_codec import InferRequest, parse_request
from spoke_agent.server_api.errors import RequestInvalid

__all__ = ["TARGETS", "grpc", "http", "request"]

_T = TypeVar("_T")


def request(data: bytes) -> None:
    """The JSON and binary form: a refusal or arrays of what was asked, and through a known form the same. The first two bytes
    are the length header (odd: none).
    """
    length = None if not data or data[0] & 1 else int.from_bytes(data[:2], "big")
    found = _read(lambda body: parse_request(body, length), data[2:])
    assert found is None or all(isinstance(array, np.ndarray) for array in found.inputs.values())
    if length is None:
        known = RequestTemplates()
        for other in (_read(known.parse, data[2:]), _read(known.parse, data[2:])):
            assert (found is None) == (other is None)
            if found is not None and other is not None:
                _same_request(found, other)


def grpc(data: bytes) -> None:
    """The gRPC form: a refusal or arrays, and the quick way through a known head says what the whole parser says."""
    whole, quick = _read(grpc_tensors._whole, data), _read(parse_infer, data)
    again = _read(parse_infer, data)
    for other in (quick, again):
        assert (whole is None) == (other is None)
        if whole is not None and other is not None:
            _same(whole, other)


def http(data: bytes) -> None:
    """One connection fed in two pieces: nothing is raised, and whatever is answered is HTTP."""
    asyncio.run(_fed(data))


TARGETS: dict[str, Callable[[bytes], None]] = {"request": request, "grpc": grpc, "http": http}


def _read(parse: Callable[[bytes], _T], data: bytes) -> _T | None:
    try:
        return parse(data)
    except RequestInvalid:
        return None


def _same(one: ParsedRequest, other: ParsedRequest) -> None:
    assert (one.model, one.version, one.typed) == (other.model, other.version, other.typed)
    _same_request(one.request, other.request)


def _same_request(a: InferRequest, b: InferRequest) -> None:
    assert (a.id, a.datatypes, a.outputs, a.binary_default) == (b.id, b.datatypes, b.outputs, b.binary_default)
    assert repr(a.parameters) == repr(b.parameters)  # a NaN is not itself
    assert list(a.inputs) == list(b.inputs)
    for name, array in a.inputs.items():
        np.testing.assert_array_equal(array, b.inputs[name])
        assert array.dtype == b.inputs[name].dtype


async def _fed(data: bytes) -> None:
    faults: list[Exception] = []
    limits = HttpLimits(head_bytes=512, body_bytes=4096, pipelined=4)
    server = HttpServer(lambda x: x.reply(200, b"{}"), limits, on_fault=faults.append)
    connection, pipe = _Connection(server), _Pipe()
    connection.connection_made(pipe)
    pipe.owner = connection
    middle = data[0] % len(data) if data else 0
    for piece in (data[:middle], data[middle:]):
        if piece and not pipe.closed:
            connection.data_received(piece)
    if not pipe.closed:
        connection.eof_received()
    await server.stop(grace_s=0)
    assert not faults
    assert not pipe.written or pipe.written.startswith(b"HTTP/1.1 ")


class _Pipe:
    """A transport without a network."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.owner: _Connection | None = None

    def write(self, data: bytes) -> None:
        assert type(data) is bytes
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return

    def get_extra_info(self, name: str) -> None:
        return

    def set_write_buffer_limits(self, high: int) -> None:
        assert high >= 0

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if self.owner is not None:
                self.owner.connection_lost(None)

    abort = close
