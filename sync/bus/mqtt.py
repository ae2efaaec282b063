"""The bus over MQTT 5 (paho), with mutual TLS.

paho reconnects and resends what is not acknowledged. Added here: subscriptions that come back after a reconnect, dispatch by
subscription identifier, jitter (a delay drawn anew before each try), limits on all that waits, and errors of ours.
"""

import collections
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from model_formats.core.log_event import LogEvent
from sync.bus.bus import BusDown, Handler, Message, Subscription
from sync.bus.mqtt_fast_path import bulk_socket
from sync.core.tls import TlsFiles, client_context
from sync.protocol.topics import matches, unshared

__all__ = ["MqttBus", "TlsFiles"]

MAX_PACKET_BYTES = 1 << 20
"""Largest packet we take, bytes; the broker drops longer ones. A block is 128 KiB."""
MAX_UNACKNOWLEDGED = 1000
"""QoS 1 messages kept for the broker's word; then `publish` blocks."""
MAX_UNSENT_BYTES = 4 << 20
"""QoS 0 bytes that may wait for the socket; then `publish` blocks: this bounds a sender's memory."""

log = logging.getLogger(__name__)
_random = secrets.SystemRandom()


class MqttBus:
    """A connection to a broker. Ours takes the client id from the certificate, so: one connection per certificate.

    `session_s`: how long the broker keeps QoS 1 messages for this client while it is cut off. `clean_start` False also takes up
    what the broker kept from before this process. `reconnect_s`: first and longest window (seconds) of which a delay is drawn.
    """

    def __init__(
        self,
        host: str,
        port: int,
        client_id: str,
        tls: TlsFiles | None = None,
        *,
        session_s: int = 3600,
        clean_start: bool = True,
        keepalive_s: int = 30,
        reconnect_s: tuple[float, float] = (1.0, 60.0),
    ) -> None:
        self._address = (host, port)
        self._session_s, self._clean_start, self._keepalive_s = session_s, clean_start, keepalive_s
        self._reconnect_s, self._tries = reconnect_s, 0
        self._tls = tls
        self._context = client_context(tls) if tls else None
        if self._context is not None:
            # Blocks bypass paho: with paho alone each is copied five times on its way to the handler (see mqtt_fast_path.py).
            self._context.sslsocket_class = bulk_socket(self._on_bulk)
        self._lock = threading.Condition(threading.RLock())
        # Held while handlers run, so that `cancel` can promise that the handler is not called after it returns.
        self._delivery = threading.RLock()
        self._filters: dict[str, _Filter] = {}
        self._by_id: dict[int, _Filter] = {}
        self._next_id = 1
        self._callbacks: list[Callable[[], None]] = []
        self._suback: dict[int, list[ReasonCode] | None] = {}
        self._unacknowledged: collections.deque[paho.MQTTMessageInfo] = collections.deque()
        self._unsent: collections.deque[tuple[paho.MQTTMessageInfo, int]] = collections.deque()
        self._unsent_bytes = 0
        self._up = self._closed = False
        self._why = "no answer"
        self._thread: int | None = None
        self._client = self._make_client(client_id)

    def _make_client(self, client_id: str) -> paho.Client:
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv5)
        # paho connects on its own thread; a host that drops packets must not keep it there for minutes.
        client.connect_timeout = 5.0
        if self._context is not None:
            client.tls_set_context(self._context)
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        return client

    # ---- sync.bus.Bus ---------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether messages flow right now."""
        return self._up

    def connect(self, *, will: Message | None = None, timeout: float | None = 10.0) -> None:
        """Connect, and stay connected. Raises BusDown with the broker's reason when `timeout` (seconds) runs out."""
        if will is not None:
            self._client.will_set(will.topic, will.payload, will.qos, will.retain)
        properties = _properties(PacketTypes.CONNECT, SessionExpiryInterval=self._session_s, MaximumPacketSize=MAX_PACKET_BYTES)
        self._draw_delay()
        host, port = self._address
        # A new process has no use for what the broker kept for the last one, unless asked; a reconnect of this process always
        # has.
        start = paho.MQTT_CLEAN_START_FIRST_ONLY if self._clean_start else False
        self._client.connect_async(host, port, keepalive=self._keepalive_s, clean_start=start, properties=properties)
        self._client.loop_start()
        if timeout is None:
            return
        with self._lock:
            up = self._lock.wait_for(lambda: self._up, timeout)
        if not up:
            self.close()
            raise BusDown(f"the broker at {host}:{port} cannot be used: {self._why}")

    def publish(self, message: Message) -> None:
        """Send. QoS 1 is kept until acknowledged; QoS 0 raises BusDown when not connected. Either blocks when too much waits."""
        if message.qos == 0:
            self._publish_now(message)
        else:
            self._publish_kept(message)

    def flush(self, timeout: float) -> bool:
        """Wait until all QoS 1 messages are acknowledged; False when the time ran out."""
        end = time.monotonic() + timeout
        with self._lock:
            waiting = list(self._unacknowledged)
        return all(_settled(info, max(0.0, end - time.monotonic())) for info in waiting)

    def subscribe(self, pattern: str, handler: Handler, *, qos: int = 1) -> Subscription:
        """Receive all that matches; returns once the broker has said yes (when connected). Raises BusDown when it says no.

        A second subscription to the same pattern makes the broker repeat its retained messages to both.
        """
        with self._lock:
            found = self._filters.get(pattern)
            if found is None:
                found = _Filter(pattern, self._next_id, qos)
                self._next_id += 1
                self._filters[pattern] = found
                # Replaced, never changed: the delivering thread reads it without the lock.
                self._by_id = {**self._by_id, found.id: found}
            found.handlers = (*found.handlers, handler)
            mid = self._ask(found) if self._up else None
        # On the bus's own thread nobody would read the answer while we wait for it.
        if mid is not None and threading.get_ident() != self._thread:
            self._await_suback(pattern, mid)
        return _MqttSubscription(self, found, handler)

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Called after every (re)connect, on the bus's thread."""
        self._callbacks.append(callback)

    def close(self) -> None:
        """Disconnect cleanly (no last will)."""
        with self._lock:
            self._closed = True
            self._up = False
            self._lock.notify_all()
        self._client.disconnect()
        self._client.loop_stop()

    # ---- sending --------------------------------------------------------------------------------------------------------

    def _publish_now(self, message: Message) -> None:
        while True:
            with self._lock:
                self._forget_sent()
                # A handler may not wait here: it runs on the thread that empties the queue.
                if self._unsent_bytes < MAX_UNSENT_BYTES or threading.get_ident() == self._thread:
                    info = self._client.publish(message.topic, message.payload, 0, message.retain)
                    if info.rc != paho.MQTT_ERR_SUCCESS or not self._up:
                        raise BusDown(f"not connected to the broker; a message to {message.topic} was not sent")
                    self._unsent.append((info, len(message.payload)))
                    self._unsent_bytes += len(message.payload)
                    return
                oldest = self._unsent[0][0]
            _settled(oldest, 0.25)

    def _forget_sent(self) -> None:
        while self._unsent and (not self._up or _settled(self._unsent[0][0])):
            self._unsent_bytes -= self._unsent.popleft()[1]

    def _publish_kept(self, message: Message) -> None:
        while True:
            with self._lock:
                while self._unacknowledged and _settled(self._unacknowledged[0], 0):
                    self._unacknowledged.popleft()
                if self._closed:
                    raise BusDown(f"the bus is closed; a message to {message.topic} was not sent")
                if len(self._unacknowledged) < MAX_UNACKNOWLEDGED:
                    info = self._client.publish(message.topic, message.payload, message.qos, message.retain)
                    info.rc = paho.MQTT_ERR_SUCCESS  # "no connection" here only means "later": paho keeps it
                    self._unacknowledged.append(info)
                    return
                oldest = self._unacknowledged[0]
            if threading.get_ident() == self._thread:
                # The acknowledgements arrive on this thread, so waiting for them here would never end.
                raise BusDown(f"{MAX_UNACKNOWLEDGED} messages wait for the broker already; not sent from a handler")
            _settled(oldest, 0.25)

    # ---- receiving ------------------------------------------------------------------------------------------------------

    def _ask(self, found: "_Filter") -> int | None:
        properties = _properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=found.id)
        _, mid = self._client.subscribe(found.pattern, options=SubscribeOptions(qos=found.qos), properties=properties)
        if mid is not None:
            self._suback[mid] = None
        return mid

    def _await_suback(self, pattern: str, mid: int) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._suback.get(mid) is not None or not self._up, 5.0)
            codes = self._suback.pop(mid, None)
        if codes and codes[0].is_failure:
            raise BusDown(f"the broker refuses a subscription to {pattern}: {codes[0]}")

    def _drop(self, found: "_Filter", handler: Handler) -> None:
        with self._delivery, self._lock:  # in this order always: a handler that runs now may want the lock
            rest = list(found.handlers)
            with contextlib.suppress(ValueError):
                rest.remove(handler)
            found.handlers = tuple(rest)
            if not rest and self._filters.get(found.pattern) is found:
                del self._filters[found.pattern]
                self._by_id = {i: f for i, f in self._by_id.items() if f is not found}
                if self._up:
                    self._client.unsubscribe(found.pattern)

    # ---- paho's callbacks, on its thread --------------------------------------------------------------------------------

    def _on_pre_connect(self, client: paho.Client, userdata: Any) -> None:
        # Known only from inside: publish and subscribe must not wait on the thread that brings the answers.
        self._thread = threading.get_ident()
        if self._context is not None and self._tls is not None:
            with contextlib.suppress(OSError):  # a certificate being renewed at this moment: the old one is still good
                # Read again before every connection: the certificate may have been renewed since.
                self._context.load_cert_chain(self._tls.certificate, self._tls.key)

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        if code.is_failure:
            self._why = f"it refuses this client ({code})"
            return
        with self._lock:
            # A connection that was accepted starts the back-off from the beginning.
            self._tries = 0
            self._up = not self._closed
            # Answers to questions of the old connection will not come.
            self._suback.clear()
            for found in self._filters.values():
                self._ask(found)
            self._lock.notify_all()
        for callback in list(self._callbacks):
            _guarded(callback)

    def _on_connect_fail(self, client: paho.Client, userdata: Any) -> None:
        self._why = "no connection (nobody listens there, or TLS failed)"
        self._draw_delay()

    def _on_disconnect(self, client: paho.Client, userdata: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        with self._lock:
            if self._up:
                log.info(LogEvent.BUS_DISCONNECTED, extra={"reason": str(code)})
            self._up = False
            self._forget_sent()
            self._lock.notify_all()
        self._draw_delay()

    def _draw_delay(self) -> None:
        first, longest = self._reconnect_s
        # Full jitter: after a restart of the broker the whole fleet reconnects, and must not do so in step.
        delay = _random.uniform(0.02, min(longest, first * 2 ** min(self._tries, 16)))
        self._tries += 1
        self._client.reconnect_delay_set(delay, delay)  # type: ignore[arg-type]  # seconds, and fractions do work

    def _on_subscribe(self, client: paho.Client, userdata: Any, mid: int, codes: list[ReasonCode], properties: Any) -> None:
        with self._lock:
            if mid in self._suback:
                self._suback[mid] = codes
                self._lock.notify_all()

    def _on_message(self, client: paho.Client, userdata: Any, received: paho.MQTTMessage) -> None:
        ids = getattr(received.properties, "SubscriptionIdentifier", None) or ()
        self._deliver(Message(received.topic, bytes(received.payload), received.qos, received.retain), ids)

    def _on_bulk(self, topic: str, payload: bytes, ids: Sequence[int]) -> None:
        self._deliver(Message(topic, payload, qos=0), ids)

    def _deliver(self, message: Message, ids: Sequence[int]) -> None:
        known = self._by_id
        # A broker without subscription identifiers sends none; then the topic decides.
        filters = [known[i] for i in ids if i in known] or [
            f for f in known.values() if matches(unshared(f.pattern), message.topic)
        ]
        with self._delivery:
            for found in filters:
                for handler in found.handlers:
                    _guarded(handler, message)


class _Filter:
    """One subscription at the broker, and who is served by it here."""

    __slots__ = ("handlers", "id", "pattern", "qos")

    def __init__(self, pattern: str, id_: int, qos: int) -> None:
        self.pattern, self.id, self.qos = pattern, id_, qos
        self.handlers: tuple[Handler, ...] = ()


class _MqttSubscription:
    """Made by `MqttBus.subscribe`."""

    def __init__(self, bus: MqttBus, found: _Filter, handler: Handler) -> None:
        self._bus, self._found, self._handler = bus, found, handler

    def cancel(self) -> None:
        """Unsubscribe; the handler is not called after this returns."""
        self._bus._drop(self._found, self._handler)


def _settled(info: paho.MQTTMessageInfo, timeout: float = 0.0) -> bool:
    try:
        if timeout:
            info.wait_for_publish(timeout)
        return info.is_published()
    except (RuntimeError, ValueError):  # lost with its connection
        return True


def _properties(packet: int, **values: Any) -> Properties:
    found = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(found, name, value)
    return found


def _guarded(call: Callable[..., None], *args: Any) -> None:
    try:
        call(*args)
    except Exception:  # one bad handler must not cut the connection of all others
        log.exception(LogEvent.BUS_HANDLER_FAILED)
