from datetime import UTC, datetime

import pytest

from model_formats.spec import Requirements, VariantSpec
from spoke_agent.admission import Capacity, choose, residency, unfit
from spoke_agent.capacity import read_capacity
from spoke_agent.hours import within
from sync.types import Reason
from tests.samples.model_folder import _spec

ROOMY = Capacity(10**9, 4000, frozenset({"avx2"}), 21, frozenset({"onnxruntime"}))


def variant(**requires):
    return VariantSpec(name="v", format="onnx", precision="int8", main="m", files=("m",), requires=Requirements(**requires))


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        ({}, Reason.NONE),
        ({"opset": 22}, Reason.OPSET_UNSUPPORTED),
        ({"isa": ("avx2", "avx512_vnni")}, Reason.ISA_UNSUPPORTED),
        ({"memory_mb": 5000}, Reason.NO_MEMORY),
        ({"engines": ("openvino",)}, Reason.ENGINE_MISSING),
    ],
)
def test_the_first_unmet_requirement_is_named(requires, reason):
    assert unfit(variant(**requires), 1000, ROOMY) is reason


def test_the_best_variant_that_fits_is_chosen():
    spec = _spec("digits", 1, ["onnx-int8", "onnx-fp32"])
    assert choose(spec, {"onnx-int8": 2 * 10**9, "onnx-fp32": 5}, ROOMY) == ("onnx-fp32", Reason.NONE)
    assert choose(spec, {"onnx-int8": 2 * 10**9, "onnx-fp32": 2 * 10**9}, ROOMY) == (None, Reason.NO_SPACE)


def test_a_package_may_only_be_where_its_label_says():
    spec = _spec("digits", 1, ["onnx-int8"])
    assert residency(spec, "eu", "gdpr") is Reason.NONE
    assert residency(spec, "us", "gdpr") is Reason.ZONE_FORBIDDEN
    assert residency(spec, "eu", "ae-health") is Reason.REGIME_FORBIDDEN


def test_this_machine_can_be_measured(tmp_path):
    found = read_capacity(tmp_path, disk_reserve_mb=0, memory_reserve_mb=0)
    assert found.disk_free > 0
    assert found.memory_free_mb > 0
    assert "onnxruntime" in found.engines
    assert found.opset >= 18


@pytest.mark.parametrize(
    ("hours", "utc", "inside"),
    [
        ("22:00-06:00", "2026-01-15T21:30", True),
        ("22:00-06:00", "2026-01-15T12:00", False),
        ("22:00-06:00", "2026-07-15T20:30", True),
        ("22:00-06:00", "2026-01-15T20:30", False),
        ("09:00-17:00", "2026-01-15T08:00", True),
        (None, "2026-01-15T08:00", True),
    ],
)
def test_hours_are_local_and_know_summer_time(hours, utc, inside):
    now = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    assert within(hours, "Europe/Berlin", now) is inside
