"""Who may take part: certificates and enrolment, the broker and its access list, files for an installation."""

import model_formats  # noqa: F401 - switches telemetry off, before anything of this room can load an engine
