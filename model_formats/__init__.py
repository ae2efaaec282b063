import os

from model_formats.core.telemetry_off import switch_off

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
"""No other package may hook into how documents are checked; and looking for such plugins costs every start 20 ms or more."""

switch_off()
"""Before any engine can be imported, whatever starts us: a command, a unit, a notebook, a child process."""
