"""`spoke enrol`: become a known spoke, online with a code, or by files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from model_formats.core.console import Context, emit, out, pass_context, talk
from model_formats.core.errors import OperatorError

if TYPE_CHECKING:
    from provisioning.identity.identity import Identity

__all__ = ["EnrolUsage", "enrol"]


class EnrolUsage(OperatorError):
    """The options of `spoke enrol` do not go together."""

    code = "enrol_usage"
    hint = "Online: --hub URL --code CODE. By files: --code CODE --request-out FILE, then --grant FILE."


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Who this spoke is now."""

    spoke: str
    zone: str
    regime: str
    hub: str
    certificate_expires: str


@click.command()
@click.option("--hub", "hub_url", help="HTTPS address of the hub.")
@click.option("--code", help="One-time code from `hub spoke invite`.")
@click.option("--request-out", type=click.Path(dir_okay=False, path_type=Path), help="Write a request to carry to the hub.")
@click.option("--grant", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The answer of `hub spoke admit`.")
@pass_context
def enrol(ctx: Context, *, hub_url: str | None, code: str | None, request_out: Path | None, grant: Path | None) -> None:
    """Make this spoke's key (it never leaves) and have the hub certify it.

    Online: --hub URL --code CODE. Without a network: --code CODE --request-out FILE here, `hub spoke admit` there, then
    --grant FILE here.
    """
    from model_formats.core.files import atomic_write
    from provisioning.identity.enrol import EnrolmentGrant, begin, finish
    from provisioning.identity.online import enrol_online

    if grant is not None and not (hub_url or code or request_out):
        _show(ctx, finish(ctx.home, EnrolmentGrant.read(grant)))
    elif code and hub_url and request_out is None:
        if not hub_url.startswith("https://"):
            raise EnrolUsage(f"--hub {hub_url}: that is no HTTPS address", hint="Write it as the hub says it: https://HOST:PORT.")
        _show(ctx, enrol_online(ctx.home, hub_url, code))
    elif code and request_out is not None and not hub_url:
        request = begin(ctx.home, code)
        atomic_write(request_out, request.canonical())
        talk.print(f"Carry [bold]{request_out}[/] to the hub, and bring back what `hub spoke admit` writes.")
        emit(ctx, {"request": str(request_out), "invite": request.invite}, lambda _: None)
    else:
        raise EnrolUsage("these options do not go together")


def _show(ctx: Context, identity: "Identity") -> None:
    found = Enrolled(
        spoke=str(identity.spoke),
        zone=identity.zone,
        regime=identity.regime,
        hub=identity.hub_url,
        certificate_expires=identity.expires().isoformat(timespec="seconds"),
    )
    emit(ctx, asdict(found), lambda _: out.print(f"enrolled as [bold]{found.spoke}[/] in zone {found.zone} ({found.regime})"))
