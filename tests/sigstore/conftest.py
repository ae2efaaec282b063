from tests.hub.conftest import clock, house

__all__ = ["clock", "house"]
