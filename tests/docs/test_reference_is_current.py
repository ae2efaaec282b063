"""Docs are tests: what the code has, the reference pages say."""

from pathlib import Path

import pytest

from docs.generate import REASONS, ROOMS, pages
from hub.rules.audit_action import AuditAction
from model_formats.core.errors import SpokeshaveError
from sync.core.types import Reason

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("name", ["audit.md", "commands.md", "errors.md", "log.md", "reasons.md", "settings.md"])
def test_the_generated_page_is_what_the_code_says(generated: dict[str, str], name: str) -> None:
    assert (REFERENCE / name).read_text() == generated[name], "run `make docs`"


def test_every_reason_is_explained() -> None:
    assert set(REASONS) == set(Reason)


def test_every_audit_action_is_explained_and_used() -> None:
    sources = [p.read_text() for p in ROOT.joinpath("hub").rglob("*.py")]
    for action in AuditAction:
        assert any(f"AuditAction.{action.name}" in text for text in sources), action


def test_error_codes_are_unique_and_tell_what_to_do(generated: dict[str, str]) -> None:
    classes = [c for c in _all(SpokeshaveError) if c.__module__.split(".")[0] in ROOMS]
    assert len({c.code for c in classes}) == len(classes), sorted(c.code for c in classes)
    for cls in classes:
        code = cls.code
        assert cls.__doc__, code
        assert cls.hint.strip(), code
        assert code.replace("_", "").isalnum(), code


def _all(cls: type[SpokeshaveError]) -> list[type[SpokeshaveError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _all(sub))]
