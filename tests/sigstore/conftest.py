from tests.hub.conftest import clock, founded, house

__all__ = ["clock", "founded", "house"]
