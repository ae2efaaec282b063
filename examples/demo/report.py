"""The demo's report: steps, claims and figures, on the terminal and in build/demo/report.json."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(soft_wrap=True, highlight=False)


class ClaimFailed(Exception):
    """Something the story says did not happen."""


@dataclass
class Step:
    """One step of the story: what it claims, and what it measured."""

    name: str
    title: str
    ok: bool = False
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def claim(self, holds: object, text: str) -> None:
        """Say something that can be checked; the demo fails when it does not hold."""
        if not holds:
            raise ClaimFailed(text)
        console.print(f"   [green]✓[/] {text}")

    def tell(self, text: str) -> None:
        """Say what is going on."""
        console.print(f"   [dim]·[/] {text}")

    def figure(self, **values: Any) -> None:
        """Record measurements."""
        self.figures.update(values)


class Report:
    """Collects the steps and writes them out, whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Step]:
        """Run one step; on a failed claim or an error it is recorded as failed, and the story ends."""
        step = Step(name, title)
        self.steps.append(step)
        console.print(f"\n[bold]{len(self.steps):2}. {title}[/]")
        start = time.monotonic()
        try:
            yield step
            step.ok = True
        except ClaimFailed as e:
            console.print(f"   [bold red]✗ {e}[/]")
            raise
        finally:
            step.seconds = round(time.monotonic() - start, 2)
            self.write()

    @property
    def ok(self) -> bool:
        """Whether every claim so far held."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def write(self) -> None:
        """Write report.json."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        steps = [{"name": s.name, "ok": s.ok, "figures": {"seconds": s.seconds, **s.figures}} for s in self.steps]
        self.path.write_text(json.dumps({"steps": steps, "ok": self.ok}, indent=2, default=str) + "\n")

    def summary(self) -> None:
        """The closing table."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column, justify in (("step", "left"), ("s", "right"), ("", "left"), ("figures", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for s in self.steps:
            figures = ", ".join(f"{k} {_short(v)}" for k, v in s.figures.items() if not isinstance(v, list | dict))
            table.add_row(s.name, f"{s.seconds:.1f}", "[green]ok[/]" if s.ok else "[red]failed[/]", figures)
        console.print()
        console.print(table)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
