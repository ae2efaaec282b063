"""The steps of an update as values. A planner returns them (`step_planner.py`), a runner executes them (`executor.py`), and
`spoke status --plan` prints them."""

from enum import StrEnum

from model_formats.core.document import Value

__all__ = ["Step", "StepKind"]


class StepKind(StrEnum):
    """What a step does. Closed."""

    WAIT_FOR_HOURS = "wait_for_hours"
    """Nothing, until the site's hours allow the rest of the plan."""
    FETCH_METADATA = "fetch_metadata"
    """Fetch index, manifest, documents and signature: what admission reads."""
    ADMIT = "admit"
    """Check residency and capacity, and choose a variant that fits this machine."""
    FREE_CANDIDATE = "free_candidate"
    """Take another variant of this version out of the candidate's slot."""
    FETCH_VARIANT = "fetch_variant"
    """Fetch the files of the chosen variant that are not here."""
    VERIFY = "verify"
    """Check the release, the publisher's signature and every file."""
    SET_CANDIDATE = "set_candidate"
    """Write the version into the candidate's slot."""
    COMPARE = "compare"
    """Have the server load and test it, and compare its answers with the champion's, without callers seeing them."""
    SWITCH = "switch"
    """Make it the champion in slots.json, and remember the one before as last good."""
    OBSERVE = "observe"
    """Count errors, crashes and labelled rows while it answers callers."""
    COMMIT = "commit"
    """End the probation in slots.json."""
    GO_BACK = "go_back"
    """Make last-good the champion again."""
    CLEAR_CANDIDATE = "clear_candidate"
    """Empty the candidate's slot; the champion stays."""
    RETIRE = "retire"
    """Empty every slot of the model."""
    FOLLOW_SLOTS = "follow_slots"
    """Have the server follow slots.json."""
    COLLECT = "collect"
    """Remove the blobs that no slot needs."""


class Step(Value):
    """One step, with what a reader wants to know of it."""

    kind: StepKind
    variant: str | None = None
    """Of the files it is about; None before one was chosen."""
    setting: str | None = None
    """The setting that it waits for."""
    wait_s: float | None = None
    """Seconds until those hours begin."""
