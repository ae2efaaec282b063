"""A class name means one thing in the whole project, and its words are plain English, the field's, or in terminology.md."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("model_formats", "sync", "provisioning", "hub", "spoke_agent")
PLAIN = Path(__file__).with_name("plain_words.txt")
ONCE_OURS = frozenset({"belief", "course", "desk", "door", "lone", "misfit", "platter", "road", "shelf", "slim", "twin"})
"""Words that names had before and that no reader of another company could guess."""


@cache
def classes() -> dict[str, list[str]]:
    """Public class name -> files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(ROOT)))
    return found


@cache
def exported() -> dict[str, str]:
    """Public name, as `__all__` lists it -> a file that exports it."""
    found = {}
    for path in (p for room in ROOMS for p in (ROOT / room).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
                found.update(dict.fromkeys(ast.literal_eval(node.value), str(path.relative_to(ROOT))))
    return found


def words_of(name: str) -> list[str]:
    """`HubContext` -> hub, context."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", name)]


def test_a_class_name_is_used_once() -> None:
    assert {name: files for name, files in classes().items() if len(files) > 1} == {}


def test_every_word_of_a_public_name_is_plain_or_defined() -> None:
    terms = (ROOT / "docs" / "terminology.md").read_text()
    defined = {word for term in re.findall(r"^\| \*\*(.+?)\*\*", terms, re.MULTILINE) for word in words_of(term)}
    known = defined | set(PLAIN.read_text().split())
    names = {name: files[0] for name, files in classes().items()} | exported()
    odd = {f"{word} ({name}, {file})" for name, file in names.items() for word in words_of(name) if word not in known}
    assert not odd, "define these in docs/terminology.md, or add plain words of the field to plain_words.txt"


@pytest.mark.parametrize("word", sorted(ONCE_OURS))
def test_words_that_only_we_used_are_gone(word: str) -> None:
    assert word not in PLAIN.read_text().split()
    assert not [name for name in {*exported(), *classes()} if word in words_of(name)]


@pytest.mark.parametrize("room", ROOMS)
def test_one_loose_file_at_most_at_the_top_of_a_room(room: str) -> None:
    loose = {p.name for p in (ROOT / room).glob("*.py")} - {"__init__.py"}
    assert len(loose) <= 1
