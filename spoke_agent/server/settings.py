"""What the serving process can be told. Times in seconds, sizes in bytes unless the name says otherwise."""

from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from model_formats.core.runtime import Engine
from spoke_agent.server.caches import CACHES, Cache
from spoke_agent.server.http.transport import HttpLimits
from spoke_agent.site.home import SpokeHome

__all__ = ["ServeSettings"]


class ServeSettings(Struct, frozen=True):
    """One serving process. Only `home` must be given."""

    home: Path
    host: str = "127.0.0.1"
    port: int | None = 0
    """TCP port; 0 takes a free one and writes it to `run/server.port`; None is no TCP, only the unix socket."""
    grpc_port: int | None = None
    """TCP port for gRPC; 0 takes a free one and writes it to `run/grpc.port`; None is no gRPC. Needs the extra `grpc`."""
    limits: HttpLimits = field(default_factory=HttpLimits)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    """File with the bearer token that TCP callers must send; health and the unix socket need none."""
    engines: tuple[Engine, ...] = ("onnxruntime", "openvino")
    """Engines that may be tried; one that is not installed is passed over."""
    trial_s: float = 100.0
    """The longest trial of the engines on one file; a child process that takes longer is ended."""
    threads: int = 1
    """Threads inside a model run."""
    loop_ms: float = 0.5
    """A model whose single row takes less runs on the event loop, else on its own thread."""
    slice_ms: float = 5.0
    """The longest batch, by the measured cost of a row."""
    max_batch: int = 256
    max_wait_s: float = 2.0
    """Queued work beyond this is refused with 503."""
    memory_mb: int | None = None
    """Ceiling for this process; a model that would pass it is refused. None: what the machine has available."""
    capture: bool = True
    capture_rows_s: float = 500.0
    """Rows kept per second in the long run; more are sampled away and counted."""
    capture_burst: int = 5000
    """Rows kept at once after a quiet time."""
    drain_s: float = 5.0
    workers: int = 1
    """Server processes on one port, each with its own sessions. They share the memory ceiling and the capture budget evenly."""
    worker: int | None = None
    """Which of them this process is; None is not one of several."""
    may_call: tuple[str, ...] = ()
    """Names and addresses that this process may call (see `network_watch`); it needs none itself."""
    caches: tuple[Cache, ...] = CACHES
    """What is remembered of requests; one left out costs time and changes no answer."""
    access_log: bool = False
    """One line of JSON for each answer, on the logger `spoke.access`."""

    @property
    def share(self) -> "ServeSettings":
        """The settings of one worker: its part of what all may take together."""
        memory = None if self.memory_mb is None else self.memory_mb // self.workers
        rate, burst = self.capture_rows_s / self.workers, self.capture_burst // self.workers
        return replace(self, memory_mb=memory, capture_rows_s=rate, capture_burst=burst)

    @property
    def folder(self) -> SpokeHome:
        """Names under the home."""
        return SpokeHome(self.home)
