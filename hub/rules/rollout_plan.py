"""The rollout document that operators write: `apiVersion: spokeshave/v1, kind: Rollout`."""

import json
from typing import Annotated, Any, Literal, Self

import yaml
from msgspec import Meta

from model_formats.core.document import DocumentRefused, Value
from model_formats.core.errors import OperatorError
from model_formats.core.types import ModelRef, Name, matching
from sync.core.types import Regime
from sync.protocol.messages import ProbationTerms, ShadowTerms

__all__ = ["GateTerms", "PlanInvalid", "Ring", "RolloutPlan", "RolloutSpec"]

Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Site = Annotated[str, matching(r"^(\*|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(/[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?)$")]
Model = Annotated[str, matching(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?@[1-9][0-9]{0,8}$")]


class PlanInvalid(OperatorError):
    """A rollout document that cannot be read or cannot work."""

    code = "rollout_invalid"
    http = 422
    hint = "Correct the field that is named; docs/rollouts.md shows a whole document."


class Ring(Value):
    """Spokes that get the version together."""

    name: Name
    sites: Annotated[tuple[Site, ...], Meta(min_length=1)]
    """`site` (all its spokes), `site/spoke`, or `*`: everyone that no ring names and that the package may go to."""
    zones: tuple[Name, ...] = ()
    """Only spokes of these zones; empty: any."""
    regimes: tuple[Regime, ...] = ()
    """Only spokes under these regimes; empty: any."""


class GateTerms(Value):
    """What a ring must show before the next one starts, and what ends the rollout."""

    min_committed: Annotated[int, Meta(ge=1)] = 1
    """Spokes that must have committed, by signed report, and still serve the version."""
    wilson_lower: Share = 0.2
    """Least lower bound (one-sided 95 %, Wilson) on committed / ended. One of one gives .27, ten of ten .79, 45 of 46 .91."""
    soak_s: Count = 0
    """How long all other conditions must have held before the next ring starts."""
    max_missing: Share = 0.0
    """Largest share of the ring that may be without an outcome (offline, silent, or still at work) when it advances."""
    max_failed: Share = 0.1
    """Ends the rollout when the failed share is above this beyond doubt (lower Wilson bound)."""
    hard_reasons_abort: Annotated[int, Meta(ge=1)] = 1
    """This many reports with a hard reason (tampered, wrong golden outputs, accuracy below claim ...) end the rollout."""
    max_accuracy_drop: Share = 0.02
    """Labelled accuracy may be this far below the package's claim and below the champion's; tested, not just compared."""
    max_disagreement: Share = 1.0
    """Ends the rollout when candidate and champion differ on more than this share of mirrored rows, over the ring."""
    deadline_s: Annotated[int, Meta(ge=1)] = 7 * 86400
    """A ring that has not advanced by then pauses the rollout and says what it waits for."""


class RolloutSpec(Value):
    """Which version goes where, in which order, on which evidence."""

    model: Model
    transport: Literal["auto", "mqtt", "https"] = "auto"
    rings: Annotated[tuple[Ring, ...], Meta(min_length=1, max_length=50)]
    gate: GateTerms = GateTerms()
    shadow: ShadowTerms = ShadowTerms()
    probation: ProbationTerms = ProbationTerms()
    max_parallel: Count = 0
    """Most spokes at work at once; 0 is no limit. A spoke that is offline holds no place."""
    approvals: Count = 0
    """How many people other than the author must approve before it starts."""
    on_abort: Literal["revert", "hold"] = "revert"
    """`revert` takes reached spokes back to what they served; `hold` leaves them."""

    def __post_init__(self) -> None:
        names = [ring.name for ring in self.rings]
        if len(set(names)) != len(names):
            raise ValueError("two rings have the same name")
        sites = [site for ring in self.rings for site in ring.sites]
        twice = sorted({s for s in sites if sites.count(s) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is in two places")

    @property
    def ref(self) -> ModelRef:
        """The version."""
        return ModelRef.parse(self.model)


class Metadata(Value):
    """The name by which it is shown, paused and aborted."""

    name: Name


class RolloutPlan(Value, rename={"api_version": "apiVersion"}):
    """A whole document. Law: `RolloutPlan.parse(plan.canonical()) == plan`."""

    api_version: Literal["spokeshave/v1"]
    kind: Literal["Rollout"]
    metadata: Metadata
    spec: RolloutSpec

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read YAML or JSON. Raises PlanInvalid that names the field and the rule; unknown and repeated keys are refused."""
        if len(text) > 1 << 20:
            raise PlanInvalid("the document is larger than 1 MiB")
        try:
            return cls.of_plain(yaml.load(text, Loader=_Strict))  # noqa: S506 (a safe loader's subclass)
        except DocumentRefused as e:
            raise PlanInvalid(e.problem) from e
        except (yaml.YAMLError, TypeError, ValueError, RecursionError) as e:
            raise PlanInvalid(f"not YAML: {e}") from e

    def canonical(self) -> bytes:
        """JSON with sorted keys."""
        return json.dumps(self.checked().plain, sort_keys=True, separators=(",", ":")).encode()


class _Strict(yaml.SafeLoader):
    """Plain YAML: no repeated keys, no aliases (a few lines of those can grow to gigabytes)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(set(map(str, keys))) != len(keys):
            raise yaml.YAMLError(f"a key occurs twice in one mapping, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)
