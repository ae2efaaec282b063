"""Signed reports of an update: made of a draft, the evidence, and what is served at that moment."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from spoke_agent.server_api.client import serving_now
from spoke_agent.update.interfaces import ServingProcess
from spoke_agent.update.journal import Draft
from spoke_agent.update.update import Update
from sync.core.types import SpokeId
from sync.protocol.messages import Report, Serving, UpdateEvidence

__all__ = ["ReportWriter", "Sealer"]

Sealer = Callable[[Report], bytes]
"""Signs a report with the device key."""


@dataclass(frozen=True, slots=True)
class ReportWriter:
    """`now` dates reports: trusted time."""

    me: SpokeId
    server: ServingProcess
    seal: Sealer
    now: Callable[[], datetime]

    def write(self, update: Update, drafts: Sequence[Draft]) -> Iterator[tuple[int, bytes]]:
        """Number and envelope of each draft. Evidence goes with the version it is about."""
        serving = serving_now(self.server) or ()
        for draft in drafts:
            evidence = update.evidence if draft.index == update.desired.index else UpdateEvidence()
            yield draft.sequence, self.seal(self._report(draft, serving, evidence))

    def _report(self, draft: Draft, serving: tuple[Serving, ...], evidence: UpdateEvidence) -> Report:
        return Report(
            site=self.me.site,
            spoke=self.me.spoke,
            sequence=draft.sequence,
            nonce=secrets.token_hex(16),
            time=self.now(),
            generation=draft.generation,
            model=draft.model,
            version=draft.version,
            index=draft.index,
            previous=draft.previous,
            state=draft.state,
            reason=draft.reason,
            serving=serving,
            evidence=evidence,
        )
