"""What a site serves, as the server reports it to the agent and the agent to the hub.

A module of its own, so that the server starts without importing the messages between hub and spoke.
"""

from typing import Annotated

from msgspec import Meta

from model_formats.core.cpu_class import CpuClass
from model_formats.core.document import Value
from model_formats.core.runtime import Engine, Mode
from model_formats.core.types import Digest, Name

__all__ = ["Serving"]


class Serving(Value):
    """What the serving process has mapped, by its own hash of the file."""

    model: Name
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    file: Digest
    variant: Name
    engine: Engine
    mode: Mode | None = None
    """How the engine sums INT8 products; None from a spoke that is too old to say it."""
    cpu_class: CpuClass | None = None
    """Class of the CPU it runs on; None from a spoke that is too old to say it."""
    adapted: bool = False
    """True where a local adapter answers by default; the adapter itself never leaves."""
    latency_us: Annotated[int, Meta(ge=0)] | None = None
    """Median run time of one row, microseconds, measured with the golden inputs when it was loaded."""
    row_us: Annotated[int, Meta(ge=0)] | None = None
    """Run time of a row in a batch of 32, measured alike."""
