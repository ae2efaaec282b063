"""Every line that hub and spoke write into their log is an event of the list, with the fields that the list names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_formats.core.log_event import LogEvent

ROOT = Path(__file__).parents[2]
ROOMS = ("model_formats", "sync", "provisioning", "hub", "spoke_agent")
ELSEWHERE = {"spoke_agent/server/http/access_log.py", "model_formats/core/logging.py"}
"""JSON, one line a request; and faults of the process, whose events `test_every_event_is_logged_somewhere` reads."""
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """(place, call) of everything that is logged."""
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name not in ELSEWHERE and _logs(node.func):
                yield f"{name}:{node.lineno}", node


def _logs(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
        return False
    return bool(re.match(r"_?log(ger)?$|logging\b|.*getLogger", ast.unparse(function.value)))


def _event(call: ast.Call) -> LogEvent | None:
    found = re.fullmatch(r"LogEvent\.(\w+)", ast.unparse(call.args[0])) if len(call.args) == 1 else None
    return LogEvent[found[1]] if found else None


def _fields(call: ast.Call) -> set[str]:
    extra = next((k.value for k in call.keywords if k.arg == "extra"), None)
    return {ast.literal_eval(key) for key in extra.keys if key is not None} if isinstance(extra, ast.Dict) else set()


CALLS = list(calls())


def test_calls_are_found_at_all() -> None:
    assert len(CALLS) > 20


@pytest.mark.parametrize(("place", "call"), CALLS, ids=[place for place, _ in CALLS])
def test_what_is_logged_is_an_event_of_the_list_with_its_fields(place: str, call: ast.Call) -> None:
    event = _event(call)
    assert event is not None, f"{place}: log one event of LogEvent, and what it carries as extra"
    assert _fields(call) == set(event.fields), place


def test_every_event_is_logged_somewhere() -> None:
    faults = (ROOT / "model_formats" / "core" / "logging.py").read_text()
    logged = {_event(call) for _, call in CALLS} | {LogEvent[name] for name in re.findall(r"LogEvent\.(\w+)", faults)}
    assert set(LogEvent) - logged == set()


@pytest.mark.parametrize("event", LogEvent)
def test_names_are_subject_and_event(event: LogEvent) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", event)
    assert event.name == event.replace(".", "_").upper()
