"""What a site serves, as its serving process tells it to the agent and the agent to the hub.

A page of its own: the serving process, which starts many times, needs none of the messages between hub and spoke.
"""

from typing import Annotated, Literal

from msgspec import Meta

from model_formats.document import Value
from model_formats.types import Digest, Name

__all__ = ["Serving"]


class Serving(Value):
    """What the serving process has mapped, by its own hash of the file."""

    model: Name
    version: Annotated[int, Meta(ge=1)]
    index: Digest
    file: Digest
    variant: Name
    engine: Literal["onnxruntime", "openvino"]
    adapted: bool = False
    """True where a local adapter answers by default; the adapter itself never leaves."""
