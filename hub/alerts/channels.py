"""Sends alerts: by signed webhook, Alertmanager or e-mail. A send is tried a few times, then left for the next turn.

Webhooks follow the Standard Webhooks specification 1.0 (https://www.standardwebhooks.com): `webhook-id` (the alert's, so that
a repeated delivery is known), `webhook-timestamp`, and `webhook-signature` = "v1," + base64 of HMAC-SHA256 over
"id.timestamp.body".
"""

import base64
import binascii
import hashlib
import hmac
import json
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Literal, Protocol

import httpx

from hub.alerts.alert import Alert
from hub.config.settings import HubSettings, SettingsInvalid
from model_formats.core.errors import HubError
from sync.core.clock import Clock
from sync.core.retry import retrying

__all__ = ["AlertNotSent", "Alertmanager", "Channel", "Mail", "Webhook", "open_channels", "signature"]

_TIMEOUT_S = 10.0


class AlertNotSent(HubError):
    """A receiver of alerts did not take one. It stays due."""

    code = "alert_not_sent"
    hint = "Check the address and secret in hub.toml (alerts_...); the next turn tries again."


class Channel(Protocol):
    """Somewhere that one alert is sent to, once."""

    @property
    def name(self) -> str:
        """Which of the receivers of this hub it is."""

    def send(self, alert: Alert, now: datetime) -> None:
        """Deliver it. Raises AlertNotSent."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """POST to an address, signed. Any answer of 2xx counts as taken."""

    url: str
    secret: bytes
    clock: Clock
    name: str = "webhook"

    def send(self, alert: Alert, now: datetime) -> None:
        """Deliver it. Raises AlertNotSent."""
        data = {"title": alert.title, "words": alert.words, "labels": alert.labels, "since": alert.since.isoformat()}
        body = json.dumps({"type": alert.type, "timestamp": now.isoformat(), "data": data}).encode()
        stamp = str(int(now.timestamp()))
        headers = {
            "content-type": "application/json",
            "webhook-id": alert.id,
            "webhook-timestamp": stamp,
            "webhook-signature": signature(self.secret, alert.id, stamp, body),
        }
        _post(self.url, body, headers, self.clock)


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """POST of all alerts that hold, at every turn; Alertmanager groups, silences and repeats, and ends what is not sent again."""

    url: str
    clock: Clock

    def tell(self, alerts: Sequence[Alert], now: datetime, life: timedelta) -> None:
        """All that hold now. Raises AlertNotSent."""
        found = [
            {
                "labels": {"alertname": a.type, "id": a.id, **a.labels},
                "annotations": {"summary": a.title, "description": "\n".join(a.words)},
                "startsAt": a.since.isoformat(),
                "endsAt": (now + life).isoformat(),
            }
            for a in alerts
        ]
        if found:
            address = f"{self.url.rstrip('/')}/api/v2/alerts"
            _post(address, json.dumps(found).encode(), {"content-type": "application/json"}, self.clock)


@dataclass(frozen=True, slots=True)
class Mail:
    """A plain message by SMTP."""

    host: str
    port: int
    sender: str
    to: tuple[str, ...]
    security: Literal["tls", "starttls", "none"]
    user: str
    password: str
    clock: Clock
    name: str = "mail"

    def send(self, alert: Alert, now: datetime) -> None:
        """Deliver it. Raises AlertNotSent."""
        message = EmailMessage()
        message["Subject"] = alert.title
        message["From"], message["To"] = self.sender, ", ".join(self.to)
        message["Date"], message["Message-ID"] = now, f"<{alert.id}@spokeshave>"
        message.set_content("\n".join([*alert.words, "", *(f"{k}: {v}" for k, v in sorted(alert.labels.items()))]) + "\n")
        again = retrying(on=(smtplib.SMTPServerDisconnected, smtplib.SMTPResponseException, OSError), tries=3, clock=self.clock)
        try:
            again(self._deliver)(message)
        except (OSError, smtplib.SMTPException) as e:
            raise AlertNotSent(f"{self.host}:{self.port}: {e}") from e

    def _deliver(self, message: EmailMessage) -> None:
        safe = ssl.create_default_context()
        opened = (
            smtplib.SMTP_SSL(self.host, self.port, timeout=_TIMEOUT_S, context=safe)
            if self.security == "tls"
            else smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT_S)
        )
        with opened as smtp:
            if self.security == "starttls":
                smtp.starttls(context=safe)
            if self.user:
                smtp.login(self.user, self.password)
            smtp.send_message(message)


def signature(secret: bytes, message_id: str, stamp: str, body: bytes) -> str:
    """What stands in `webhook-signature`."""
    signed = hmac.digest(secret, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(signed).decode()


def open_channels(settings: HubSettings, clock: Clock) -> tuple[list[Channel], Alertmanager | None]:
    """What hub.toml names. Raises SettingsInvalid that names the setting."""
    found: list[Channel] = []
    if settings.alerts_webhook_url:
        secret = _secret(settings.alerts_webhook_secret_file)
        found.append(Webhook(settings.alerts_webhook_url, secret, clock))
    if settings.alerts_mail_to:
        host, _, port = settings.alerts_smtp.rpartition(":")
        if not host or not port.isdigit() or not settings.alerts_mail_from:
            raise SettingsInvalid("alerts_smtp: host:port and alerts_mail_from are needed to send mail")
        password = _read("alerts_smtp_password_file", settings.alerts_smtp_password_file) if settings.alerts_smtp_user else ""
        security, user = settings.alerts_smtp_security, settings.alerts_smtp_user
        found.append(Mail(host, int(port), settings.alerts_mail_from, settings.alerts_mail_to, security, user, password, clock))
    manager = Alertmanager(settings.alerts_alertmanager_url, clock) if settings.alerts_alertmanager_url else None
    return found, manager


def _secret(file: str) -> bytes:
    """`whsec_` and base64, as the specification writes it: 24 to 64 bytes."""
    text = _read("alerts_webhook_secret_file", file)
    try:
        secret = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error as e:
        raise SettingsInvalid("alerts_webhook_secret_file: not whsec_ and base64") from e
    if not 24 <= len(secret) <= 64:
        raise SettingsInvalid(f"alerts_webhook_secret_file: {len(secret)} bytes; 24 to 64 are needed")
    return secret


def _read(name: str, file: str) -> str:
    if not file:
        raise SettingsInvalid(f"{name} is not given, and what it belongs to is")
    try:
        return Path(file).read_text().strip()
    except OSError as e:
        raise SettingsInvalid(f"{name}: {file}: {e.strerror}") from e


def _post(url: str, body: bytes, headers: dict[str, str], clock: Clock) -> None:
    again = retrying(on=(httpx.HTTPError,), tries=3, clock=clock)

    def post() -> None:
        httpx.post(url, content=body, headers=headers, timeout=_TIMEOUT_S).raise_for_status()

    try:
        again(post)()
    except (httpx.HTTPError, httpx.InvalidURL) as e:
        raise AlertNotSent(f"{url}: {e}") from e
