"""Decides which alerts hold now, from the records of the hub. Pure."""

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import ClassVar, Literal

from hub.rules.fleet_drift import FleetDrift, Pattern
from hub.rules.rollout import RolloutState
from hub.store.rollouts import KeptRollout
from model_formats.core.document import Document, Value
from model_formats.core.types import AwareDatetime, Digest, Name
from sync.protocol.egress import PerfEstimate

__all__ = ["Alert", "DegradedSite", "RetrainTrigger", "drift_alerts", "retrain_trigger", "rollout_alerts"]

AlertType = Literal["drift.alarm", "drift.retrain", "rollout.aborted"]


class Alert(Value):
    """One alert. The same fact has the same id, so that it is sent once."""

    id: str
    type: AlertType
    since: AwareDatetime
    title: str
    words: tuple[str, ...]
    labels: dict[str, str]


class DegradedSite(Value):
    """A site where drift and a loss of accuracy agree."""

    site: Name
    spoke: Name
    evidence: int
    estimate: PerfEstimate


class RetrainTrigger(Document):
    """A reason to train a new version: made only where drift agrees with labels or with a valid estimate. It starts nothing."""

    max_bytes: ClassVar[int] = 1 << 20

    kind: Literal["retrain-trigger"] = "retrain-trigger"
    schema_: Literal[1] = 1
    model: Name
    version: int
    index: Digest
    pattern: Pattern
    since: AwareDatetime
    claim_percent: int
    """Accuracy that the package claims, in whole percent."""
    sites: tuple[DegradedSite, ...]
    moved: tuple[str, ...]
    """Features that moved at those sites."""
    words: tuple[str, ...]


def drift_alerts(views: Iterable[FleetDrift]) -> list[Alert]:
    """One for each version with an alarm; one more where a new version should be trained."""
    found = []
    for view in views:
        alarmed = [s for s in view.sites if s.level == "alarm"]
        if not alarmed:
            continue
        since, labels = (
            min(s.since for s in alarmed),
            {"model": view.model, "version": str(view.version), "pattern": view.pattern},
        )
        title = f"{view.model}@{view.version}: drift at {len(alarmed)} of {len(view.sites)} sites"
        found.append(_alert("drift.alarm", since, title, view.words, labels))
        if view.retrain:
            found.append(_alert("drift.retrain", since, f"{view.model}@{view.version}: train a new version", view.words, labels))
    return found


def retrain_trigger(view: FleetDrift, claim: float | None) -> RetrainTrigger | None:
    """The document behind `drift.retrain`; None where drift and loss do not agree."""
    hurt = [s for s in view.sites if s.level == "alarm" and s.estimate is not None and s.estimate.valid]
    if not view.retrain or claim is None or not hurt:
        return None
    return RetrainTrigger(
        model=view.model,
        version=view.version,
        index=view.index,
        pattern=view.pattern,
        since=min(s.since for s in hurt),
        claim_percent=round(100 * claim),
        sites=tuple(
            DegradedSite(site=s.site, spoke=s.spoke, evidence=s.evidence, estimate=s.estimate) for s in hurt if s.estimate
        ),
        moved=tuple(sorted({m.feature for s in hurt for m in s.moved})),
        words=view.words,
    )


def rollout_alerts(rollouts: Iterable[KeptRollout]) -> list[Alert]:
    """One for each rollout that was aborted."""
    return [
        _alert(
            "rollout.aborted",
            datetime.fromtimestamp(kept.changed, UTC),
            f"rollout {kept.plan.name} was aborted",
            (kept.reason,),
            {"rollout": kept.plan.name, "model": kept.plan.spec.ref.name, "version": str(kept.plan.spec.ref.version)},
        )
        for kept in rollouts
        if kept.state is RolloutState.ABORTED
    ]


def _alert(kind: AlertType, since: datetime, title: str, words: tuple[str, ...], labels: dict[str, str]) -> Alert:
    same = "\n".join([kind, since.isoformat(), *(f"{k}={v}" for k, v in sorted(labels.items()))])
    return Alert(
        id=f"msg_{hashlib.sha256(same.encode()).hexdigest()[:24]}",
        type=kind,
        since=since,
        title=title,
        words=words,
        labels=labels,
    )
