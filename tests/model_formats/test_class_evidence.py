"""Classes of CPU in the build: what is tried, what a trial that ends badly says, whom the gate believes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from hub.train.runner import Trained
from model_formats.build import emulated
from model_formats.build.build import BuildResult, _warn_of_classes
from model_formats.build.class_evidence import TrialQuestion, answers, trials_of
from model_formats.build.dataset import write_rows
from model_formats.build.emulated import emulated_classes, try_emulated
from model_formats.build.model_card import card
from model_formats.build.reference_data import golden_vectors
from model_formats.build.session import FP32, INT8, BuildSession
from model_formats.build.variants import gate_on_every_class, settle
from model_formats.core.cpu_class import this_class
from model_formats.documents.evidence import ClassEvidence, Evidence, VariantEvidence
from model_formats.package.golden import Golden, GoldenMismatch, read_golden, write_golden
from model_formats.quantize.accuracy_gate import AccuracyDropRefused, judge
from model_formats.quantize.layers import prepare
from model_formats.quantize.static import StaticQdq

qemu = pytest.mark.skipif("avx2" not in emulated_classes(), reason="needs qemu-user-static, and a CPU of another class than avx2")


def test_a_build_tries_every_engine_on_this_class_and_says_so(digits: BuildResult) -> None:
    for variant in digits.evidence.variants:
        assert {one.cpu_class for one in variant.classes} == {this_class()}
        assert {one.engine for one in variant.classes if one.right} == {"onnxruntime", "openvino"}
        assert all(one.latency_ms_batch32 and one.rows == 300 and not one.emulated for one in variant.classes)
        assert variant.right_on(this_class()) is True
        assert variant.right_on("arm64") is None
    assert f"| {this_class()} | `onnx-int8` | onnxruntime |" in (digits.folder / "README.md").read_text()


def _row(worst: float | None, cpu_class: str = "avx2", **more: object) -> ClassEvidence:
    return ClassEvidence(cpu_class=cpu_class, engine="onnxruntime", score=0.9, worst=worst, **more)  # type: ignore[arg-type]


def _with(digits: BuildResult, *rows: ClassEvidence) -> Evidence:
    return digits.evidence.replace(variants=tuple(v.replace(classes=rows) for v in digits.evidence.variants))


def test_evidence_rules_out_what_fails_on_a_class_and_nothing_that_nobody_tried(digits: BuildResult) -> None:
    names = tuple(v.variant for v in digits.evidence.variants)
    bad = _with(digits, _row(4.86), _row(None, mode="exact"))
    assert bad.variants_for("avx2") == ()
    assert bad.variants_for("sse42") == names
    assert _with(digits, _row(4.86), _row(0.2, mode="exact")).variants_for("avx2") == names
    text = card(digits.spec, digits.contract, bad, None)
    assert "4.860 **off**" in text
    assert "not run" in text


@given(st.lists(st.one_of(st.none(), st.floats(0, 10))))
def test_a_variant_is_right_where_one_way_to_run_it_is(worst: list[float | None]) -> None:
    found = [_row(w) for w in worst]
    whole = VariantEvidence(
        variant="v",
        bytes=1,
        score=1,
        latency_ms_batch1=1,
        latency_ms_batch32=1,
        cpu_ms_batch32=1,
        recipe="",
        classes=tuple(found),
    )
    assert whole.right_on("avx2") is (any(w is not None and w <= 1 for w in worst) if worst else None)
    assert VariantEvidence.of_plain(whole.plain) == whole


def test_a_class_on_which_no_variant_is_right_is_named_at_the_build(bench: BuildSession, digits: BuildResult) -> None:
    _warn_of_classes(bench, _with(digits, _row(4.86), _row(0.5, "sse42")))
    assert bench.notes == ["no variant is right on avx2: spokes with such a CPU will not take this version"]


def test_evidence_of_before_classes_still_parses(digits: BuildResult) -> None:
    plain = json.loads(digits.evidence.canonical())
    for variant in plain["variants"]:
        del variant["classes"]
    old = Evidence.parse(json.dumps(plain).encode())
    assert old.variants_for("avx2") == tuple(v.variant for v in digits.evidence.variants)
    assert "Classes of CPU" not in card(digits.spec, digits.contract, old, None)


@pytest.fixture
def question(digits: BuildResult, trained: Trained, tmp_path: Path) -> TrialQuestion:
    """Both modes of ONNX Runtime on the digits with eight-bit weights, whose sums saturate, and with seven."""
    prepare(digits.folder / f"variants/{FP32}/model.onnx", tmp_path / "prepared.onnx")
    rows, files = trained.data.train.take(slice(0, 64)).inputs, {}
    for weights in ("signed-8", "signed-7"):
        files[weights] = tmp_path / f"{weights}.onnx"
        StaticQdq(rows, weights).quantize(tmp_path / "prepared.onnx", files[weights])
    golden = golden_vectors(files, read_golden(digits.folder / "golden.npz").inputs, ["logits"])
    write_golden(tmp_path / "golden.npz", golden)
    write_rows(tmp_path / "rows.npz", trained.data.held_out.take(slice(0, 64)))
    trials = tuple(t for t in trials_of(files) if t.candidate.engine == "onnxruntime")
    return TrialQuestion(trials, str(tmp_path / "golden.npz"), str(tmp_path / "rows.npz"), "classification", "logits", 5.0)


@qemu
@pytest.mark.slow
def test_eight_bits_saturate_on_avx2_where_seven_do_not(question: TrialQuestion) -> None:
    done, whole = try_emulated(question, "avx2", limit_s=200)
    found = {(t.trial.variant, t.trial.candidate.mode): t.evidence for t in done}
    assert whole
    assert set(found) == {("signed-8", "fast"), ("signed-8", "exact"), ("signed-7", "fast")}, (
        "exact is needless where fast is right"
    )
    assert not found["signed-8", "fast"].right
    assert found["signed-8", "exact"].right
    assert found["signed-7", "fast"].right
    assert all((e.cpu_class, e.emulated, e.latency_ms_batch32) == ("avx2", True, None) for e in found.values())


def _emulator(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(emulated, "EMULATOR", str(path))


def test_a_kernel_that_kills_the_process_costs_its_trial_and_no_other(
    question: TrialQuestion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _emulator(tmp_path / "emulator", "cat >/dev/null; echo 0; kill -SEGV $$", monkeypatch)
    done, whole = try_emulated(question, "avx2")
    assert whole
    assert [t.trial for t in done] == list(question.trials)
    assert {(t.evidence.worst, t.evidence.score, t.evidence.emulated, t.detail) for t in done} == {
        (None, None, True, "the process died")
    }


@pytest.mark.parametrize("script", ["exec sleep 60", "exit 1", "echo 0; exec sleep 60"])
def test_an_emulator_that_is_slow_or_does_not_start_leaves_things_untried(
    question: TrialQuestion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    _emulator(tmp_path / "emulator", script, monkeypatch)
    assert try_emulated(question, "avx2", limit_s=0.5) == ([], False)


@given(st.integers(0, 99), st.binary(max_size=20).filter(lambda b: b"\n" not in b))
def test_a_line_that_was_cut_is_no_answer(place: int, cut: bytes) -> None:
    assert list(answers([f"{place}\n".encode(), cut])) == [place]


@pytest.fixture
def bench(digits: BuildResult, trained: Trained, tmp_path: Path) -> BuildSession:
    """The digits' variants on a workbench of their own."""
    shutil.copytree(digits.folder, tmp_path / "m")
    build = BuildSession(tmp_path / "m", trained.options, trained.data, lambda _: None, point=digits.spec.adapter)
    build.recipes = {FP32: "", INT8: ""}
    return build


