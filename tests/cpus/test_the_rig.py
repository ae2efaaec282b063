"""The rig runs what it says it runs, the children of a program too, and says what it lacks."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cpus.machines import X86, Machine
from tests.cpus.rig import Rig, RunEnded

TWO = """
import subprocess, sys
from model_formats.core.cpu_class import this_class
print(this_class())
child = "from model_formats.core.cpu_class import this_class; print(this_class())"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout.strip())
"""


@pytest.mark.parametrize("machine", X86, ids=lambda m: m.name)
def test_a_program_and_its_children_run_on_the_class(machine: Machine, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    if why := rig.lacks(machine):
        pytest.skip(why)
    assert rig.run(machine, "-c", TWO).split() == [machine.name, machine.name]


def test_an_emulator_that_is_not_there_is_named(tmp_path: Path) -> None:
    machine = replace(X86[0], emulator="qemu-of-no-one")
    assert Rig(tmp_path).lacks(machine) == "qemu-of-no-one is not installed (Debian package qemu-user-static)"


def test_an_instruction_that_the_class_lacks_ends_the_program_by_its_signal(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    if why := rig.lacks(X86[0]):
        pytest.skip(why)
    ud2 = "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\x0f\\x0b'); ctypes.CFUNCTYPE(None)("
    ud2 += "ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    with pytest.raises(RunEnded, match="signal 4"):
        rig.run(X86[0], "-c", ud2)
