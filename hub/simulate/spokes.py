"""Virtual spokes: how long they take, how often they are offline, and how a version really performs there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hub.rules.rollout import SpokeView
from hub.rules.rollout_plan import RolloutSpec
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import UpdateEvidence

__all__ = ["SimulatedFleet", "VirtualSpoke", "make_fleet"]


@dataclass(frozen=True, slots=True)
class SimulatedFleet:
    """The true state of fleet and version, which the simulated hub does not know. Times in seconds.

    `loss` is by how much the version is worse than it claims, by region; regions without an entry get what was claimed.
    """

    claim: float = 0.95
    loss: Mapping[str, float] = field(default_factory=dict)
    champion: float = 0.95
    away: float = 0.1
    """Share of spokes that are offline when their turn comes."""
    away_for_s: float = 6 * 3600
    fails: float = 0.01
    """Share of updates that fail for a reason of the device (full disk, cut line)."""
    labelled: float = 0.3
    """Share of spokes where people label rows."""
    labels: int = 40
    """Labelled rows there during probation."""
    transfer_s: float = 120.0


@dataclass(slots=True)
class VirtualSpoke:
    """One spoke. `truth` of it is drawn once, so that two policies meet the same fleet."""

    id: SpokeId
    region: str
    back: float
    """Until when it is away."""
    takes: float
    breaks: bool
    draws: int
    """Labelled rows right, were it to run the version."""
    champion_draws: int
    labels: int
    assigned: float | None = None
    reverted: float | None = None
    _seen: tuple[float | None, float, SpokeView] | None = None

    def view(self, spec: RolloutSpec, now: float) -> SpokeView:
        """What a hub would know of it. (The answer is kept until it changes: a fleet asks a million times.)"""
        if self._seen is None or self._seen[0] != self.assigned or now >= self._seen[1]:
            self._seen = (self.assigned, *self._look(spec, now))
        return self._seen[2]

    def _look(self, spec: RolloutSpec, now: float) -> tuple[float, SpokeView]:
        """Until when the answer holds, and the answer."""
        view = SpokeView(self.id, now >= self.back, self.assigned)
        if now < self.back:
            return self.back, view
        if self.assigned is None:
            return math.inf, view
        arrived = max(self.assigned, self.back) + self.takes
        if now < arrived:
            return arrived, replace(view, state=State.STAGING)
        if self.breaks:
            return math.inf, replace(view, state=State.FAILED, reason=Reason.TRANSFER_FAILED)
        if now < self.ends(spec):
            return self.ends(spec), replace(view, state=State.PROBATION)
        return math.inf, replace(view, state=State.COMMITTED, serving=True, evidence=self._evidence())

    def ends(self, spec: RolloutSpec) -> float:
        """When its probation is over."""
        return max(self.assigned or 0.0, self.back) + self.takes + spec.probation.soak_s

    def served(self, spec: RolloutSpec, now: float) -> bool:
        """Whether the version has answered anybody there by now."""
        begun = max(self.assigned or 0.0, self.back) + self.takes
        return self.assigned is not None and not self.breaks and now >= begun and (self.reverted is None or begun < self.reverted)

    def _evidence(self) -> UpdateEvidence:
        return UpdateEvidence(
            labelled=self.labels,
            labelled_correct=self.draws,
            champion_labelled=self.labels,
            champion_labelled_correct=self.champion_draws,
        )


def make_fleet(count: int, truth: SimulatedFleet, *, regions: int = 10, seed: int = 0) -> list[VirtualSpoke]:
    """Draw a fleet. The spoke itself is blind here (it commits whatever its labels say): the hub's rule stands alone."""
    random = np.random.default_rng(seed)
    fleet = []
    for number in range(count):
        region = f"region-{number % regions}"
        labels = truth.labels if random.random() < truth.labelled else 0
        accuracy = max(0.0, truth.claim - truth.loss.get(region, 0.0))
        fleet.append(
            VirtualSpoke(
                id=SpokeId(f"site-{number}"),
                region=region,
                back=float(random.exponential(truth.away_for_s)) if random.random() < truth.away else 0.0,
                takes=float(random.gamma(4.0, truth.transfer_s / 4.0)),
                breaks=bool(random.random() < truth.fails),
                draws=int(random.binomial(labels, accuracy)),
                champion_draws=int(random.binomial(labels, truth.champion)),
                labels=labels,
            )
        )
    return fleet
