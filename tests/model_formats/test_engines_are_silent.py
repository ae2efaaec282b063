"""Telemetry is off in every process of ours, and what an engine says of a request stays inside of it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_formats.core.runtime import InputRefused
from model_formats.core.telemetry_off import SWITCHES
from model_formats.runtimes.select import open_session
from tests.network.words import write_words

REPOSITORY = Path(__file__).parents[2]
ROOMS = ("model_formats", "sync", "provisioning", "hub", "spoke_agent")
ENGINES = {"onnxruntime", "openvino", "nncf", "openvino_telemetry"}
PLANTED = 7_461_938_205


@pytest.mark.parametrize("room", ROOMS)
def test_importing_any_room_switches_telemetry_off_for_it_and_its_children(room: str) -> None:
    program = (
        f"import {room}, os, subprocess, sys\n"
        "child = subprocess.run([sys.executable, '-c', 'import os; print(dict(os.environ))'], capture_output=True, text=True)\n"
        "print(eval(child.stdout) == dict(os.environ), {n: os.environ.get(n) for n in sys.argv[1:]})"
    )
    before, line = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}, [sys.executable, "-c", program, *SWITCHES]
    done = subprocess.run(line, capture_output=True, text=True, env=before, cwd=REPOSITORY)
    assert done.stdout.strip() == f"True {SWITCHES}", done.stderr


def test_no_module_imports_an_engine_but_the_one_that_switches_it_off_first() -> None:
    found = []
    for file in (file for room in ROOMS for file in (REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            found += [f"{file.relative_to(REPOSITORY)}: {n}" for n in names if n.partition(".")[0] in ENGINES]
    assert found == []


def test_openvino_and_nncf_find_no_telemetry_package() -> None:
    program = (
        "from model_formats.core.engine_imports import import_nncf, import_openvino\n"
        "import_openvino(), import_nncf()\n"
        "import sys; print(sorted(n for n, m in sys.modules.items() if n.startswith('openvino_telemetry') and m))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


def test_a_telemetry_package_that_was_imported_before_us_sends_nothing_any_more() -> None:
    program = (
        "from openvino_telemetry import Telemetry\n"
        "import socket; socket.getaddrinfo = None; sent = []\n"
        "Telemetry.send_event = lambda *a, **k: sent.append(a)\n"
        "import model_formats\n"
        "Telemetry.send_event(None, 'mo', 'version', '1'); print(sent)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr


def test_onnx_runtime_has_no_log_and_its_text_is_not_in_the_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own text is `indices element out of data bounds, idx=7461938205 must be within ...`."""
    session = open_session(write_words(tmp_path / "words") / "words.onnx")
    ids = np.full((2, 6), PLANTED, np.int64)
    with pytest.raises(InputRefused) as refused:
        session.run({"ids": ids})
    assert "ids [2, 6]" in refused.value.message
    assert str(PLANTED) not in refused.value.message
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("inputs", [{}, {"ids": np.zeros((2, 5), np.int64)}, {"ids": np.zeros((2, 6), np.float32)}])
def test_inputs_that_do_not_fit_are_the_callers_fault(tmp_path: Path, inputs: dict[str, np.ndarray]) -> None:
    session = open_session(write_words(tmp_path / "words") / "words.onnx")
    with pytest.raises(InputRefused):
        session.run(inputs)
