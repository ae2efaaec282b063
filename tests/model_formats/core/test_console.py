"""What people and programs see of both command lines."""

import json
import subprocess
import sys

import click
import pytest

from model_formats.core.console import program, run, table
from model_formats.core.errors import OperatorError


@click.command()
@click.option("--lines", type=int)
def fail(lines: int) -> None:
    """Is refused."""
    raise OperatorError("tensor [n] is missing", hint="pip install 'spokeshave[grpc]' :key:")


COMMANDS = program("demo", "DEMO_HOME", "~/demo", {"fail": "tests.model_formats.core.test_console:fail"}, "A program.")


def test_brackets_in_messages_and_hints_are_shown_and_not_taken_for_markup(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(COMMANDS, ["fail"]) == 2
    told = capfd.readouterr().err
    assert "tensor [n] is missing" in told
    assert "pip install 'spokeshave[grpc]' :key:" in told


def test_a_wrong_option_is_json_as_well_where_json_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(COMMANDS, ["fail", "--lines", "many", "--json"]) == 2
    told = capfd.readouterr()
    assert told.out == ""
    error = json.loads(told.err)
    assert error["error"] == "usage"
    assert "'many' is not a valid integer" in error["message"]
    assert "`demo fail --help`" in error["hint"]


def test_a_table_that_goes_into_a_file_loses_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    row = ("2026-11-24T12:33:15", "model-breast-cancer", "serial " + "3240381d7e83" * 20, "[eu]")
    table(("time", "what", "details", "zones"), [row])
    assert capfd.readouterr().out.splitlines()[1].split() == " ".join(row).split()


def test_a_line_of_the_log_says_what_the_event_carries() -> None:
    program = (
        "import logging; from model_formats.core.logging import log_to_stderr; log_to_stderr();"
        "logging.getLogger('tuf').info('quiet'); log = logging.getLogger('hub.app.hub_process');"
        "log.info('said', extra={'port': 1});"
        "log.warning('upkeep.failed', extra={'part': 'renewal', 'code': 'hub_unreachable'})"
    )
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stderr
    assert told.rstrip().endswith("hub.app.hub_process WARNING upkeep.failed part=renewal code=hub_unreachable")
    assert "hub.app.hub_process INFO said port=1" in told
    assert "quiet" not in told
