"""The identity of a spoke, and the states and reasons of an update.

States and reasons are on the wire, in the journal and in the hub's tables alike, so they are closed lists and stand here.
"""

import re
from enum import StrEnum
from typing import Literal, Self, get_args

from msgspec import Struct

from model_formats.core.errors import OperatorError
from model_formats.core.types import NAME_PATTERN

__all__ = ["REGIMES", "TERMINAL", "Reason", "Regime", "SpokeId", "State"]

Regime = Literal["ae-pdpl", "ae-health", "ae-cbuae", "difc", "adgm", "gdpr", "none"]
"""The data-protection regime of a site; it sets the floor of the outbox and where packages may go."""
REGIMES: tuple[Regime, ...] = get_args(Regime)


class SpokeId(Struct, frozen=True, order=True):
    """One agent at a site, written `frankfurt/main`; its certificate's common name and MQTT user name is `frankfurt.main`."""

    site: str
    spoke: str = "main"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `site/spoke`, `site.spoke` or `site` (spoke `main`); raises OperatorError on anything else."""
        site, _, spoke = text.replace(".", "/").partition("/")
        found = cls(site, spoke or "main")
        if not (re.fullmatch(NAME_PATTERN, found.site) and re.fullmatch(NAME_PATTERN, found.spoke)):
            raise OperatorError(
                f"{text!r} is not a spoke", hint="Write it as SITE or SITE/SPOKE in lower-case letters, digits and -."
            )
        return found

    def __str__(self) -> str:
        return f"{self.site}/{self.spoke}"

    @property
    def username(self) -> str:
        """Common name in the certificate, user name at the broker."""
        return f"{self.site}.{self.spoke}"


class State(StrEnum):
    """Where a spoke is with one desired model version (docs/architecture.md draws the table)."""

    IDLE = "idle"
    ADMITTED = "admitted"
    STAGING = "staging"
    VERIFIED = "verified"
    SHADOW = "shadow"
    ARMED = "armed"
    PROBATION = "probation"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    REJECTED = "rejected"


TERMINAL = frozenset({State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.REJECTED})


class Reason(StrEnum):
    """Why a transition happened: the closed list that reports, journals and alerts use (docs/reference/reasons.md)."""

    NONE = "none"
    # admission: the device or its rules say no
    NO_SPACE = "no_space"
    NO_MEMORY = "no_memory"
    OPSET_UNSUPPORTED = "opset_unsupported"
    ISA_UNSUPPORTED = "isa_unsupported"
    CPU_CLASS_UNSUPPORTED = "cpu_class_unsupported"
    ENGINE_MISSING = "engine_missing"
    ZONE_FORBIDDEN = "zone_forbidden"
    REGIME_FORBIDDEN = "regime_forbidden"
    # trust: what arrived is not to be believed
    DIRECTIVE_UNTRUSTED = "directive_untrusted"
    DIRECTIVE_EXPIRED = "directive_expired"
    DIRECTIVE_REPLAYED = "directive_replayed"
    WRONG_RECIPIENT = "wrong_recipient"
    NOT_RELEASED = "not_released"
    DENIED = "denied"
    DOWNGRADE_NOT_GRANTED = "downgrade_not_granted"
    METADATA_INVALID = "metadata_invalid"
    METADATA_EXPIRED = "metadata_expired"
    METADATA_ROLLBACK = "metadata_rollback"
    PUBLISHER_UNTRUSTED = "publisher_untrusted"
    REPORT_UNTRUSTED = "report_untrusted"
    REPORT_REPLAYED = "report_replayed"
    REPORT_CONTRADICTS = "report_contradicts"
    PACKAGE_TAMPERED = "package_tampered"
    PACKAGE_INVALID = "package_invalid"
    # transfer
    TRANSFER_FAILED = "transfer_failed"
    BUDGET_EXHAUSTED = "budget_exhausted"
    DISK_FULL = "disk_full"
    # evidence: it arrived whole and true, but it does not do what it should here
    LOAD_FAILED = "load_failed"
    GOLDEN_MISMATCH = "golden_mismatch"
    OUTPUT_INVALID = "output_invalid"
    LATENCY_EXCEEDED = "latency_exceeded"
    MEMORY_EXCEEDED = "memory_exceeded"
    SHADOW_DISAGREEMENT = "shadow_disagreement"
    ACCURACY_BELOW_CLAIM = "accuracy_below_claim"
    ERROR_RATE = "error_rate"
    # course of events
    CRASHED_IN_PROBATION = "crashed_in_probation"
    REVERTED_BY_HUB = "reverted_by_hub"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    SAVES_EXHAUSTED = "saves_exhausted"
    STATE_UNKNOWN = "state_unknown"