def test_int8_that_no_engine_gives_is_not_offered_and_fp32_ends_the_build(bench: BuildSession) -> None:
    golden = read_golden(bench.folder / "golden.npz")
    wrong = {n: changed(g, outputs={"logits": g.outputs["logits"][:, ::-1]}) for n, g in golden.variants.items()}
    settle(bench, Golden(golden.inputs, golden.outputs, variants={FP32: golden.of(FP32), INT8: wrong[INT8]}))
    assert list(bench.recipes) == [FP32]
    assert not bench.main(INT8).exists()
    assert any(
        "onnx-int8 not offered: no engine here gives what its file says: onnxruntime (fast): output 'logits'" in n
        for n in bench.notes
    )
    with pytest.raises(GoldenMismatch, match="onnx-fp32: no engine here"):
        settle(bench, Golden(golden.inputs, golden.outputs, variants=wrong))


@pytest.mark.parametrize(
    ("row", "refused"),
    [
        (_row(0.5, rows=300), True),
        (_row(4.86, rows=300), False),
        (_row(0.5, rows=64), False),
        (_row(0.5), False),
        (_row(0.5, rows=300).replace(score=0.985), False),
    ],
)
def test_the_gate_judges_the_worst_right_way_on_any_class(bench: BuildSession, row: ClassEvidence, refused: bool) -> None:
    bench.classes = {FP32: (), INT8: (row,)}
    gate = judge(0.99, 0.99, 0.01)
    if refused:
        with pytest.raises(AccuracyDropRefused, match=r"onnx-int8 loses 0\.0900 on avx2 \(onnxruntime, fast\)"):
            gate_on_every_class(bench, gate, 0.99)
        verdict = gate_on_every_class(bench, gate.replace(overridden_by="Sam"), 0.99)
        assert (verdict.passed, verdict.overridden_by, verdict.drop) == (False, "Sam", 0.09)
    else:
        assert gate_on_every_class(bench, gate, 0.99).passed


