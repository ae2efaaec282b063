"""The hub: trains, signs and releases models, and decides which spoke gets which version. See docs/architecture.md."""

import model_formats  # noqa: F401 - switches telemetry off, before anything of this room can load an engine
