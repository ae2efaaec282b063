"""The command line of both programs: commands imported on use, `--json` everywhere, data on stdout, messages on stderr.

One command is one library call. A command returns a value (dict, list, Document or None); `--json` prints it as JSON, otherwise
its `show` function prints it for people. Errors print what, why and what to do, and exit with the status of who must act.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct

from model_formats.core.document import Value
from model_formats.core.errors import SpokeshaveError, public_text

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Context", "LazyGroup", "emit", "out", "pass_context", "program", "run", "table", "talk"]

out: "Console"
"""Data, for people."""
talk: "Console"
"""Progress, remarks and errors."""


def __getattr__(name: str) -> "Console":
    """`out` and `talk`, made when they are first asked for: a server has no use for rich and its memory."""
    if name not in ("out", "talk"):
        raise AttributeError(name)
    from rich.console import Console

    console = Console(stderr=name == "talk", soft_wrap=True, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _NO_EDGE
    return globals().setdefault(name, console)  # type: ignore[no-any-return]


T = TypeVar("T")

_NO_EDGE = 10_000
"""Columns of a file or a pipe: as many as it takes."""


class Context(Struct, frozen=True):
    """What every command gets: where the program's home is, and how to print."""

    home: Path
    as_json: bool


pass_context = click.make_pass_decorator(Context)


class LazyGroup(click.Group):
    """A group whose commands are imported when used, so that `spoke status` does not pay for NumPy.

    `table` maps a name to `module:attribute`.
    """

    def __init__(self, *args: Any, table: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = dict(table or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the table's order."""
        return [*self.table, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import on first use."""
        if cmd_name not in self.table:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self.table[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def program(name: str, env: str, default_home: str, commands: Mapping[str, str], text: str) -> click.Group:
    """The root group of a program: `--home` (environment `env`), `--json`, and the lazy table of commands."""

    @click.group(name=name, cls=LazyGroup, table=commands, help=text)
    @click.option("--home", type=Path, envvar=env, default=default_home, show_default=True, help="Folder of its own.")
    @click.option("--json", "as_json", is_flag=True, help="Print data as JSON (may stand anywhere).")
    @click.version_option(package_name="spokeshave")
    @click.pass_context
    def root(ctx: click.Context, *, home: Path, as_json: bool) -> None:
        ctx.obj = Context(home=home.expanduser().resolve(), as_json=as_json)

    return root


def emit(ctx: Context, value: object, show: Callable[[Any], None] | None = None) -> None:
    """Print a result: JSON with `--json`, else by `show` (or as JSON too, where there is nothing better)."""
    if ctx.as_json or show is None:
        if value is not None:
            click.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False))
    else:
        show(value)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A plain table on stdout. A terminal gets cells folded to its width; a file or a pipe, which has none, whole lines."""
    from rich.table import Table
    from rich.text import Text

    view = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        view.add_column(column, overflow="fold")
    for row in rows:
        view.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    _console("out").print(view)


def run(group: click.Group, argv: list[str] | None = None) -> int:
    """Run a program; returns the exit status. `--json` may stand anywhere."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    if as_json:
        args = ["--json", *(a for a in args if a != "--json")]
    try:
        code = group.main(
            args=args, prog_name=group.name, standalone_mode=False
        )  # a status where a command ended with `ctx.exit`
    except SpokeshaveError as e:
        return _tell(e, as_json=as_json)
    except click.ClickException as e:
        return _tell_usage(e, as_json=as_json)
    except (click.Abort, KeyboardInterrupt):
        _console("talk").print("stopped")
        return 130
    except Exception as e:  # noqa: BLE001 - a fault of ours, and its text may hold a row
        return _tell_fault(e, as_json=as_json)
    return code if isinstance(code, int) else 0


def _tell(error: SpokeshaveError, *, as_json: bool) -> int:
    if as_json:
        _tell_json(error.code, error.message, error.hint)
    else:
        from rich.text import Text

        talk = _console("talk")
        talk.print(Text.assemble((error.code, "bold red"), f": {error.message}"))
        talk.print(Text(f"  {error.hint}", style="dim"))
    return error.exit


def _tell_fault(error: Exception, *, as_json: bool) -> int:
    from model_formats.core.logging import trace_of

    click.echo(trace_of(error), err=True)
    return _tell(SpokeshaveError(public_text(error)), as_json=as_json)


def _tell_usage(error: click.ClickException, *, as_json: bool) -> int:
    if as_json:
        where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "the command"
        _tell_json("usage", error.format_message(), f"`{where} --help` tells what it takes.")
    else:
        error.show()
    return 2


def _tell_json(code: str, message: str, hint: str) -> None:
    click.echo(json.dumps({"error": code, "message": message, "hint": hint}), err=True)


def _console(name: str) -> "Console":
    console: Console = getattr(sys.modules[__name__], name)
    return console


def _plain(value: object) -> object:
    if isinstance(value, Value):
        return value.plain
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)
