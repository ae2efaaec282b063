"""When a process that fell is started again: the one rule for the agent, the server and its workers."""

from typing import Final

__all__ = ["FINAL_STATUS", "RestartPolicy"]

FINAL_STATUS: Final = 2
"""Exit status that a restart cannot mend: the operator must act."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 60.0
_STEADY_S: Final = 60.0


class RestartPolicy:
    """Of one process: a pause that doubles with each fall in a row, and none after a long run, which starts the count anew."""

    def __init__(self) -> None:
        self._falls = 0

    def pause_s(self, ran_s: float) -> float:
        """Count a fall after a run of `ran_s`; returns how long to wait before the next start."""
        self._falls = 0 if ran_s > _STEADY_S else self._falls + 1
        return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._falls - 1)) if self._falls else 0.0
