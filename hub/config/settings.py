"""The settings of a hub, in one frozen object: defaults < `hub.toml` < environment (`HUB_...`) < flags."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from hub.config.home import HubHome
from model_formats.core.errors import OperatorError
from model_formats.core.types import Name

__all__ = ["HubSettings", "SettingsInvalid", "load_settings"]

Seconds = Annotated[float, Field(gt=0)]


class SettingsInvalid(OperatorError):
    """A setting is unknown or out of range."""

    code = "settings_invalid"
    hint = "Correct hub.toml, the HUB_ environment variable or the flag that is named."


class HubSettings(BaseSettings):
    """Settings of `hub up`. Times are in seconds."""

    model_config = SettingsConfigDict(env_prefix="HUB_", frozen=True, extra="forbid")

    name: Name = "hub"
    """Name in the hub's own certificate and audit lines."""
    bind: str = "127.0.0.1"
    """Address that API, registry and broker listen on; `0.0.0.0` opens them to the network."""
    host: str = "localhost"
    """Name under which spokes reach the hub; it goes into the server certificate and into every enrolment grant."""
    https_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of API and registry; 0 takes a free one at the first start and keeps it."""
    mqtt_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the broker; 0 takes a free one at the first start and keeps it."""
    database_url: str = ""
    """SQLAlchemy URL; empty means SQLite in the hub's folder. `postgresql+psycopg://...` is the same code."""
    zones: tuple[Name, ...] = ("me", "eu")
    """Residency zones this hub serves."""
    invite_ttl_s: Seconds = 24 * 3600
    """How long an enrolment code holds."""
    directive_ttl_s: Seconds = 7 * 86400
    """Life of a directive; it is signed anew when half of it is gone."""
    tick_s: Seconds = 2.0
    """How often the loops look for due rows; evidence also wakes them at once."""
    metadata_refresh_s: Seconds = 3600
    """How often the TUF timestamp is signed anew."""
    silent_after_s: Seconds = 600
    """A spoke that has said nothing for so long counts as offline in rollouts."""
    lease_s: Seconds = 30
    """How long a worker owns a loop's turn before another may take it."""
    max_body_bytes: Annotated[int, Field(gt=0)] = 16 << 20
    """Largest request body of the API (blobs go through the registry, which has its own limit)."""
    block_bytes_per_s: Annotated[int, Field(ge=0)] = 0
    """Ceiling on blocks sent over MQTT, in bytes a second; 0 is none."""
    block_gather_s: Annotated[float, Field(ge=0)] = 1.0
    """How long a blob that several spokes may want waits for the last of them to listen, so that one copy serves them all."""
    blob_places: Annotated[int, Field(gt=0)] = 32
    """Blobs that spokes of one zone may draw over HTTPS at once; the others are told when to come again (429, Retry-After)."""
    blob_place_s: Seconds = 300
    """A place is lost when its spoke took no byte for so long."""
    federated: bool = False
    """Whether this hub may ask for sums over sites (`hub federated`). Each site still decides for itself."""

    registry_url: str = ""
    """Address of an OCI registry (distribution, Harbor, zot, a cloud's) that keeps the blobs; empty is the hub's own folder."""
    registry_prefix: Annotated[str, Field(pattern=r"^([a-z0-9]+([._/-]+[a-z0-9]+)*)?$")] = "spokeshave"
    """Repositories there are this prefix and the model's name; the hub touches nothing outside of it. May be empty."""
    registry_user: str = ""
    """Name to log in with at that registry; empty is no login."""
    registry_password: SecretStr = SecretStr("")
    """Password or token of that name; better in the environment, or in the file below."""
    registry_password_file: str = ""
    """File with the password of that name."""
    registry_ca_file: str = ""
    """File (PEM) with the authorities that registry's certificate may come from; empty is the system's."""
    registry_cache_bytes: Annotated[int, Field(ge=0)] = 20 << 30
    """Size to which copies of that registry's blobs are kept in the hub's folder, in bytes; the least recently used go first."""

    alerts_every_s: Seconds = 60.0
    """How often alerts are looked for and sent, where a receiver is named below."""
    alerts_webhook_url: str = ""
    """Address that alerts are posted to, signed by the Standard Webhooks specification; empty is none."""
    alerts_webhook_secret_file: str = ""
    """File with the webhook's secret: `whsec_` and base64."""
    alerts_alertmanager_url: str = ""
    """Base address of a Prometheus Alertmanager; empty is none."""
    alerts_mail_to: tuple[str, ...] = ()
    """Who gets alerts by mail; nobody when empty."""
    alerts_mail_from: str = ""
    """Sender of those mails."""
    alerts_smtp: str = ""
    """Mail server as `host:port`."""
    alerts_smtp_security: Literal["tls", "starttls", "none"] = "starttls"
    """How the way to the mail server is protected; `none` is for a server on this machine."""
    alerts_smtp_user: str = ""
    """Name to log in with; empty is no login."""
    alerts_smtp_password_file: str = ""
    """File with the password of that name."""

    def database(self, home: HubHome) -> str:
        """The URL in force."""
        return self.database_url or f"sqlite:///{home.database}"


def load_settings(home: Path, **flags: Any) -> HubSettings:
    """Read `hub.toml` (none is fine), then the environment, then flags that are not None. Raises SettingsInvalid."""
    path = HubHome(home).settings
    try:
        written = tomllib.loads(path.read_text()) if path.exists() else {}
    except tomllib.TOMLDecodeError as e:
        raise SettingsInvalid(f"{path.name}: not TOML: {e}") from e
    given = {k: v for k, v in flags.items() if v is not None}
    try:
        from_environment = HubSettings().model_dump(exclude_unset=True)
        return HubSettings.model_validate({**written, **from_environment, **given})
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsInvalid(f"setting {where}: {first['msg']}") from e
