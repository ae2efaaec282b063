"""Canary rows: values that occur nowhere else are served, labelled and drifted upon; then every byte that left is searched."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from spoke_agent.data.crypto import load_site_key
from spoke_agent.data.store import DataStore, RowBatch
from spoke_agent.drift.monitor import DriftMonitor, WatchedModel
from spoke_agent.outbox.outbox import Outbox
from sync.core.clock import ManualClock
from sync.core.types import SpokeId
from sync.trust.dsse import seal
from sync.trust.keys import device_signer
from tests.samples.tabular import INDEX, MODEL, VERSION, profile, scores, table

CANARY = np.float32(13.579135)
WORDS = "canary-request-9f31"
WIDE_OPEN = (
    "round_to: 1\nallow: [{kind: ops}, {kind: drift_verdict}, {kind: drift_hist}, {kind: rff_mean}, {kind: perf_estimate}]\n"
)


def traces(value: np.float32) -> list[bytes]:
    """The value as JSON, rounded, as raw floats of either width and order."""
    texts = {repr(float(value)), str(value), f"{value:.6f}", f"{value:.4f}", f"{value:.3f}"}
    raw = [struct.pack(code, float(value)) for code in ("<f", ">f", "<d", ">d")]
    return [t.encode() for t in texts] + raw + [WORDS.encode()]


@pytest.mark.parametrize("drift", ["none", "shift", "missing"])
def test_no_planted_value_is_in_any_byte_that_left_or_was_logged(tmp_path: Path, drift: str, caplog: pytest.LogCaptureFixture):
    (tmp_path / "egress.yaml").write_text(WIDE_OPEN)
    left: list[bytes] = []
    clock, signer, rng = ManualClock(), device_signer(), np.random.default_rng(1)
    data = DataStore(tmp_path / "data.db", load_site_key(tmp_path), now=lambda: clock.now().timestamp())
    box = Outbox(
        tmp_path, SpokeId("dubai"), "none", clock=clock, send=lambda _, b: left.append(b), seal=lambda r: seal(r, signer)
    )
    watched = [WatchedModel(MODEL, VERSION, INDEX)]
    monitor = DriftMonitor(tmp_path / "drift", data, box, watched=lambda: watched, profile=lambda _: profile(), clock=clock)
    for _ in range(6):
        x = table(500, rng, drift)
        x[:7, 2] = CANARY
        ids = [WORDS, *[""] * 499]
        data.append(RowBatch(MODEL, VERSION, INDEX, ids, np.full(500, clock.now().timestamp()), {"x": x}, {"y": scores(x, rng)}))
        data.label(WORDS, 1)
        monitor.tick()
        clock.advance(3600)
    kinds = {k for e in box.log.entries() if e.record for k in [e.record.body.kind]}
    assert {"drift_verdict", "drift_hist", "rff_mean"} <= kinds
    everything = b"\n".join(left) + caplog.text.encode() + b"".join(_opened(envelope) for envelope in left)
    for trace in traces(CANARY):
        assert trace not in everything
    assert not re.search(rb"13\.57", everything)


def _opened(envelope: bytes) -> bytes:
    import base64
    import json

    return base64.b64decode(json.loads(envelope)["payload"])
