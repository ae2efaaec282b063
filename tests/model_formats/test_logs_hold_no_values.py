"""A traceback, an event and a thread that dies tell kind and place of other people's exceptions, never their text."""

import subprocess
import sys

import pytest

from model_formats.core.errors import OperatorError, public_text

CANARY = "canary-9f31"
BEGIN = (
    "import asyncio, logging, threading\nfrom model_formats.core.logging import log_loop_fault, log_to_stderr\nlog_to_stderr()\n"
)
FAULT = f"raise ValueError('could not convert {CANARY}')"
PROGRAMS = {
    "an exception that nobody catches": FAULT,
    "one in a thread": f"def work():\n  {FAULT}\nt = threading.Thread(target=work); t.start(); t.join()",
    "one that is logged": f"try:\n  {FAULT}\nexcept ValueError:\n  logging.getLogger('x').exception('capture.fault')",
    "one as an argument": f"try:\n  {FAULT}\nexcept ValueError as e:\n  logging.error('fault %s', e, extra=dict(error=e))",
    "one behind ours": (
        "from model_formats.core.errors import OperatorError\n"
        f"try:\n  try:\n    {FAULT}\n  except ValueError as e:\n    raise OperatorError('ours') from e\n"
        "except OperatorError:\n  logging.getLogger('x').exception('fault')"
    ),
    "one in a destructor": f"class A:\n  def __del__(self):\n    {FAULT}\na = A(); del a",
    "one in a task": (
        f"async def work():\n  {FAULT}\n"
        "async def main():\n  asyncio.get_running_loop().set_exception_handler(log_loop_fault)\n"
        "  asyncio.ensure_future(work()); await asyncio.sleep(0); import gc; gc.collect(); await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_the_text_of_an_exception_is_not_written(case: str) -> None:
    said = subprocess.run([sys.executable, "-c", BEGIN + PROGRAMS[case]], capture_output=True, text=True, check=False).stderr
    assert "ValueError" in said
    assert CANARY not in said


def test_a_command_that_fails_by_our_fault_says_where_and_not_with_what() -> None:
    program = (
        "import click, sys\nfrom model_formats.core.console import program, run\n"
        "group = program('demo', 'DEMO_HOME', '.', {}, 'x')\n"
        f"@group.command()\ndef work():\n  {FAULT}\n"
        "sys.exit(run(group, ['work', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "in work" in done.stderr
    assert '"error": "internal"' in done.stderr
    assert CANARY not in done.stderr


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OperatorError("a setting is wrong"), "a setting is wrong"),
        (FileNotFoundError(2, "No such file", "/etc/x"), "No such file: /etc/x"),
        (KeyError(CANARY), "a fault of kind KeyError"),
        (OSError(CANARY), "a fault of kind OSError"),
    ],
)
def test_what_may_be_said_of_an_exception(error: Exception, text: str) -> None:
    assert public_text(error) == text
