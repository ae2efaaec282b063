"""Alerts at real listeners: a webhook whose signature is checked, an Alertmanager address, a mail server."""

import base64
import hashlib
import hmac
import json
import socketserver
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hub.alerts.alert import drift_alerts, retrain_trigger
from hub.alerts.channels import Alertmanager, AlertNotSent, Mail, Webhook, open_channels
from hub.alerts.notifier import Notifier
from hub.config.settings import HubSettings, SettingsInvalid
from hub.rules.fleet_drift import FleetDrift, SiteDrift
from sync.core.clock import ManualClock
from sync.protocol.egress import PerfEstimate
from tests.hub.api.test_drift_is_shown_from_signed_records import index, tell  # noqa: F401

AT = datetime(2026, 3, 1, 11, 45, tzinfo=UTC)
SECRET = bytes(range(32))


class Listener(ThreadingHTTPServer):
    """Remembers what it was sent; answers 503 as often as it is told to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Post)
        self.got, self.busy = [], 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Post(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        status = 503 if self.server.busy > 0 else 204
        self.server.busy -= 1
        if status == 204:
            self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


class _Smtp(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (text := self.rfile.readline()) != b".\r\n":
                    lines.append(text)
                self.server.got.append(b"".join(lines))
            self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
            if word == b"QUIT":
                return


@pytest.fixture
def listener():
    server = Listener()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def post_office():
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp)
    server.daemon_threads, server.got = True, []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def mail(server, clock):
    return Mail("127.0.0.1", server.server_address[1], "hub@example.org", ("ops@example.org",), "none", "", "", clock)


def view(*levels, valid=True, high=60):
    estimate = PerfEstimate(method="regression", estimate=55, low=50, high=high, valid=valid, rows=200)
    sites = [
        SiteDrift(
            site=f"site{i}", spoke="one", level=level, evidence=5, windows=3, rows=200, since=AT, until=AT, moved=(), joint=3,
            confidence_fell=False, estimate=estimate if level == "alarm" else None,
        )
        for i, level in enumerate(levels)
    ]  # fmt: skip
    retrain = levels.count("alarm") > 1 and valid and high < 90
    pattern = "common" if levels.count("alarm") > 1 else "one_site" if "alarm" in levels else "quiet"
    return FleetDrift(
        model="digits", version=1, index="sha256:" + "ab" * 32, pattern=pattern, sites=tuple(sites), pooled=None,
        words=("brightness is higher at 2 of 2 sites",), retrain=retrain,
    )  # fmt: skip


def alarmed(house, index):  # noqa: F811
    house.clock.advance((AT - house.clock.now()).total_seconds() + 3600) if house.clock.now() < AT else None
    tell(house, house.enrol("frankfurt", "eu", "gdpr"), index, "alarm")


def test_a_webhook_carries_a_signature_that_the_receiver_can_check(listener):
    (alert,) = drift_alerts([view("alarm", "quiet")])
    Webhook(listener.url + "/in", SECRET, ManualClock()).send(alert, AT)
    ((path, headers, body),) = listener.got
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert (path, headers["webhook-signature"], headers["webhook-id"]) == ("/in", expected, alert.id)
    assert int(headers["webhook-timestamp"]) == int(AT.timestamp())
    told = json.loads(body)
    assert (told["type"], told["data"]["labels"]["model"]) == ("drift.alarm", "digits")


def test_a_busy_receiver_is_asked_again_and_one_that_stays_busy_keeps_the_alert_due(listener):
    (alert,) = drift_alerts([view("alarm")])
    hook = Webhook(listener.url, SECRET, ManualClock())
    listener.busy = 2
    hook.send(alert, AT)
    assert len(listener.got) == 1
    listener.busy = 99
    with pytest.raises(AlertNotSent, match="503"):
        hook.send(alert, AT)


def test_alertmanager_gets_all_that_holds_with_an_end(listener):
    alerts = drift_alerts([view("alarm", "alarm")])
    Alertmanager(listener.url + "/", ManualClock()).tell(alerts, AT, timedelta(minutes=5))
    ((path, _, body),) = listener.got
    found = json.loads(body)
    assert path == "/api/v2/alerts"
    assert [a["labels"]["alertname"] for a in found] == ["drift.alarm", "drift.retrain"]
    assert found[0]["endsAt"] == (AT + timedelta(minutes=5)).isoformat()


def test_mail_says_it_in_words(post_office):
    (alert,) = drift_alerts([view("alarm", "quiet")])
    mail(post_office, ManualClock()).send(alert, AT)
    (text,) = post_office.got
    assert b"Subject: digits@1: drift at 1 of 2 sites" in text
    assert b"brightness is higher" in text


def test_everybody_is_told_once_and_a_failure_is_made_good_later(house, index, listener, post_office):  # noqa: F811
    alarmed(house, index)
    hook = Webhook(listener.url, SECRET, ManualClock())
    listener.busy = 3  # all tries of the first turn
    assert Notifier(house.hub, [hook, mail(post_office, ManualClock())]).turn()
    assert (len(listener.got), len(post_office.got)) == (0, 1)
    for _ in range(2):  # another process, after a restart
        Notifier(house.hub, [hook, mail(post_office, ManualClock())]).turn()
    assert (len(listener.got), len(post_office.got)) == (1, 1)


@pytest.mark.parametrize(
    ("seen", "made"),
    [
        (view("alarm", "alarm"), True),
        (view("alarm", "alarm", valid=False), False),
        (view("quiet", "quiet"), False),
        (view("alarm", "quiet"), False),
    ],
)
def test_a_retraining_trigger_needs_drift_and_a_valid_loss(seen, made):
    trigger = retrain_trigger(seen, 0.95)
    assert (trigger is not None) is made
    assert ("drift.retrain" in [a.type for a in drift_alerts([seen])]) is made
    if trigger:
        assert type(trigger).parse(trigger.canonical()) == trigger
        assert [s.estimate.high for s in trigger.sites] == [60, 60]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"alerts_webhook_url": "http://localhost"}, "alerts_webhook_secret_file"),
        ({"alerts_mail_to": ("a@b.c",)}, "alerts_smtp"),
    ],
)
def test_half_a_receiver_is_refused_by_name(given, named):
    with pytest.raises(SettingsInvalid, match=named):
        open_channels(HubSettings(**given), ManualClock())


def test_a_secret_file_is_read_as_the_specification_writes_it(tmp_path):
    (tmp_path / "secret").write_text("whsec_" + base64.b64encode(SECRET).decode() + "\n")
    settings = HubSettings(alerts_webhook_url="http://localhost", alerts_webhook_secret_file=str(tmp_path / "secret"))
    ((hook,), _) = open_channels(settings, ManualClock())
    assert hook.secret == SECRET
