"""Fetches a file by delta, an untrusted shortcut. If anything goes wrong with it, the whole file is fetched instead."""

from pathlib import Path

from model_formats.delta.apply import apply
from model_formats.delta.format import DeltaInvalid
from model_formats.package.oci import OCTETS, Descriptor
from spoke_agent.update.interfaces import FetchRequest, Transport
from sync.protocol.messages import DeltaOffer, DesiredModel
from sync.store import Store, disk_errors

__all__ = ["by_delta", "offer_for"]


def offer_for(desired: DesiredModel, blob: Descriptor, store: Store) -> DeltaOffer | None:
    """The smallest offer that leads to this file from one that is here, and is worth it."""
    fitting = [o for o in desired.deltas if o.target == blob.digest and o.size < blob.size and store.has(o.base)]
    return min(fitting, key=lambda o: o.size, default=None)


def by_delta(offer: DeltaOffer, request: FetchRequest, transport: Transport) -> int | None:
    """Fetch the delta and make the file of it; returns the bytes received, None where it did not lead to the file.

    Raises what the transport raises; the delta's own blocks are kept for the next try.
    """
    store, blob = request.store, request.blob
    delta = Descriptor(offer.delta, offer.size, OCTETS)
    received = transport.fetch(FetchRequest(request.desired, delta, store, request.cancel))
    if request.cancel.is_set() or not store.has(offer.delta):
        return received
    made = store.path(offer.delta).with_name(f".{blob.digest.removeprefix('sha256:')[:16]}.made")
    try:
        with disk_errors(made):
            apply(store.path(offer.base), store.path(offer.delta), made, blob.digest)
        _take(store, blob, made)
    except DeltaInvalid:
        return None
    finally:
        made.unlink(missing_ok=True)
        store.delete(offer.delta)
    return received


def _take(store: Store, blob: Descriptor, made: Path) -> None:
    with made.open("rb") as file:
        store.put_stream(blob.digest, blob.size, iter(lambda: file.read(1 << 20), b""))
