"""A real server that also speaks gRPC."""

from collections.abc import Iterator

import pytest

from tests.spoke_agent.server.conftest import Running, echo_kinds, run, site
from tests.spoke_agent.server.sites import Site, echo, echo_contract, echo_golden

__all__ = ["run", "site"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`digits@1` and `echo@1` over gRPC, for tests that change nothing."""
    site = Site(tmp_path_factory.mktemp("shared") / "home")
    site.slots(champion=site.publish(1))
    kinds = echo_kinds()
    slot = site.publish(1, model="echo", proto=echo(kinds), contract=echo_contract(kinds), golden_inputs=echo_golden(kinds))
    site.slots("echo", champion=slot)
    running = Running(site, grpc_port=0)
    yield running
    running.close()
