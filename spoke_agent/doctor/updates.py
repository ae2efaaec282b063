"""An update that ended badly."""

from model_formats.core.check_result import CheckResult
from spoke_agent.site.home import SpokeHome
from spoke_agent.update.journal import Journal
from spoke_agent.update.update import Update
from sync.core.types import Reason, State

_BAD = frozenset({State.FAILED, State.REJECTED, State.ROLLED_BACK})
_REMEDY = {
    Reason.NO_SPACE: "Free some space, then have the hub ask again (a new rollout).",
    Reason.NO_MEMORY: "Close other programs or add memory, then have the hub ask again (a new rollout).",
    Reason.ENGINE_MISSING: "Install the engine that the version needs (`pip install spokeshave[openvino]`).",
    Reason.GOLDEN_MISMATCH: "No variant gives the right answers on this CPU: tell the model's author its class (`spoke status`).",
    Reason.LOAD_FAILED: "No variant can be run on this machine: `spoke serve` logs why; tell the model's author.",
    Reason.CPU_CLASS_UNSUPPORTED: "The package says that it is not right on this class of CPU: its author has to add a variant.",
    Reason.TRANSFER_FAILED: "Check the line to the hub, or bring the version by `spoke sideload apply`.",
}
_BENIGN = frozenset({Reason.REVERTED_BY_HUB, Reason.SUPERSEDED, Reason.CANCELLED})


def check(home: SpokeHome) -> CheckResult | None:
    """The newest that did."""
    journal = Journal(home.journal)
    try:
        found = [u for u in journal.updates().values() if isinstance(u, Update) and u.state in _BAD]
    finally:
        journal.close()
    for update in found:
        if update.reason not in _BENIGN:
            issue = f"{update.model}@{update.desired.version} {update.state}: {update.reason}{_passed(update)}"
            return CheckResult.failed(
                "updates", issue, _REMEDY.get(update.reason, "The hub has the report; last-good is served.")
            )
    return None


def _passed(update: Update) -> str:
    """Which variants were tried or skipped on the way."""
    told = ", ".join(f"{p.variant}: {p.reason}" for p in update.evidence.passed_over)
    return f" ({told}; CPU class {update.evidence.cpu_class})" if told else ""
