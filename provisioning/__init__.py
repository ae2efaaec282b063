import model_formats  # noqa: F401 - switches telemetry off, before anything of this room can load an engine
