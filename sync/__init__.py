"""How models and messages travel between hub and spoke, and the checks that make them trusted."""

import model_formats  # noqa: F401 - switches telemetry off, before anything of this room can load an engine
