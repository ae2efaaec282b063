"""How a blob gets to a spoke, against bare paho and a bare GET on the same broker and server: `python -m tests.bench.transfer`.

Every end is a process of its own; broker and HTTPS are Mosquitto and uvicorn with the TLS that the product uses. Roads and their
peers take turns. A round gives a ratio, of two runs that met the same machine, and the middle one counts; the ratio of the best
runs of each, which one lucky run decides, is told beside it. The raw GET writes the same file and syncs it at the end, in one
stream, unchecked. Writes build/bench/transfer.json. Options: MiB per blob (64), rounds (7), spokes (50), MiB of the large blob
(1024; 0 leaves it out).
"""

import contextlib
import hashlib
import json
import multiprocessing as mp
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from hub.config.settings import HubSettings
from model_formats.core.types import digest_of_file
from provisioning.brokers.mosquitto import Broker
from provisioning.identity.ca import DeviceCA
from provisioning.identity.identity import device_csr
from sync.bus.mqtt import MqttBus
from sync.core.tls import TlsFiles, client_context, https_context
from sync.core.types import SpokeId
from sync.store import BLOCK_SIZE, BlobStore, MemoryStore
from sync.transfer import BlobSender, BlockReceiver
from sync.transfer.fetch import fetch_blob
from sync.trust.keys import device_signer, save_signer
from tests.bench import steady

MIB = 1 << 20
CONTEXT = mp.get_context("spawn")


