"""The `hub` program: one file a command group, imported when used."""

import sys

from model_formats.core.console import program, run

__all__ = ["group", "main"]

COMMANDS = {
    "init": "hub.cli.up:init",
    "up": "hub.cli.up:up",
    "worker": "hub.cli.worker:worker",
    "relay": "hub.cli.relay:relay",
    "model": "hub.cli.model:group",
    "rollout": "hub.cli.rollout:group",
    "spoke": "hub.cli.spoke:group",
    "bundle": "hub.cli.bundle:group",
    "receipts": "hub.cli.bundle:receipts",
    "drift": "hub.cli.drift:group",
    "federated": "hub.cli.federated:group",
    "root": "hub.cli.root:group",
    "audit": "hub.cli.audit:group",
    "token": "hub.cli.token:group",
    "simulate": "hub.cli.simulate:simulate",
    "registry": "hub.cli.registry:group",
    "backup": "hub.cli.backup:backup",
    "restore": "hub.cli.backup:restore",
    "doctor": "hub.cli.doctor:doctor",
}

group = program(
    "hub",
    "HUB_HOME",
    "~/.local/share/spokeshave/hub",
    COMMANDS,
    "Train, shave, sign and release models; decide which spoke runs what; see how they do.",
)


def main() -> None:
    """Console script."""
    sys.exit(run(group))
