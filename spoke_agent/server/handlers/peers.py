"""The other workers on the same port, asked over their control sockets without keeping the loop waiting."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from spoke_agent.server.handlers.aggregate import one_statistics

__all__ = ["PeerWorkers"]

_PATIENCE_S: Final = 2.0
_LONGEST: Final = 8 << 20


class PeerWorkers:
    """`ask` is answered by all that are there; one that is on its way back is left out, like a process that has restarted."""

    def __init__(self, sockets: Sequence[Path]) -> None:
        self._sockets = tuple(sockets)

    async def ask(self, path: str) -> list[bytes]:
        """The bodies of `GET path`."""
        found = await asyncio.gather(*(_quiet(socket, path) for socket in self._sockets))
        return [body for body in found if body is not None]

    async def statistics(self, own: dict[str, Any]) -> dict[str, Any]:
        """Triton's statistics of all workers, for the versions in `own`."""
        asked = {(s["name"], s["version"]) for s in own["model_stats"]}
        found = one_statistics([own, *map(orjson.loads, await self.ask("/control/statistics"))])
        return {"model_stats": [s for s in found["model_stats"] if (s["name"], s["version"]) in asked]}


async def _quiet(socket: Path, path: str) -> bytes | None:
    with contextlib.suppress(OSError, TimeoutError, asyncio.LimitOverrunError, ValueError):
        return await asyncio.wait_for(_get(socket, path), _PATIENCE_S)
    return None


async def _get(socket: Path, path: str) -> bytes | None:
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: spoke\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        return body if head.startswith(b"HTTP/1.1 200 ") and len(body) < _LONGEST else None
    finally:
        writer.close()