_MAKE = """
import sys
from pathlib import Path
from model_formats.build.dataset import read_rows
from model_formats.package.golden import write_golden
from model_formats.quantize.static import StaticQdq
from model_formats.build.reference_data import golden_vectors
prepared, rows, out = map(Path, sys.argv[1:])
rows = read_rows(rows).inputs
StaticQdq(rows).quantize(prepared, out / "int8.onnx")
few = {n: a[:16] for n, a in rows.items()}
write_golden(out / "golden.npz", golden_vectors({"onnx-fp32": prepared, "onnx-int8": out / "int8.onnx"}, few, ["logits"]))
"""


@pytest.mark.skipif("sse42" not in emulated_classes(), reason="needs qemu-user-static")
@pytest.mark.slow
def test_the_int8_file_and_its_golden_vectors_are_the_same_bytes_whatever_cpu_makes_them(
    digits: BuildResult, trained: Trained, tmp_path: Path
) -> None:
    prepare(digits.folder / f"variants/{FP32}/model.onnx", tmp_path / "prepared.onnx")
    write_rows(tmp_path / "rows.npz", trained.data.train.take(slice(0, 32)))
    made = []
    for name, emulator in (("host", []), ("sse42", [emulated.EMULATOR, "-cpu", "Nehalem"])):
        (tmp_path / name).mkdir()
        files = [str(tmp_path / n) for n in ("prepared.onnx", "rows.npz", name)]
        subprocess.run([*emulator, sys.executable, "-c", _MAKE, *files], check=True, timeout=280, capture_output=True)
        made.append([(tmp_path / name / n).read_bytes() for n in ("int8.onnx", "golden.npz")])
    assert made[0] == made[1]


def test_golden_outputs_are_coarser_than_any_last_bit(digits: BuildResult) -> None:
    for one in read_golden(digits.folder / "golden.npz").variants.values():
        for array in one.outputs.values():
            steps = array / 2.0 ** (np.floor(np.log2(np.abs(array).max())) - 16)
            np.testing.assert_array_equal(steps, np.rint(steps))


def test_the_tolerance_is_the_models_own_and_catches_saturation(question: TrialQuestion) -> None:
    golden = read_golden(Path(question.golden)).of("signed-7")
    assert 0.01 <= golden.rtol <= 0.03, "a saturated digits CNN is off by .15 of the largest logit"
