"""The checks of `spoke doctor`, one file each. `check(home)` only reads, and returns a finding or None."""

from collections.abc import Callable

from model_formats.core.check_result import CheckResult
from model_formats.core.errors import SpokeshaveError
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettingsInvalid

__all__ = ["CheckResult", "examine"]

Check = Callable[[SpokeHome], CheckResult | None]


def examine(home: SpokeHome) -> list[CheckResult]:
    """Ask every check; one that cannot be asked is a finding itself. Without an identity the others make no sense."""
    found: list[CheckResult] = []
    for name, check in _checks():
        try:
            finding = check(home)
        except SpokeSettingsInvalid as e:
            finding = CheckResult.failed("settings", e.message, e.hint)
        except SpokeshaveError as e:
            finding = CheckResult.failed(name, e.message, e.hint)
        except OSError as e:
            finding = CheckResult.failed(name, str(e), "Check the disk and the rights of the home folder.")
        if finding and finding not in found:
            found.append(finding)
            if name == "identity":
                break
    return found


def _checks() -> list[tuple[str, Check]]:
    from spoke_agent.doctor import (
        certificate,
        champion,
        clock,
        data,
        disk,
        egress,
        files,
        identity,
        journal,
        link,
        network,
        processes,
        telemetry,
        trust,
        updates,
    )

    site = (identity, certificate, files, disk, journal, data, egress, processes, champion)
    around = (link, network, telemetry, clock, trust, updates)
    return [(module.__name__.rpartition(".")[2], module.check) for module in (*site, *around)]
