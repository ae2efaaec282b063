"""What a spoke costs while nothing changes, and what it costs to believe 100 MB. Part of `python -m tests.bench.transfer`."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from hub.config.settings import HubSettings
from model_formats.core.types import ModelRef, digest_of
from model_formats.package import open_package, pack
from model_formats.package.image_layout import ImageLayout
from model_formats.signing.signature import sign_package
from spoke_agent.site.settings import SpokeSettings
from sync.core.clock import ManualClock
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.protocol.messages import Serving, Status
from sync.trust.verifier import verify_contents, verify_release
from tests.samples.model_folder import write_model_folder
from tests.samples.trust_world import World, desired

DAY_S = 86_400
MQTT_HEADER = 2 + 3 + 2 + 2 + 1
"""Of a QoS 1 publish: fixed header with length, topic length, packet id, properties."""
TIMESTAMP_MAX_AGE_S = 12 * 3600
"""`sync.trust.metadata.Repository.refresh_online`: a timestamp is signed anew when it is older."""


def measure(folder: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and figures."""
    refresh, check_in = tuf_refresh_bytes(folder / "tuf"), no_op_check_in_bytes()
    heartbeats, timestamps = DAY_S / SpokeSettings().heartbeat_s, DAY_S / TIMESTAMP_MAX_AGE_S
    directives = DAY_S / (HubSettings().directive_ttl_s / 2)
    figures = {
        "verify_cpu_s_per_100mb": verify_cpu_s(folder / "verify", 100_000_000),
        "tuf_refresh_bytes_unchanged": float(refresh),
        "no_op_check_in_bytes": float(check_in),
        "no_op_messages_per_spoke_and_day": heartbeats + timestamps + directives,
    }
    rows = [
        {"what": "heartbeats a day", "value": heartbeats, "unit": "messages"},
        {"what": "timestamps a day", "value": timestamps, "unit": "messages"},
        {"what": "directives signed anew a day", "value": directives, "unit": "messages"},
    ]
    return rows, figures


def tuf_refresh_bytes(folder: Path) -> int:
    """What is published anew when the hub refreshes its metadata and nothing was released: topics and files."""
    world = World(folder)
    for family in ("digits", "churn", "search"):
        for version in (1, 2, 3):
            world.release(f"{family}@{version}")
    before = world.repo.files()
    world.clock.advance(timedelta(hours=13).total_seconds())
    assert world.repo.refresh_online()
    changed = {name: data for name, data in world.repo.files().items() if before.get(name) != data}
    world.spoke().update(world.repo.files().get)
    return sum(MQTT_HEADER + len(topics.tuf("eu", name)) + len(data) for name, data in changed.items())


def no_op_check_in_bytes() -> int:
    """A status that says that all is as it was, of a spoke that serves one model."""
    me, now = SpokeId("frankfurt"), ManualClock().now()
    serving = Serving(
        model="digits", version=2, index=digest_of(b"i"), file=digest_of(b"f"), variant="onnx-int8", engine="onnxruntime"
    )
    status = Status(site=me.site, spoke=me.spoke, online=True, time=now, generation=17, serving=(serving,), asks_time="0" * 32)
    return MQTT_HEADER + len(topics.status(me)) + len(status.canonical())


def verify_cpu_s(folder: Path, size: int) -> float:
    """CPU seconds to verify a package whose model has so many bytes: signature, release, and every byte's hash. Best of three."""
    world = World(folder)
    source = write_model_folder(folder / "source", weights=bytes(size))
    index = pack(source, folder / "layout")
    layout = ImageLayout(folder / "layout")
    bundle = sign_package(layout, index, world.publisher)
    content = layout.path(index).read_bytes()
    world.release(str(ModelRef("digits", 1)), content, ("eu",), (), bundle, world.publisher.policy)
    released = world.spoke().update(world.fetch)
    release = verify_release(desired("digits@1", index), released, "eu", "gdpr")
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        package = open_package(layout, index)
        verify_contents(package, bundle, release, released, "eu", "gdpr", variant="onnx-int8")
        seconds.append(time.process_time() - begin)
    return min(seconds) * 100_000_000 / size
