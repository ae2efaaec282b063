"""A machine whose clock is hours off keeps its site's hours by trusted time, at every gate."""

from datetime import timedelta

import pytest

from sync.core.clock import ManualClock
from tests.spoke_agent.daemon.conftest import ME
from tests.spoke_agent.fakes import FakeServer


@pytest.mark.parametrize("setting", ["download_hours", "switch_hours"])
def test_a_wall_clock_eight_hours_off_moves_no_window(field, setting):
    """The window is 8 hours long and opens in two; by the machine's own clock it would open when it has just closed."""
    now = field.hub.clock.now()
    opens, closes = now + timedelta(hours=2), now + timedelta(hours=10)
    clock = ManualClock(now - timedelta(hours=8))
    field.server = FakeServer(field.home.slots, clock)
    components = field.start(clock=clock, **{setting: f"{opens:%H:%M}-{closes:%H:%M}"})
    trusted = components.verifier.store
    field.until(lambda: abs(trusted.now() - now) < timedelta(minutes=10))
    field.hub.want(ME, field.package(1), 1)
    field.until(lambda: components.journal.directive() is not None)
    for _ in range(9):  # an hour and a half, in steps of ten minutes
        clock.advance(600)
        components.agent.turn()
    assert "committed" not in field.hub.chain(ME)
    while field.hub.chain(ME)[-1:] != ["committed"]:
        clock.advance(60)
        components.agent.turn()
        assert trusted.now() < closes, field.hub.chain(ME)
    assert trusted.now() > opens - timedelta(minutes=1)
