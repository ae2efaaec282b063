"""The commands of the agent's local socket: status, and applying a sideloaded bundle."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from spoke_agent.daemon.local_socket import Op, Tell
from spoke_agent.daemon.sideload import SideloadUnfinished, take_in, taken_in, tell_new
from spoke_agent.daemon.wiring import AgentComponents
from spoke_agent.update.journal import as_line
from sync.sideload.bundle import Applied

__all__ = ["commands_of"]

LOOK_S = 0.05
LIMIT_S = 3600.0


def commands_of(components: AgentComponents) -> Mapping[str, Op]:
    """The questions this agent answers."""

    def state(_question: Mapping[str, Any], _tell: Tell) -> object:
        return components.inbox.ask(lambda: _state(components))

    def sideload(question: Mapping[str, Any], tell: Tell) -> object:
        return _sideload(components, Path(question["path"]), tell)

    return {"state": state, "sideload": sideload}


def _state(components: AgentComponents) -> dict[str, object]:
    controller = components.agent.controller
    models = sorted(components.journal.updates())
    return {
        "connected": components.agent.connected,
        "offline": components.agent.offline,
        "last_refusal": components.agent.last_refusal,
        "waiting": {model: why for model in models if (why := controller.waiting_for(model))},
        "arriving": {model: {"bytes": held, "of": size} for model, (held, size) in dict(components.arrivals.files).items()},
    }


def _sideload(components: AgentComponents, path: Path, tell: Tell) -> dict[str, object]:
    def begin(applied: Applied) -> int:
        seen = max((entry.id for entry in components.journal.history(1)), default=0)
        components.agent.follow(applied.directive)
        return seen

    def look(seen: int) -> tuple[int, bool]:
        return tell_new(components.journal, seen, lambda entry: tell(as_line(entry))), components.agent.controller.idle()

    def progress(done: int, total: int) -> None:
        tell({"bytes": done, "of": total})

    with components.arrivals.fetching("bundle"):  # what was taken in belongs to no update before it is followed
        applied = take_in(components, path, progress=progress, on_loop=components.inbox.ask)
        seen, idle = components.inbox.ask(lambda: begin(applied)), False
    deadline = time.monotonic() + LIMIT_S
    while not idle:
        if time.monotonic() > deadline:
            raise SideloadUnfinished("the update is still under way")
        time.sleep(LOOK_S)
        seen, idle = components.inbox.ask(partial(look, seen))
    return asdict(taken_in(applied))
