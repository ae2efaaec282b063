"""`hub simulate`: a rollout document on virtual spokes, before it touches a real one."""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hub.rules.rollout_plan import RolloutPlan
from model_formats.core.console import Context, emit, out, pass_context

__all__ = ["simulate"]


def _sizes(_ctx: click.Context, _option: click.Parameter, text: str | None) -> list[int] | None:
    try:
        sizes = [int(part) for part in text.split(",")] if text else None
    except ValueError as e:
        raise click.BadParameter(f"{text!r} is not whole numbers with commas between them") from e
    if sizes and min(sizes) < 1:
        raise click.BadParameter("a ring has at least one spoke")
    return sizes


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--spokes", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True, help="Size of the virtual fleet.")
@click.option("--rings", callback=_sizes, help="Sizes of the rings, as 50,950,9000; default: named sites, and the rest for `*`.")
@click.option(
    "--loss", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="How much worse than it claims the version is."
)
@click.option("--everywhere", is_flag=True, help="The loss is everywhere; otherwise in one region of ten.")
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True, help="Different fleets to try.")
@pass_context
def simulate(ctx: Context, file: Path, spokes: int, rings: list[int] | None, loss: float, runs: int, *, everywhere: bool) -> None:
    """Run the policy in FILE by the rule that runs real rollouts, in virtual time; tell how it ends and who was exposed."""
    from hub.simulate.run import share_rings
    from hub.simulate.run import simulate as run
    from hub.simulate.spokes import SimulatedFleet

    plan = RolloutPlan.parse(file.read_bytes())
    sizes = rings or share_rings(plan.spec, spokes)
    if len(sizes) != len(plan.spec.rings):
        raise click.UsageError(f"--rings gives {len(sizes)} sizes, the document has {len(plan.spec.rings)} rings")
    regions = range(10) if everywhere else range(3, 4)
    truth = SimulatedFleet(loss={f"region-{n}": loss for n in regions})
    outcomes = [run(plan.spec, sizes, truth, seed=seed) for seed in range(runs)]
    told = {"rings": sizes, "loss": loss, "runs": [asdict(outcome) for outcome in outcomes]}
    emit(ctx, told, _show)


def _show(told: dict[str, Any]) -> None:
    for run in told["runs"]:
        hours = run["seconds"] / 3600
        out.print(f"{run['state']} after {hours:.1f} h, {run['exposed']:.2%} of the fleet exposed. {run['why']}")
    exposed = statistics.median(run["exposed"] for run in told["runs"])
    out.print(f"rings {told['rings']}; median exposure {exposed:.2%}")
