from tests.hub.cli.conftest import home, line, server
from tests.hub.conftest import clock, founded, house

__all__ = ["clock", "founded", "home", "house", "line", "server"]
