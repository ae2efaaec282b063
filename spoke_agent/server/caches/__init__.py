"""What callers say again and again is read once: HTTP heads by their bytes, JSON requests by their words.

Both caches are here behind one switch, so that each can be left out and measured (`tests/bench/serving`).
"""

from collections.abc import Sequence
from typing import Literal, get_args

from msgspec import Struct

from spoke_agent.server.caches.head_cache import HeadCache
from spoke_agent.server.caches.request_templates import RequestTemplates

__all__ = ["CACHES", "Cache", "RequestCaches"]

Cache = Literal["heads", "templates"]
CACHES: tuple[Cache, ...] = get_args(Cache)


class RequestCaches(Struct, frozen=True):
    """The caches of one server."""

    heads: HeadCache
    templates: RequestTemplates

    @classmethod
    def of(cls, names: Sequence[Cache]) -> "RequestCaches":
        """With these caches; one that is not named stays empty, and all it would know is read the long way."""
        return cls(
            heads=HeadCache() if "heads" in names else HeadCache(most=0),
            templates=RequestTemplates() if "templates" in names else RequestTemplates(most=0),
        )
