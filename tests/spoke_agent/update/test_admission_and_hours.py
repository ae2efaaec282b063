from dataclasses import replace
from datetime import UTC, datetime

import pytest

from model_formats.documents.evidence import ClassEvidence
from model_formats.documents.package_spec import Requirements, VariantSpec
from spoke_agent.site.time_window import OpeningHours
from spoke_agent.update.admission import Capacity, Choice, choose, residency, unfit
from spoke_agent.update.capacity import read_capacity
from sync.core.clock import ManualClock
from sync.core.types import Reason
from sync.protocol.messages import PassedOver
from tests.samples.model_folder import _evidence, _spec

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
    evidence = _evidence(["onnx-int8", "onnx-fp32"], {})
    found = choose(spec, evidence, {"onnx-int8": 2 * 10**9, "onnx-fp32": 5}, ROOMY)
    assert found == Choice("onnx-fp32", Reason.NONE, (PassedOver(variant="onnx-int8", reason=Reason.NO_SPACE),))
    found = choose(spec, evidence, {"onnx-int8": 2 * 10**9, "onnx-fp32": 2 * 10**9}, ROOMY)
    assert (found.variant, found.reason) == (None, Reason.NO_SPACE)


OFF_ON_AVX2 = {"onnx-int8": ("avx2",), "onnx-fp32": ()}
OFF_HERE = {"onnx-int8": Reason.GOLDEN_MISMATCH}


@pytest.mark.parametrize(
    ("off_on", "here", "off", "wanted"),
    [
        (OFF_ON_AVX2, {"cpu_class": "avx2"}, {}, ("onnx-fp32", Reason.NONE)),
        (OFF_ON_AVX2, {"cpu_class": "arm64"}, {}, ("onnx-int8", Reason.NONE)),
        (OFF_ON_AVX2, {"cpu_class": "unknown"}, {}, ("onnx-int8", Reason.NONE)),
        (OFF_ON_AVX2, {"cpu_class": "avx2", "memory_free_mb": -1}, {}, (None, Reason.NO_MEMORY)),
        ({"onnx-int8": ("avx2",), "onnx-fp32": ("avx2",)}, {"cpu_class": "avx2"}, {}, (None, Reason.CPU_CLASS_UNSUPPORTED)),
        ({}, {}, OFF_HERE, ("onnx-fp32", Reason.NONE)),
        ({}, {}, OFF_HERE | {"onnx-fp32": Reason.LOAD_FAILED}, (None, Reason.GOLDEN_MISMATCH)),
        ({"onnx-fp32": ("avx2",)}, {"cpu_class": "avx2"}, OFF_HERE, (None, Reason.GOLDEN_MISMATCH)),
    ],
)
def test_a_variant_that_is_off_here_by_evidence_or_by_trial_is_passed_over(off_on, here, off, wanted):
    names = ["onnx-int8", "onnx-fp32"]
    found = choose(_spec("digits", 1, names), _evidence(names, off_on), dict.fromkeys(names, 5), replace(ROOMY, **here), off)
    assert (found.variant, found.reason) == wanted
    assert [p.variant for p in found.passed_over] == names[: names.index(wanted[0]) if wanted[0] else 2]


def test_evidence_of_an_engine_that_is_not_here_says_nothing():
    evidence, here = _evidence(["onnx-int8"], {"onnx-int8": ("avx2",)}), replace(ROOMY, cpu_class="avx2")
    spec = _spec("digits", 1, ["onnx-int8"])
    both = replace(here, engines=frozenset({"openvino", "onnxruntime"}))
    row = ClassEvidence(cpu_class="avx2", engine="openvino", score=0.98, worst=0.5)
    right = evidence.replace(variants=(evidence.variants[0].replace(classes=(*evidence.variants[0].classes, row)),))
    assert choose(spec, right, {"onnx-int8": 5}, here).reason is Reason.CPU_CLASS_UNSUPPORTED
    assert choose(spec, right, {"onnx-int8": 5}, both).variant == "onnx-int8"


@pytest.mark.parametrize(("emulated", "variant"), [(True, "onnx-int8"), (False, None)])
def test_what_fell_in_an_emulator_may_stand_on_a_real_cpu(emulated, variant):
    row = ClassEvidence(cpu_class="arm64", engine="onnxruntime", score=None, worst=None, emulated=emulated)
    evidence = _evidence(["onnx-int8"])
    evidence = evidence.replace(variants=(evidence.variants[0].replace(classes=(row,)),))
    found = choose(_spec("digits", 1, ["onnx-int8"]), evidence, {"onnx-int8": 5}, replace(ROOMY, cpu_class="arm64"))
    assert found.variant == variant


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
        ("09:00-09:00", "2026-01-15T03:00", True),
        (None, "2026-01-15T08:00", True),
    ],
)
def test_hours_are_local_and_know_summer_time(hours, utc, inside):
    now = datetime.fromisoformat(utc).replace(tzinfo=UTC)
    assert (OpeningHours(hours, "Europe/Berlin", ManualClock(now)).wait() == 0) is inside
