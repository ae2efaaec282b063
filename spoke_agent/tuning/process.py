"""The fit as a process of its own that yields to everything else: `python -m spoke_agent.tuning.process HOME MODEL ORIGIN NICE`.

It ends with the exit status of the error family that stopped it (a gate that stays shut is one), 0 when an adapter serves.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from model_formats.core.errors import SpokeshaveError
from model_formats.core.logging import log_to_stderr
from spoke_agent.site.core_dumps import forbid_core_dumps

if TYPE_CHECKING:
    from spoke_agent.tuning.tuner import Origin

__all__ = ["main"]


def main(home: Path, model: str, origin: str, niceness: int) -> int:
    """Tune once. Never raises for a refusal: it is told on standard error."""
    os.nice(niceness)
    forbid_core_dumps()
    log_to_stderr()
    try:
        _tune(home, model, cast("Origin", origin))
    except SpokeshaveError as e:
        sys.stderr.write(f"{e.code}: {e.message}\n")
        return e.exit
    return 0


def _tune(home: Path, model: str, origin: "Origin") -> None:
    from spoke_agent.tuning.site_context import SiteContext

    with SiteContext.open(home) as site:
        site.tuner.tune(model, origin=origin)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