class House:
    """A broker, a hub's store, and certificates for all."""

    def __init__(self, folder: Path, spokes: int) -> None:
        self.folder = folder
        now = datetime.now(UTC)
        ca = DeviceCA.create(folder / "ca", now=now)
        self.names = [SpokeId(f"site-{i}") for i in range(spokes)]
        for spoke in self.names:
            signer = device_signer()
            save_signer(self.spoke_tls(spoke).key, signer)
            self.spoke_tls(spoke).certificate.write_bytes(ca.sign_csr(device_csr(signer), spoke, now=now))
        ca.issue_client(folder / "tls", "hub", now=now)
        self.server_tls = ca.issue_server(folder / "tls", ["localhost", "127.0.0.1"], now=now)
        self.broker = Broker(folder / "broker", self.server_tls)
        self.broker.start([(spoke, "eu") for spoke in self.names])
        self.hub_store = BlobStore(folder / "hub")

    def spoke_tls(self, spoke: SpokeId) -> TlsFiles:
        folder = self.folder / "identities" / spoke.username
        return TlsFiles(self.folder / "tls" / "ca.crt", folder / "device.crt", folder / "device.key")

    def hub_tls(self) -> TlsFiles:
        return TlsFiles(*(self.folder / "tls" / name for name in ("ca.crt", "hub.crt", "hub.key")))

    def blob(self, mib: int) -> tuple[str, int]:
        """A blob of random bytes in the hub's store, and its block list beside it."""
        path = self.folder / f"blob-{mib}"
        hashes = []
        with path.open("wb") as file:
            for _ in range(mib * MIB // BLOCK_SIZE):
                block = os.urandom(BLOCK_SIZE)
                hashes.append(hashlib.sha256(block).hexdigest())
                file.write(block)
        digest = digest_of_file(path)
        path.replace(self.hub_store.path(digest))
        (self.folder / f"{digest[7:]}.blocks").write_text(json.dumps(hashes))
        return digest, mib * MIB


def hashes_of(folder: Path, digest: str) -> list[bytes]:
    return [bytes.fromhex(text) for text in json.loads((folder / f"{digest[7:]}.blocks").read_text())]


# ---- the ends, each in its own process ----------------------------------------------------------------------------------


def hub_end(folder: str, port: int, tls: TlsFiles, ready: Any, stop: Any, told: Any, gather_s: float) -> None:
    """Our hub: answers wants until stopped, then tells what it sent."""
    bus = MqttBus("localhost", port, "hub", tls)
    bus.connect()
    sender = BlobSender(bus, BlobStore(Path(folder) / "hub"), gather_s=gather_s)
    sender.start()
    before = rss_mib()
    ready.set()
    stop.wait()
    sender.stop()
    bus.close()
    told.put({"bytes": sender.stats.bytes, "wants": sender.stats.wants, "rss_growth_mib": peak_mib() - before})


def spoke_end(
    folder: str,
    port: int,
    tls: TlsFiles,
    me: SpokeId,
    blob: tuple[str, int],
    start: Any,
    told: Any,
    *,
    progress: Any = None,
    in_memory: bool = False,
    index: tuple[str, int] | None = None,
) -> None:
    """Our spoke: receives one blob into a store of its own on disk, after a small one (`index`) when told."""
    digest, size = blob
    hashes = hashes_of(Path(folder), digest)
    store = MemoryStore() if in_memory else BlobStore(Path(folder) / "spokes" / me.site)
    bus = MqttBus("localhost", port, me.username, tls)
    bus.connect()
    before = rss_mib()
    start.wait()
    if index is not None:
        BlockReceiver(bus, "eu", me, store).receive(*index)
    begin = time.perf_counter()
    tell = None if progress is None else lambda held, size: setattr(progress, "value", held)
    received = BlockReceiver(bus, "eu", me, store).receive(digest, size, hashes, progress=tell)
    seconds = time.perf_counter() - begin
    bus.close()
    told.put(
        {
            "spoke": me.site,
            "seconds": seconds,
            "received": received,
            "rss_growth_mib": peak_mib() - before,
            "cpu_s": time.process_time(),
        }
    )


def many_spokes_end(
    folder: str,
    port: int,
    files: list[tuple[SpokeId, TlsFiles]],
    blob: tuple[str, int],
    index: tuple[str, int],
    start: Any,
    told: Any,
) -> None:
    """Several spokes as threads of one process, with their stores in memory: one disk under fifty spokes is no fleet."""
    threads = [
        threading.Thread(
            target=spoke_end, args=(folder, port, tls, me, blob, start, told), kwargs={"in_memory": True, "index": index}
        )
        for me, tls in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def raw_client(name: str, port: int, tls: TlsFiles) -> paho.Client:
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5)
    client.tls_set_context(client_context(tls))
    up = threading.Event()
    client.on_connect = lambda *args: up.set()
    client.connect("localhost", port)
    client.loop_start()
    assert up.wait(10)
    return client


def raw_subscriber(port: int, tls: TlsFiles, topic: str, size: int, start: Any, told: Any) -> None:
    """Bare paho: counts bytes until all are here."""
    client = raw_client("raw", port, tls)
    done, got = threading.Event(), [0]

    def arrived(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        got[0] += len(message.payload)
        if got[0] >= size:
            done.set()

    client.on_message = arrived
    subscribed = threading.Event()
    client.on_subscribe = lambda *args: subscribed.set()
    client.subscribe(topic, 0)
    assert subscribed.wait(10)
    start.set()
    begin = time.perf_counter()
    done.wait(120)
    told.put({"seconds": time.perf_counter() - begin, "received": got[0]})
    client.disconnect()
    client.loop_stop()


def raw_publisher(port: int, tls: TlsFiles, path: str, topic: str, start: Any) -> None:
    """Bare paho: reads the file and publishes it, 32 blocks ahead of the socket at most."""
    client = raw_client("raw-hub", port, tls)
    start.wait()
    ahead: list[paho.MQTTMessageInfo] = []
    with Path(path).open("rb") as file:
        while block := file.read(BLOCK_SIZE):
            ahead.append(client.publish(topic, block, 0))
            if len(ahead) >= 32:
                ahead.pop(0).wait_for_publish(10)
    for info in ahead:
        info.wait_for_publish(10)
    client.disconnect()
    client.loop_stop()


def https_end(folder: str, tls: TlsFiles, port: Any, ready: Any) -> None:
    """The hub's registry behind uvicorn and TLS."""
    import socket

    import uvicorn
    from fastapi import FastAPI

    from hub.registry.routes import router, unsafe_allow_all
    from hub.registry.store import RegistryStore

    app = FastAPI()
    app.include_router(router(RegistryStore(Path(folder) / "registry"), unsafe_allow_all))
    listening = socket.create_server(("127.0.0.1", 0))
    port.value = listening.getsockname()[1]
    config = uvicorn.Config(app, ssl_certfile=str(tls.certificate), ssl_keyfile=str(tls.key), log_level="warning", lifespan="off")
    threading.Timer(0.5, ready.set).start()
    uvicorn.Server(config).run(sockets=[listening])


def https_spoke(folder: str, url: str, tls: TlsFiles, blob: tuple[str, int], name: str, told: Any) -> None:
    """Our fetch into a store on disk."""
    digest, size = blob
    hashes = hashes_of(Path(folder), digest)
    store = BlobStore(Path(folder) / "spokes" / name)
    with httpx.Client(verify=https_context(tls), trust_env=False) as client:
        client.get(url.rpartition("/blobs/")[0].rpartition("/")[0] + "/")
        begin = time.perf_counter()
        fetch_blob(client, url, digest, size, store, hashes=hashes)
        told.put({"seconds": time.perf_counter() - begin})


def https_raw(folder: str, url: str, tls: TlsFiles, blob: tuple[str, int], name: str, told: Any) -> None:
    """A bare GET: into a file that is synced at the end, or (name `nowhere`) thrown away."""
    with httpx.Client(verify=client_context(tls), trust_env=False) as client:
        client.get(url.rpartition("/blobs/")[0].rpartition("/")[0] + "/")
        with (Path("/dev/null") if name == "nowhere" else Path(folder) / f"{name}.raw").open("wb") as file:
            begin = time.perf_counter()
            with client.stream("GET", url) as answer:
                got = sum(file.write(chunk) for chunk in answer.iter_bytes(64 * 1024))
            file.flush()
            if name != "nowhere":
                os.fsync(file.fileno())
            told.put({"seconds": time.perf_counter() - begin})
        assert got == blob[1]


# ---- the measurements ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub_running(house: House, gather_s: float = HubSettings().block_gather_s) -> Iterator[dict[str, Any]]:
    """Our hub in its process; what it tells at the end is in the dictionary afterwards."""
    ready, stop, told = CONTEXT.Event(), CONTEXT.Event(), CONTEXT.Queue()
    process = CONTEXT.Process(
        target=hub_end, args=(str(house.folder), house.broker.port, house.hub_tls(), ready, stop, told, gather_s)
    )
    process.start()
    assert ready.wait(60)
    found: dict[str, Any] = {}
    yield found
    stop.set()
    found.update(told.get(timeout=30))
    process.join()


def ours(house: House, blob: tuple[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    me = house.names[0]
    BlobStore(house.folder / "spokes" / me.site).delete(blob[0])
    with hub_running(house) as hub:
        start, told = CONTEXT.Event(), CONTEXT.Queue()
        process = CONTEXT.Process(
            target=spoke_end, args=(str(house.folder), house.broker.port, house.spoke_tls(me), me, blob, start, told)
        )
        process.start()
        start.set()
        spoke = told.get(timeout=600)
        process.join()
    return spoke, hub


def raw(house: House, blob: tuple[str, int]) -> dict[str, Any]:
    start, told = CONTEXT.Event(), CONTEXT.Queue()
    port, topic = house.broker.port, f"ss/v1/zone/eu/blob/{blob[0]}/0"
    ends = [
        CONTEXT.Process(target=raw_subscriber, args=(port, house.spoke_tls(house.names[0]), topic, blob[1], start, told)),
        CONTEXT.Process(target=raw_publisher, args=(port, house.hub_tls(), str(house.hub_store.path(blob[0])), topic, start)),
    ]
    ends[1].start()
    ends[0].start()
    found = told.get(timeout=180)
    for end in ends:
        end.join()
    return dict(found)


def fleet(house: House, blob: tuple[str, int], threads: int = 10) -> dict[str, Any]:
    """All spokes at once; several to a process, since a machine has but two cores."""
    port, folder = house.broker.port, str(house.folder)
    index = house.hub_store.put(b"an index"), 8
    with hub_running(house) as hub:
        start, told = CONTEXT.Event(), CONTEXT.Queue()
        groups = [house.names[i : i + threads] for i in range(0, len(house.names), threads)]
        processes = [
            CONTEXT.Process(
                target=many_spokes_end,
                args=(folder, port, [(me, house.spoke_tls(me)) for me in group], blob, index, start, told),
            )
            for group in groups
        ]
        for process in processes:
            process.start()
        time.sleep(2 + len(house.names) / 10)  # all connected
        begin = time.perf_counter()
        start.set()
        spokes = [told.get(timeout=300) for _ in house.names]
        seconds = time.perf_counter() - begin
        for process in processes:
            process.join()
    assert all(spoke["received"] == blob[1] for spoke in spokes)
    return {"seconds": seconds, "hub_bytes": hub["bytes"], "wants": hub["wants"], "copies": hub["bytes"] / (blob[1] + index[1])}


def killed(house: House, blob: tuple[str, int]) -> dict[str, Any]:
    """kill -9 in the middle, then once more: what came twice."""
    me = house.names[1]
    with hub_running(house) as hub:
        start, told, held = CONTEXT.Event(), CONTEXT.Queue(), CONTEXT.Value("q", 0)
        arguments = (str(house.folder), house.broker.port, house.spoke_tls(me), me, blob, start, told)
        first = CONTEXT.Process(target=spoke_end, args=arguments, kwargs={"progress": held})
        first.start()
        start.set()
        while held.value < blob[1] // 2:
            time.sleep(0.001)
        first.kill()
        first.join()
        reached, told = held.value, CONTEXT.Queue()
        second = CONTEXT.Process(target=spoke_end, args=(*arguments[:-1], told))
        second.start()
        received = told.get(timeout=120)["received"]
        second.join()
    return {
        "received_twice_mib": (reached + received - blob[1]) / MIB,
        "hub_sent_over_size_mib": (hub["bytes"] - blob[1]) / MIB,
    }


def https(house: House, blob: tuple[str, int], rounds: int) -> dict[str, list[float]]:
    from hub.registry.store import RegistryStore

    store = RegistryStore(house.folder / "registry")
    store.put_blob("bench", house.hub_store.path(blob[0]).read_bytes())
    port, ready = CONTEXT.Value("i", 0), CONTEXT.Event()
    server = CONTEXT.Process(target=https_end, args=(str(house.folder), house.server_tls, port, ready), daemon=True)
    server.start()
    assert ready.wait(60)
    url = f"https://localhost:{port.value}/v2/bench/blobs/{blob[0]}"
    tls, found = house.spoke_tls(house.names[0]), {"ours": [], "raw": [], "nowhere": []}  # type: dict[str, list[float]]
    for i in range(rounds):
        for name, target, arguments in (
            ("nowhere", https_raw, (str(house.folder), url, tls, blob, "nowhere")),
            ("raw", https_raw, (str(house.folder), url, tls, blob, f"raw-{i}")),
            ("ours", https_spoke, (str(house.folder), url, tls, blob, f"https-{i}")),
        ):
            told = CONTEXT.Queue()
            process = CONTEXT.Process(target=target, args=(*arguments, told))
            process.start()
            found[name].append(blob[1] / 1e6 / told.get(timeout=120)["seconds"])
            process.join()
    server.kill()
    server.join()
    return found


def main(mib: int = 64, rounds: int = 7, spokes: int = 50, large: int = 1024) -> dict[str, Any]:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory(prefix="spokeshave-bench-") as name:
        house = House(Path(name), spokes)
        try:
            result = _measure(house, mib, rounds, large)
        finally:
            house.broker.stop()
    out = Path("build/bench")
    out.mkdir(parents=True, exist_ok=True)
    (out / "transfer.json").write_text(json.dumps(result, indent=2) + "\n")
    for row in result["rows"]:
        print(f"{row['what']:<42}{row['value']:>12.3f} {row['unit']}")
    for key, value in result["ratios"].items():
        print(f"{key:<48}{value:.3f}")
    return result


def _measure(house: House, mib: int, rounds: int, large: int) -> dict[str, Any]:
    blob = house.blob(mib)
    speeds: dict[str, list[float]] = {"blocks over MQTT": [], "bare paho": []}
    spoke: dict[str, Any] = {}
    for _ in range(rounds):
        speeds["bare paho"].append(blob[1] / 1e6 / raw(house, blob)["seconds"])
        spoke, _hub = ours(house, blob)
        speeds["blocks over MQTT"].append(blob[1] / 1e6 / spoke["seconds"])
    web = https(house, blob, rounds)
    speeds |= {
        "ranges over HTTPS": web["ours"],
        "bare GET into a synced file": web["raw"],
        "bare GET into nowhere": web["nowhere"],
    }
    best = {what: max(values) for what, values in speeds.items()}
    rows = [_row(what, value, "MB/s") for what, value in best.items()]
    ratios = {}
    for key, road, peer in (
        ("single_spoke_mb_s_over_raw_pubsub", "blocks over MQTT", "bare paho"),
        ("https_mb_s_over_raw_get", "ranges over HTTPS", "bare GET into a synced file"),
    ):
        ratios[key] = median(ours / raw for ours, raw in zip(speeds[road], speeds[peer], strict=True))
        rows.append(_row(f"{road}: best over best", best[road] / best[peer], ""))
    small = house.blob(20)
    many = fleet(house, small)
    rows += [_row(f"{len(house.names)} spokes, 20 MiB: time", many["seconds"], "s"), _row("wants", many["wants"], "messages")]
    ratios[f"hub_bytes_for_{len(house.names)}_spokes_over_one_copy"] = many["copies"]
    crash = killed(house, blob)
    rows.append(_row("hub sent more after kill -9", crash["hub_sent_over_size_mib"], "MiB"))
    ratios["resume_waste_mib"] = crash["received_twice_mib"]
    if large:
        big = house.blob(large)
        spoke, hub = ours(house, big)
        rows.append(_row(f"{large} MiB: time", spoke["seconds"], "s"))
        ratios["spoke_rss_growth_mib_for_1gib"] = spoke["rss_growth_mib"]
        ratios["hub_rss_growth_mib_for_1gib"] = hub["rss_growth_mib"]
    more_rows, figures = steady.measure(house.folder)
    return {"name": "transfer", "rows": rows + more_rows, "ratios": ratios | figures}


def _row(what: str, value: float, unit: str) -> dict[str, Any]:
    return {"what": what, "value": value, "unit": unit}


def rss_mib() -> float:
    return _status("VmRSS")


def peak_mib() -> float:
    return _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
