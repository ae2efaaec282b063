"""What the pages say can be followed: links lead somewhere, commands and options exist, documents are accepted."""

import re
from pathlib import Path

import click
import pytest

from examples.demo.story import STEPS
from hub.rules.rollout_plan import RolloutPlan

ROOT = Path(__file__).parents[2]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
WRITTEN_BY_HAND = [page for page in PAGES if page.parent.name != "reference"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", WRITTEN_BY_HAND, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    for line in _commands(page.read_text()):
        _follow(line)


def test_the_rollout_page_shows_a_whole_document_that_is_accepted() -> None:
    documents = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "rollouts.md").read_text(), re.DOTALL)
    assert documents
    for text in documents:
        RolloutPlan.parse(text)


def test_every_file_that_contributing_names_is_there() -> None:
    """In a code span with a folder or a suffix; `*` stands for any."""
    for name in re.findall(r"`([a-z_]+/[\w/.*]+|[a-z_]+\.txt)`", (ROOT / "CONTRIBUTING.md").read_text()):
        assert list(ROOT.glob(name)) or name.startswith("build/"), name


def test_the_readme_shows_steps_that_the_demo_has() -> None:
    titles = {f"{number:2}. {title}" for number, (_, title, _) in enumerate(STEPS, 1)}
    shown = re.findall(r"^[ \d]\d\. .+", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(shown) >= 5
    assert set(shown) <= titles


def _commands(text: str) -> list[str]:
    """Lines in shell blocks, and code spans, that call one of our programs."""
    blocks = "\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    spans = re.findall(r"`((?:hub|spoke) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.split("#")[0].strip() for line in blocks.splitlines()]
    return [line for line in [*lines, *spans] if re.match(r"(hub|spoke) [a-z]", line)]


def _follow(line: str) -> None:
    from hub.cli import group as hub
    from spoke_agent.cli import group as spoke

    words = line.split()
    found: list[click.Command] = [{"hub": hub, "spoke": spoke}[words[0]]]
    for word in words[1:]:
        here = found[-1]
        if not isinstance(here, click.Group) or not re.fullmatch(r"[a-z|]+", word):
            break
        commands = [here.get_command(click.Context(here), name) for name in word.split("|")]
        assert all(commands), f"{line!r}: there is no {word!r}"
        found.append(commands[0])  # type: ignore[arg-type]
    known = {name for command in found for parameter in command.params for name in parameter.opts} | {"--help", "--version"}
    for option in re.findall(r"(?<!\S)(--[a-z-]+)", line):
        assert option in known, f"{line!r}: there is no option {option}"
