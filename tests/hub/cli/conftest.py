"""A real hub: HTTPS, Mosquitto, loops; and the command line against it."""

import json

import pytest

from hub.app.hub_process import HubServer
from hub.cli import group
from hub.config.home import HubHome
from hub.config.settings import HubSettings
from hub.context import found
from model_formats.core.console import run


class Line:
    """`line("spoke", "list")` -> (exit status, parsed stdout, parsed stderr)."""

    def __init__(self, home, capfd):
        self.home, self._capfd = home, capfd

    def __call__(self, *args, as_json=True):
        self._capfd.readouterr()
        status = run(group, ["--home", str(self.home), *map(str, args), *(["--json"] if as_json else [])])
        told = self._capfd.readouterr()
        return status, json.loads(told.out) if as_json and told.out.strip() else told.out, told.err

    def ok(self, *args):
        status, value, error = self(*args)
        assert status == 0, error
        return value


@pytest.fixture
def home(tmp_path):
    found(tmp_path / "hub", HubSettings())
    return HubHome(tmp_path / "hub")


@pytest.fixture
def server(home):
    with HubServer(home, HubSettings(tick_s=0.2)) as running:
        yield running


@pytest.fixture
def line(home, capfd):
    return Line(home.root, capfd)
