"""docs/attacks.md names a test for each attack, and those tests exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from sync.core.types import Reason

ROOT = Path(__file__).parents[2]
NAMES = """
arbitrary package
rollback
freeze
fast-forward
mix-and-match
endless data
slow retrieval
wrong recipient
replayed directive
replayed report
key below threshold
duplicate signatures by one key
unknown key
skipped root version
tampered block
poisoned block from another subscriber
swapped delta base
forged last-will
oversized message
package for another zone
denied digest in an older bundle
a spoke that claims a digest it does not serve
"""


def rows() -> list[tuple[str, str, str]]:
    """(attack, reasons, tests)."""
    lines = (ROOT / "docs" / "attacks.md").read_text().splitlines()
    table = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| ")][1:]
    return [(attack, reasons, tests) for attack, _, reasons, tests in table]


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", NAMES.strip().splitlines())
def test_the_attack_is_on_the_page(name: str) -> None:
    assert any(attack.startswith(name) for attack, _, _ in rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_its_tests_exist_and_its_reasons_are_of_the_list(row: tuple[str, str, str]) -> None:
    _, reasons, tests = row
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
    assert named
    assert not [f"{path}::{name}" for path, name in named if name not in functions(path)]
    assert set(re.findall(r"`([a-z_]+)`", reasons)) <= {*(str(r) for r in Reason), "used_delta"}
