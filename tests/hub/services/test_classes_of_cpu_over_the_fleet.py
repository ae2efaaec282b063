"""One package on several classes of CPU: one on which it is off ends nothing, and the hub shows which variant serves where."""

import anyio
import httpx
import pytest

from hub.cli import model as model_words
from hub.cli import rollout as rollout_words
from hub.cli import spoke as spoke_words
from hub.rules.access import Role
from hub.rules.rollout import RolloutState
from hub.rules.rollout_plan import RolloutPlan
from hub.services import rollout_runner, rollouts
from hub.services.cpu_classes import by_class
from hub.store.tokens import make_token
from sync.core.types import Reason, State
from sync.protocol.messages import PassedOver, Serving

PLAN = b"""
apiVersion: spokeshave/v1
kind: Rollout
metadata: {name: digits-1}
spec:
  model: digits@1
  rings: [{name: all, sites: ["*"], zones: [eu]}]
"""
OFF = PassedOver(variant="onnx-int8", reason=Reason.GOLDEN_MISMATCH)
GONE = PassedOver(variant="onnx-fp32", reason=Reason.GOLDEN_MISMATCH)
FLOAT = {"variant": "onnx-fp32", "engine": "onnxruntime", "mode": "fast"}


@pytest.fixture
def fleet(house):
    devices = [house.enrol(site, "eu", "gdpr") for site in ("lyon", "oslo", "rome", "till")]
    for device in devices:
        device.status()
    return devices


@pytest.fixture
def rolled(house, fleet):
    """Lyon serves INT8 with VNNI, Oslo on AVX2; Rome's ARM board went on to fp32; an old till can run no variant."""
    index = house.release(1, off_on={"onnx-int8": ("sse42",)})
    rollouts.apply(house.hub, RolloutPlan.parse(PLAN), "ann")
    rollout_runner.tick(house.hub)
    lyon, oslo, rome, till = fleet
    till.report(index, state=State.FAILED, reason=Reason.GOLDEN_MISMATCH, cpu_class="sse42", passed_over=(OFF, GONE))
    rollout_runner.tick(house.hub)
    assert rollouts.look(house.hub, "digits-1")[0].state is RolloutState.RUNNING
    lyon.serves(index, cpu_class="vnni", mode="fast", latency_us=90, row_us=30)
    lyon.report(index, cpu_class="vnni", variant="onnx-int8", engine="onnxruntime", mode="fast")
    oslo.serves(index, cpu_class="avx2", mode="exact", latency_us=120, row_us=80)
    oslo.report(index, cpu_class="avx2", variant="onnx-int8", engine="onnxruntime", mode="exact")
    rome.serves(index, variant="onnx-fp32", cpu_class="arm64", mode="fast", latency_us=900, row_us=700)
    rome.report(index, cpu_class="arm64", passed_over=(OFF,), **FLOAT)
    rollout_runner.tick(house.hub)
    return index


@pytest.fixture
def get(app, house):
    with house.hub.database.begin() as db:
        token = make_token(db, "viewer", frozenset({Role.VIEWER}), now=house.hub.now)[1]

    async def ask(path):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="https://hub") as client:
            return await client.get(f"/api/v1{path}", headers={"Authorization": f"Bearer {token}"})

    return lambda path: anyio.run(ask, path).json()


def test_a_till_that_can_run_no_variant_ends_nothing_for_the_others(house, rolled, get):
    assert rollouts.look(house.hub, "digits-1")[0].state is RolloutState.COMPLETED
    (ring,) = get("/rollouts/digits-1")["rings"]
    assert (ring["committed"], ring["failed"], ring["unfit"]) == (3, 0, 1)


def test_a_version_that_is_off_on_every_class_ends(house, fleet):
    index = house.release(1)
    rollouts.apply(house.hub, RolloutPlan.parse(PLAN), "ann")
    rollout_runner.tick(house.hub)
    for device, cpu_class in zip(fleet, ("vnni", "avx2", "arm64", "sse42"), strict=True):
        assert rollouts.look(house.hub, "digits-1")[0].state is RolloutState.RUNNING
        device.report(index, state=State.FAILED, reason=Reason.GOLDEN_MISMATCH, cpu_class=cpu_class, passed_over=(OFF, GONE))
        rollout_runner.tick(house.hub)
    ended = rollouts.look(house.hub, "digits-1")[0]
    assert (ended.state, ended.reason.partition(":")[0]) == (RolloutState.ABORTED, "golden_mismatch")


def words(capsys, show, value):
    """What a person reads; a line may be folded anywhere."""
    capsys.readouterr()
    show(value)
    return " ".join(capsys.readouterr().out.split())


def test_the_rollout_tells_why(rolled, get, capsys):
    told = words(capsys, rollout_words._show_why, get("/rollouts/digits-1"))
    assert "rome/main arm64 onnx-fp32 onnxruntime onnx-int8: golden_mismatch" in told
    assert "oslo/main avx2 onnx-int8 onnxruntime (exact)" in told
    assert "onnx-int8: golden_mismatch, onnx-fp32: golden_mismatch" in told


def test_the_spoke_tells_what_runs_there(rolled, get, capsys):
    told = words(capsys, spoke_words._show_one, get("/spokes/rome/main"))
    assert "digits@1 onnx-fp32 onnxruntime arm64 900 µs 700 µs" in told
    assert "committed none onnx-int8: golden_mismatch" in told


def test_the_version_tells_what_serves_where_and_what_its_evidence_says(rolled, get, capsys):
    version = get("/models/digits/1")
    assert [(m["cpu_class"], m["variant"], m["mode"], m["spokes"]) for m in version["measured"]] == [
        ("arm64", "onnx-fp32", "fast", 1),
        ("avx2", "onnx-int8", "exact", 1),
        ("vnni", "onnx-int8", "fast", 1),
    ]
    assert [(c["cpu_class"], c["variant"], c["right"]) for c in version["claimed"]] == [("sse42", "onnx-int8", False)]
    told = words(capsys, model_words._show_version, version)
    assert "sse42 onnx-int8 onnxruntime off 4.900 0.980" in told
    assert "avx2 onnx-int8 onnxruntime (exact) 1 120 µs 80 µs" in told


def serving(variant, row_us, cpu_class="avx2", mode="fast"):
    digest = "sha256:" + "0" * 64
    return Serving(
        model="digits",
        version=1,
        index=digest,
        file=digest,
        variant=variant,
        engine="onnxruntime",
        mode=mode,
        cpu_class=cpu_class,
        latency_us=None if row_us is None else 2 * row_us,
        row_us=row_us,
    )


def test_best_is_the_fastest_by_the_median_of_a_class():
    fleet = [serving("int8", t) for t in (50, 60, 1000)] + [serving("fp32", t) for t in (40, 100)] + [serving("fp32", 5, "vnni")]
    found = {(one.cpu_class, one.variant): (one.spokes, one.latency_us, one.row_us, one.best) for one in by_class(fleet)}
    assert found == {
        ("avx2", "int8"): (3, 120, 60, True),
        ("avx2", "fp32"): (2, 140, 70, False),
        ("vnni", "fp32"): (1, 10, 5, False),
    }


def test_spokes_that_do_not_say_their_class_or_time_are_never_guessed():
    (one,) = by_class([serving("int8", None), serving("int8", 5, None), serving("int8", 5, mode=None)])
    assert (one.spokes, one.latency_us, one.row_us, one.best) == (1, None, None, False)
