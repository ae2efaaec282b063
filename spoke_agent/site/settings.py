"""The settings of a spoke, in one frozen object: defaults < `spoke.toml` < environment (`SPOKE_...`) < flags.

The environment is read here in one line: importing pydantic-settings, as the hub does, would cost every start of the server more
than 100 ms. `docs/generate.py` reads the text below each setting from the source.
"""

import os
import tomllib
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from model_formats.core.document import Value
from model_formats.core.errors import OperatorError
from model_formats.core.types import matching
from model_formats.core.validation import converted
from spoke_agent.site.home import SpokeHome

__all__ = ["SpokeSettings", "SpokeSettingsInvalid", "load_settings"]

Seconds = Annotated[float, Meta(gt=0)]
Days = Annotated[float, Meta(gt=0)]
Hours = Annotated[str, matching(r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")]


class SpokeSettingsInvalid(OperatorError):
    """A setting is unknown or out of range."""

    code = "spoke_settings_invalid"
    hint = "Correct spoke.toml, the SPOKE_ environment variable or the flag that is named."


class SpokeSettings(Value):
    """Settings of `spoke run`, `spoke agent` and `spoke serve`. Times are in seconds."""

    env_prefix: ClassVar[str] = "SPOKE_"

    home: str | None = None
    """Read by the command line (`SPOKE_HOME`); not used from here."""

    # the server
    serve_host: str = "127.0.0.1"
    """Address the server listens on."""
    serve_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """TCP port of the server; 0 takes a free one and writes it to `run/server.port`."""
    serve_grpc_port: Annotated[int, Meta(ge=0, le=65535)] | None = None
    """TCP port for gRPC (extra `grpc`), none unless set; 0 takes a free one and writes it to `run/grpc.port`."""
    serve_workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Server processes on one port, each with its own sessions; for machines with cores to spare."""
    serve_access_log: bool = False
    """Write one line of JSON for each answer to the server's log."""

    # the agent's rhythm
    tick_s: Seconds = 0.5
    """How often the agent looks at its timers while nothing happens."""
    heartbeat_s: Seconds = 300.0
    """How often the retained status is sent again when nothing changed."""
    upkeep_s: Seconds = 60.0
    """How often drift is looked at, the outbox emptied and adapters kept up."""

    # watching the data
    drift_window_s: Seconds = 900.0
    """Shortest time between two drift tests of a model."""
    drift_budget_days: Days = 91.0
    """Shortest mean time between two false alarms of a model, in days (with one test in every window)."""
    drift_tell_s: Seconds = 3600.0
    """How often an unchanged verdict is sent again."""

    ops_every_s: Seconds = 3600.0
    """How often the machine's own state (disk, memory, latency, problems) is offered to the outbox."""

    may_call: tuple[str, ...] = ()
    """Names and addresses besides the hub that agent and server may call, say a collector of traces; doctor reports others."""

    site_key: str = "file"
    """Where the key of the local rows is: `file` (`identity/site.key`), `credential:NAME` (systemd) or a `pkcs11:` address."""

    # adapting
    tune_every_hours: Annotated[float, Meta(ge=0)] = 0.0
    """How often heads are fitted anew to labelled rows that came since; 0 is never."""
    tune_on_drift: bool = False
    """Whether a drift alarm starts a fit at once, where enough new labels are here."""
    tune_niceness: Annotated[int, Meta(ge=0, le=19)] = 15
    """Priority of that process: 19 yields to everything else."""

    # transfer
    transport: Literal["auto", "mqtt", "https"] = "auto"
    """Which transport packages take here; `auto` leaves it to the directive, then tries MQTT and falls back to HTTPS."""
    bytes_per_second: Annotated[int, Meta(ge=0)] = 0
    """Ceiling on the download rate; 0 is none."""
    bytes_per_day: Annotated[int, Meta(ge=0)] = 0
    """Bytes that may be fetched in a day of the site's calendar; 0 is no limit. The rest comes the next day."""
    fallback_spread_s: Annotated[float, Meta(ge=0)] = 5.0
    """Where MQTT fails, a spoke turns to HTTPS after a random part of this, so that a zone does not come as a herd."""
    download_hours: Hours | None = None
    """Local hours in which packages may be fetched, for example `22:00-06:00`."""
    switch_hours: Hours | None = None
    """Local hours in which a new version may start to answer."""
    timezone: str = "UTC"
    """IANA name of the time zone that the hours are in."""
    disk_reserve_mb: Annotated[int, Meta(ge=0)] = 64
    """Space that a download must leave free."""
    memory_reserve_mb: Annotated[int, Meta(ge=0)] = 32
    """Memory that a candidate must leave free."""

    # the most that each step may take
    admit_timeout_s: Seconds = 86_400.0
    """Longest time for admission, in seconds."""
    stage_timeout_s: Seconds = 7 * 86_400.0
    """Longest time for fetching, in seconds."""
    verify_timeout_s: Seconds = 3_600.0
    """Longest time for verification, in seconds."""
    arm_timeout_s: Seconds = 2 * 86_400.0
    """Longest wait for the hours in which a version may be switched, in seconds."""
    step_margin_s: Seconds = 600.0
    """Added to the directive's own limits for shadow and probation."""
    transfer_tries: Annotated[int, Meta(ge=1)] = 1000
    """Failed transfers of one update before it is given up."""
    retry_s: Seconds = 2.0
    """First pause after a failed try; it doubles up to `retry_cap_s`."""
    retry_cap_s: Seconds = 300.0
    """Longest pause between two tries, in seconds."""


_SWITCHES = {name for name, kind in SpokeSettings.__annotations__.items() if kind is bool}
_WORDS = {"yes": True, "y": True, "on": True, "t": True, "no": False, "n": False, "off": False, "f": False}
"""What people write for a switch, besides true, false, 1 and 0."""


def load_settings(home: SpokeHome, **flags: Any) -> SpokeSettings:
    """Settings for one home; `flags` that are None are not given. Raises SpokeSettingsInvalid that names the setting."""
    try:
        file = tomllib.loads(home.settings.read_text()) if home.settings.exists() else {}
    except tomllib.TOMLDecodeError as e:
        raise SpokeSettingsInvalid(f"{home.settings.name}: {e}") from e
    names = {f"{SpokeSettings.env_prefix}{name.upper()}": name for name in SpokeSettings.__struct_fields__}
    environment = {name: os.environ[key] for key, name in names.items() if key in os.environ}
    given = {**file, **environment, **{k: v for k, v in flags.items() if v is not None}}
    for name in given.keys() & _SWITCHES:
        given[name] = _WORDS.get(str(given[name]).lower(), given[name])
    try:
        return converted(given, SpokeSettings, strict=False)  # the environment has text for everything
    except ValueError as e:
        raise SpokeSettingsInvalid(str(e)) from e
