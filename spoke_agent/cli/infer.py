"""`spoke infer`: batch inference over files."""

from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from model_formats.core.console import Context, emit, out, pass_context, talk

__all__ = ["infer"]


@click.command()
@click.option("--model", required=True, help="Name of the model.")
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help=".npz, .csv, .parquet, or a folder of .npy.",
)
@click.option("--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help=".npz, .csv or .parquet.")
@click.option("--adapter", help="Adapter to use; `none` for the hub's own head. Default: the one that answers callers.")
@pass_context
def infer(ctx: Context, *, model: str, source: Path, output: Path, adapter: str | None) -> None:
    """Run a file of rows through the version that answers callers, at low priority. Stopped, it goes on where it was."""
    from spoke_agent.server.offline.batch_inference import BatchResult, infer_file

    with Progress(
        "rows",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=talk,
        transient=True,
        disable=not talk.is_terminal,
    ) as bar:
        task = bar.add_task("rows", total=None)
        done = infer_file(
            ctx.home, model, source, output, adapter=adapter, progress=lambda n, rows: bar.update(task, completed=n, total=rows)
        )

    def show(result: dict[str, object]) -> None:
        resumed = f" ({done.resumed_rows} were done before)" if done.resumed_rows else ""
        head = f" with adapter {done.adapter}" if done.adapter else ""
        out.print(f"{done.rows} rows by {done.model}@{done.version}{head}{resumed} -> {done.output}")

    emit(ctx, {name: getattr(done, name) for name in BatchResult.__slots__}, show)
