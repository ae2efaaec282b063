"""How `spoke status --plan` prints what lies ahead."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from model_formats.core.console import out

if TYPE_CHECKING:
    from spoke_agent.daemon.plan import ModelPlan
    from spoke_agent.update.steps import Step

__all__ = ["show_plan"]

_TEXTS: Mapping[str, str] = {
    "wait_for_hours": "wait {wait} for {setting}",
    "fetch_metadata": "fetch the package's index and documents",
    "admit": "check whether it may and can run here, and choose a variant",
    "free_candidate": "free the candidate's slot of any other variant",
    "fetch_variant": "fetch the files of {variant} that are not here",
    "verify": "check the release, the publisher's signature and every file",
    "set_candidate": "make {variant} the candidate",
    "compare": "load it, and compare its answers with the champion's; callers do not see them",
    "switch": "make it the champion: it answers callers",
    "observe": "watch errors, crashes and labelled rows; go back when they are bad",
    "commit": "end its probation",
    "go_back": "make the last good version the champion again",
    "clear_candidate": "empty the candidate's slot",
    "retire": "stop serving the model",
    "follow_slots": "have the server follow",
    "collect": "remove files that nothing needs",
}


def show_plan(plans: "Sequence[ModelPlan]") -> None:
    """One numbered line for each step."""
    for plan in plans:
        if not plan.ahead:
            out.print(f"{plan.model}: nothing lies ahead", markup=False)
            continue
        out.print(f"{plan.model}, if all goes well:", markup=False)
        lines = [(state, step) for state in plan.ahead for step in state.steps]
        for number, (state, step) in enumerate(lines, 1):
            out.print(f"  {number:2}. {plan.model}@{state.version} {state.state}: {_text(step)}", markup=False)


def _text(step: "Step") -> str:
    wait = _duration(step.wait_s or 0.0)
    return _TEXTS[step.kind].format(wait=wait, setting=step.setting, variant=step.variant or "the chosen variant")


def _duration(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
