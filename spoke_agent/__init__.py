"""A spoke: the agent and the server of one site. Updates, verifies, serves and adapts models, and reports evidence."""

import model_formats  # noqa: F401 - switches telemetry off, before anything of this room can load an engine
