"""A site opened from its home folder: identity, stores, server client and tuner, wired in one place."""

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from provisioning.identity.identity import Identity
from spoke_agent.server_api.client import ControlClient
from spoke_agent.site.home import SpokeHome
from sync.core.clock import Clock, SystemClock
from sync.store import BlobStore

if TYPE_CHECKING:
    from spoke_agent.adapters.store import AdapterStore
    from spoke_agent.data.store import DataStore
    from spoke_agent.tuning.tuner import Tuner

__all__ = ["SiteContext"]


class SiteContext:
    """Each part is opened (and its code imported) when it is first asked for; `close` closes what was opened."""

    def __init__(self, home: SpokeHome, identity: Identity, clock: Clock) -> None:
        self.home, self.identity, self.clock = home, identity, clock

    @classmethod
    def open(cls, home: Path, *, clock: Clock | None = None) -> Self:
        """The site of an enrolled spoke. Raises NotEnrolled."""
        return cls(SpokeHome(home), Identity.load(home), clock or SystemClock())

    @cached_property
    def store(self) -> BlobStore:
        """The blobs of packages."""
        return BlobStore(self.home.store)

    @cached_property
    def server(self) -> ControlClient:
        """The client of the serving process."""
        return ControlClient(self.home.control_socket)

    @cached_property
    def data(self) -> "DataStore":
        """The encrypted rows. Raises DataKeyLost, SiteKeyUnavailable; asking again tries again."""
        from spoke_agent.data.store import open_data

        return open_data(self.home.root, regime=self.identity.regime, now=lambda: self.clock.now().timestamp())

    @cached_property
    def adapters(self) -> "AdapterStore":
        """What was fitted here, signed with the device key."""
        from spoke_agent.adapters.store import AdapterStore

        signer = self.identity.signer()
        return AdapterStore(self.home.adapters, signer=signer, key=signer.public_key)

    @cached_property
    def tuner(self) -> "Tuner":
        """Fits and switches adapters. Raises what `data` raises."""
        from spoke_agent.tuning.tuner import Tuner

        return Tuner(
            self.home.root,
            blobs=self.store,
            data=self.data,
            adapter_store=self.adapters,
            clock=self.clock,
            server=self.server,
        )

    def close(self) -> None:
        """Close the files that were opened."""
        for name in ("data", "server"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
