"""The transports of a blob: MQTT blocks, HTTPS ranges, one after the other, or none. All write into the same store."""

import secrets
from collections.abc import Callable
from typing import Literal

import httpx

from model_formats.core.errors import HubError
from model_formats.package.oci import INDEX, MANIFEST
from spoke_agent.update.interfaces import FetchRequest, Transport, TransportUnavailable
from sync.bus.bus import Bus
from sync.core.types import SpokeId
from sync.transfer.fetch import fetch_blob
from sync.transfer.limits import BudgetExhausted
from sync.transfer.rate_limit import RateLimit
from sync.transfer.receiver import BlockReceiver

__all__ = ["OfflineTransport", "HttpsTransport", "MqttTransport", "Transports"]

Choice = Literal["auto", "mqtt", "https"]
_random = secrets.SystemRandom()


class OfflineTransport:
    """A spoke without a network: what is not in the store will not come by itself."""

    def fetch(self, request: FetchRequest) -> int:
        """Raises TransportUnavailable."""
        raise TransportUnavailable(
            f"{request.blob.path or request.blob.digest} of {request.desired.model}@{request.desired.version} is not here, "
            "and there is no network"
        )


class MqttTransport:
    """Blocks over the bus."""

    def __init__(self, bus: Bus, zone: str, me: SpokeId, pace: RateLimit | None = None) -> None:
        self._bus, self._zone, self._me, self._pace = bus, zone, me, pace

    def fetch(self, request: FetchRequest) -> int:
        """See `interfaces.Transport`."""
        receiver, blob = BlockReceiver(self._bus, self._zone, self._me, request.store, pace=self._pace), request.blob
        return receiver.receive(blob.digest, blob.size, request.hashes, cancel=request.cancel, progress=request.progress)


class HttpsTransport:
    """Ranges from the hub's registry."""

    def __init__(self, client: Callable[[], httpx.Client], pace: RateLimit | None = None) -> None:
        """`client` is made at first use: it already knows the hub's address, its CA and this device's token."""
        self._make, self._client, self._pace = client, None, pace

    _client: httpx.Client | None

    def fetch(self, request: FetchRequest) -> int:
        """See `interfaces.Transport`."""
        self._client, blob = self._client or self._make(), request.blob
        kind = "manifests" if blob.media_type in (INDEX, MANIFEST) else "blobs"
        url = f"/v2/{request.desired.model}/{kind}/{blob.digest}"
        return fetch_blob(
            self._client,
            url,
            blob.digest,
            blob.size,
            request.store,
            hashes=request.hashes,
            cancel=request.cancel,
            progress=request.progress,
            pace=self._pace,
        )


class Transports:
    """The transport that site and directive agree on. `auto` takes MQTT, and HTTPS where MQTT fails.

    When a broker falls, it falls for all: each spoke waits a random part of `spread_s` seconds before it turns to HTTPS, where
    every spoke costs the hub a copy. On MQTT they may all come at once, since one copy serves them.
    """

    def __init__(self, mqtt: Transport, https: Transport, choice: Choice = "auto", *, spread_s: float = 0.0) -> None:
        self._mqtt, self._https, self._choice, self._spread_s = mqtt, https, choice, spread_s

    def fetch(self, request: FetchRequest) -> int:
        """See `interfaces.Transport`."""
        choice = self._choice if self._choice != "auto" else request.desired.transport
        first = self._https if choice == "https" else self._mqtt
        try:
            return first.fetch(request)
        except BudgetExhausted:
            raise
        except HubError:
            if choice != "auto" or request.cancel.wait(_random.uniform(0, self._spread_s)):
                raise
            return self._https.fetch(request)
