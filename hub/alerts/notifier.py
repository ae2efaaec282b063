"""Sends new alerts until each channel has taken them. Its state is in the database, so a restart loses nothing."""

import json
import logging
import threading
from collections.abc import Sequence
from datetime import timedelta

from hub.alerts.alert import Alert, drift_alerts, retrain_trigger, rollout_alerts
from hub.alerts.channels import Alertmanager, AlertNotSent, Channel, open_channels
from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.rules.fleet_drift import FleetDrift
from hub.services.drift import claim_of, drift_view
from hub.store.audit import append_audit
from hub.store.key_values import get_value, set_value
from hub.store.leases import take_lease
from hub.store.rollouts import list_rollouts
from model_formats.core.errors import SpokeshaveError
from model_formats.core.files import atomic_write
from model_formats.core.log_event import LogEvent

__all__ = ["Notifier", "open_notifier"]

log = logging.getLogger(__name__)
_RECENT = timedelta(days=7)
"""What began earlier is old news: a channel that is set up today is not told of last year."""


class Notifier:
    """Call `turn()` now and then, or `start()` a thread that does. One hub process does it at a time (a lease)."""

    def __init__(
        self, hub: HubContext, channels: Sequence[Channel], manager: Alertmanager | None = None, *, owner: str = "alerts"
    ) -> None:
        self._hub, self._channels, self._manager, self._owner = hub, channels, manager, owner
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> None:
        """Turn every `alerts_every_s` until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End; a delivery under way is finished or given up in its own time."""
        self._stopping.set()
        self._thread.join(15)

    def turn(self) -> list[Alert]:
        """Tell everybody what they were not told yet; returns the alerts that hold now."""
        with self._hub.database.begin() as db:
            if not take_lease(db, "alerts", self._owner, now=self._hub.now, life_s=2 * self._hub.settings.alerts_every_s):
                return []
            rollouts = list_rollouts(db)
        views = drift_view(self._hub)
        for view in views:
            self._keep_trigger(view)
        alerts = [a for a in (*drift_alerts(views), *rollout_alerts(rollouts)) if self._hub.clock.now() - a.since < _RECENT]
        for channel in self._channels:
            self._tell(channel, alerts)
        if self._manager is not None:
            life = timedelta(seconds=5 * self._hub.settings.alerts_every_s)
            try:
                self._manager.tell(alerts, self._hub.clock.now(), life)
            except AlertNotSent as e:
                log.warning(LogEvent.ALERT_NOT_SENT, extra={"channel": "alertmanager", "error": e.message})
        return alerts

    def _tell(self, channel: Channel, alerts: Sequence[Alert]) -> None:
        """Each alert once. Marked after the receiver took it: after a crash between the two it comes again, with the same id."""
        for alert in alerts:
            key = f"alert.{channel.name}.{alert.id}"
            with self._hub.database.read() as db:
                if get_value(db, key) is not None:
                    continue
            try:
                channel.send(alert, self._hub.clock.now())
            except AlertNotSent as e:
                log.warning(LogEvent.ALERT_NOT_SENT, extra={"channel": channel.name, "error": e.message})
                return
            with self._hub.database.begin() as db:
                set_value(db, key, str(self._hub.now))
                append_audit(
                    db,
                    "hub",
                    AuditAction.ALERT_SENT,
                    alert.id,
                    now=self._hub.now,
                    details={"channel": channel.name, "what": alert.title},
                )

    def _keep_trigger(self, view: FleetDrift) -> None:
        """Write the retraining trigger, once for what began at one time."""
        trigger = retrain_trigger(view, claim_of(self._hub, view.index)) if view.retrain else None
        if trigger is None:
            return
        path = self._hub.home.root / "triggers" / f"{trigger.model}-{trigger.version}-{trigger.since:%Y%m%dT%H%M}.json"
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(json.loads(trigger.canonical()), indent=1).encode())
        with self._hub.database.begin() as db:
            details = {"file": path.name, "digest": trigger.digest}
            append_audit(
                db, "hub", AuditAction.DRIFT_RETRAIN, f"{trigger.model}@{trigger.version}", now=self._hub.now, details=details
            )

    def _run(self) -> None:
        while not self._stopping.wait(self._hub.settings.alerts_every_s):
            try:
                self.turn()
            except SpokeshaveError:
                log.exception(LogEvent.ALERTS_FAILED)  # the next turn tries again


def open_notifier(hub: HubContext, owner: str) -> Notifier | None:
    """A notifier with the receivers that the settings name; None where they name none. Raises SettingsInvalid."""
    channels, manager = open_channels(hub.settings, hub.clock)
    return Notifier(hub, channels, manager, owner=owner) if channels or manager else None
