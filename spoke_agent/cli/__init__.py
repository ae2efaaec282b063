"""The `spoke` program: one file a command group, imported when used."""

import sys

from model_formats.core.console import program, run

__all__ = ["group", "main"]

COMMANDS = {
    "enrol": "spoke_agent.cli.enrol:enrol",
    "run": "spoke_agent.cli.run:run",
    "agent": "spoke_agent.cli.run:agent",
    "serve": "spoke_agent.cli.serve:serve",
    "status": "spoke_agent.cli.status:status",
    "doctor": "spoke_agent.cli.status:doctor",
    "sideload": "spoke_agent.cli.sideload:group",
    "data": "spoke_agent.cli.data:group",
    "tune": "spoke_agent.cli.tune:tune",
    "adapter": "spoke_agent.cli.tune:adapter",
    "challenger": "spoke_agent.cli.challenger:group",
    "egress": "spoke_agent.cli.egress:group",
    "infer": "spoke_agent.cli.infer:infer",
}

group = program(
    "spoke",
    "SPOKE_HOME",
    "~/.local/share/spokeshave/spoke",
    COMMANDS,
    "Pull, verify, serve and adapt models at this site; report evidence, never data.",
)


def main() -> None:
    """Console script."""
    sys.exit(run(group))
