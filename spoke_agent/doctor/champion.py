"""A champion that does not answer, because it does not load on this machine."""

from model_formats.core.check_result import CheckResult
from model_formats.core.cpu_class import this_class
from spoke_agent.server_api.client import ControlClient
from spoke_agent.server_api.errors import ServerUnreachable
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.slots import read_slots


def check(home: SpokeHome) -> CheckResult | None:
    """Compare what should answer with what does. A server that is away is the business of another check."""
    client = ControlClient(home.control_socket, timeout_s=5)
    try:
        answers = {s.model: s for s in client.serving()}
    except ServerUnreachable:
        return None
    for model, model_slots in sorted(read_slots(home.slots).models.items()):
        found, champion = answers.get(model), model_slots.champion
        if champion is None or (found is not None and found.index == champion.index):
            continue
        instead = f"{model}@{found.version} answers" if found else "nothing answers"
        issue = f"{model}@{champion.version} ({champion.variant}) is not loaded on this CPU (class {this_class()}); {instead}"
        remedy = (
            "If the server has just started, ask again. Its log says why; a running agent brings a variant that fits, if any."
        )
        return CheckResult.failed("champion", issue, remedy)
    return None
