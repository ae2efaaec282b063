"""Classes of CPU: what flags say, and what they say when they are another machine's."""

import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_formats.core.cpu_class import CpuClass, _flags, classify, this_class
from model_formats.core.runtime import Candidate, candidates

FLAGS = ("sse4_2", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp")


@pytest.mark.parametrize(
    ("machine", "flags", "wanted"),
    [
        ("x86_64", "sse4_2", "sse42"),
        ("x86_64", "sse4_2 avx2", "avx2"),
        ("AMD64", "sse4_2 avx2 avx_vnni", "vnni"),
        ("x86_64", "sse4_2 avx2 avx512f avx512_vnni", "vnni"),
        ("x86_64", "sse4_2 avx2 avx512f", "avx2"),
        ("x86_64", "", "unknown"),
        ("aarch64", "asimd", "arm64"),
        ("arm64", "asimd asimddp", "arm64_dotprod"),
        ("riscv64", "avx2", "unknown"),
    ],
)
def test_flags_name_a_class(machine: str, flags: str, wanted: CpuClass) -> None:
    assert classify(machine, frozenset(flags.split())) == wanted


@given(st.text(max_size=8), st.frozensets(st.one_of(st.sampled_from(FLAGS), st.text(max_size=6))))
def test_any_flags_name_one_class(machine: str, flags: frozenset[str]) -> None:
    assert classify(machine, flags) in {"sse42", "avx2", "vnni", "arm64", "arm64_dotprod", "unknown"}


@given(st.frozensets(st.sampled_from(FLAGS)), st.sampled_from(FLAGS))
def test_more_flags_never_make_a_lesser_class(flags: frozenset[str], more: str) -> None:
    order = ["unknown", "sse42", "avx2", "vnni"]
    assert order.index(classify("x86_64", flags | {more})) >= order.index(classify("x86_64", flags))


def test_a_list_that_the_cpu_contradicts_is_another_machines() -> None:
    listed = frozenset({"sse4_2", "avx2", "avx_vnni", "avx512f", "avx512_vnni"})
    emulated = {"sse4_2": True, "avx2": True, "avx512f": False}
    assert classify("x86_64", _flags(emulated, listed)) == "avx2"
    assert classify("x86_64", _flags(emulated, frozenset({"sse4_2", "avx2", "avx_vnni"}))) == "vnni"
    assert classify("x86_64", _flags({}, listed)) == "vnni"


@pytest.mark.skipif(not shutil.which("qemu-x86_64-static") or this_class() == "unknown", reason="needs qemu-user-static")
@pytest.mark.parametrize(("model", "wanted"), [("Nehalem", "sse42"), ("Haswell", "avx2")])
def test_an_emulated_cpu_is_of_its_own_class_not_of_its_hosts(model: str, wanted: str) -> None:
    code = "from model_formats.core.cpu_class import this_class; print(this_class())"
    done = subprocess.run(
        ["qemu-x86_64-static", "-cpu", model, sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == wanted, done.stderr


def test_fast_candidates_come_first_and_openvino_has_no_exact_one() -> None:
    assert candidates(["onnxruntime", "openvino"]) == (
        Candidate("onnxruntime"), Candidate("openvino"), Candidate("onnxruntime", "exact"),
    )  # fmt: skip
    assert candidates([]) == ()
