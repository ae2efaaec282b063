"""`identity/identity.json`: what a spoke learned from the hub at enrolment. Read without any cryptography."""

from typing import Annotated, Literal

from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.types import Name
from sync.core.types import Regime

__all__ = ["HubAddress", "IdentityDocument"]


class HubAddress(Value):
    """Where a spoke finds its hub."""

    url: str
    """HTTPS base address, without a slash at the end."""
    broker_host: str
    broker_port: Annotated[int, Meta(ge=1, le=65535)]


class IdentityDocument(Document):
    """`identity.json`."""

    kind: Literal["identity"] = "identity"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    zone: Name
    regime: Regime
    hub: HubAddress
