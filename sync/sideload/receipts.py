"""The way back of a sideload: reports and outbox records of a spoke without a network, as one signed file."""

import base64
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Document, Value
from model_formats.core.files import atomic_write
from model_formats.core.types import AwareDatetime, Name, matching
from sync.core.types import Reason, SpokeId
from sync.protocol.messages import Serving
from sync.trust.dsse import seal, unseal
from sync.trust.errors import TrustRefused
from sync.trust.keys import Key, Signer

__all__ = [
    "Receipt",
    "Receipts",
    "ReceiptsKnown",
    "ReceiptsRefused",
    "check_egress_chain",
    "claimed_spoke",
    "read_receipts",
    "write_receipts",
]


class ReceiptsRefused(TrustRefused):
    """A file of receipts that is not that spoke's, or not a file of receipts."""

    code = "receipts_refused"
    hint = "Take the file that `spoke sideload receipts` wrote, unchanged."


class ReceiptsKnown(ReceiptsRefused):
    """Receipts that were imported before."""

    code = "receipts_known"
    hint = "Nothing to do: the hub has them already."


class Receipt(Value):
    """One message that could not be sent: a signed report (kind `report`), or a message of the outbox (its kind)."""

    kind: Annotated[str, matching("^[a-z_]{1,32}$")]
    text: Annotated[str, Meta(max_length=1 << 20)]
    """The message as it would have been published: JSON."""


MAX_LINKS = 1000
Link = Annotated[str, matching(r"^[1-9][0-9]{0,11} sha256:[0-9a-f]{64}$")]


class Receipts(Document):
    """Reports and records of a spoke without a network, in one signed file. It holds nothing that the outbox would not send."""

    max_bytes: ClassVar[int] = 32 << 20

    kind: Literal["receipts"] = "receipts"
    schema_: Literal[1] = 1
    site: Name
    spoke: Name
    created: AwareDatetime
    number: Annotated[int, Meta(ge=1)]
    """Grows with every file of receipts of this spoke."""
    generation: Annotated[int, Meta(ge=0)]
    serving: tuple[Serving, ...] = ()
    messages: tuple[Receipt, ...] = ()
    egress_chain: Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS)] = ()
    """The last links of the site's egress log: number and digest of each entry, so that it cannot be rewritten unseen. What the
    entries say stays at the site."""


def write_receipts(out: Path, receipts: Receipts, signer: Signer) -> bytes:
    """Sign with the device key and write, atomically; returns the bytes."""
    data = seal(receipts, signer)
    atomic_write(out, data)
    return data


def claimed_spoke(data: bytes) -> SpokeId:
    """Whose receipts these claim to be, so that the hub can look up the key. Nothing is believed yet."""
    try:
        envelope = json.loads(data)
        payload = json.loads(base64.b64decode(envelope["payload"], validate=True))
        return SpokeId.parse(f"{payload['site']}/{payload['spoke']}")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ReceiptsRefused(Reason.REPORT_UNTRUSTED, "this is not a file of receipts") from e


def check_egress_chain(earlier: Receipts, later: Receipts) -> None:
    """The later receipts go on from the earlier ones' egress log: no entry was changed, and its end was not cut off.

    Raises ReceiptsRefused, reason REPORT_CONTRADICTS.
    """
    before, now = (dict(link.split() for link in r.egress_chain) for r in (earlier, later))
    changed = sorted(int(number) for number in before.keys() & now.keys() if before[number] != now[number])
    if changed:
        raise ReceiptsRefused(Reason.REPORT_CONTRADICTS, f"entry {changed[0]} of the egress log is not the one carried before")
    if max(map(int, before), default=0) > max(map(int, now), default=0):
        raise ReceiptsRefused(Reason.REPORT_CONTRADICTS, "the egress log is shorter than it was when it was carried before")


def read_receipts(data: bytes, device_key: Key, spoke: SpokeId, *, imported: Collection[int] = ()) -> Receipts:
    """Check receipts at the hub. `imported`: numbers of this spoke's receipts that were imported before; each is taken once.

    The reports inside are checked one by one by `verify_report`; those that came another way meanwhile are refused there.
    Raises EnvelopeRefused, ReceiptsRefused, ReceiptsKnown.
    """
    receipts = unseal(data, [device_key], Receipts, reason=Reason.REPORT_UNTRUSTED)
    if (receipts.site, receipts.spoke) != (spoke.site, spoke.spoke):
        raise ReceiptsRefused(Reason.REPORT_UNTRUSTED, f"these receipts are of {receipts.site}/{receipts.spoke}, not of {spoke}")
    if receipts.number in imported:
        raise ReceiptsKnown(Reason.REPORT_REPLAYED, f"receipts {receipts.number} of {spoke} were imported before")
    return receipts
