"""`make demo`: the main job of Spokeshave on real data, from nothing, each claim checked. See story.py."""

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from examples.demo.report import ClaimFailed, Report, console
from examples.demo.stage import CommandFailed, Stage
from examples.demo.story import tell


def main() -> int:
    """Run the story; 0 only when every claim held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where everything is written")
    parser.add_argument("--keep", action="store_true", help="leave hub and spokes running, and say how to talk to them")
    parser.add_argument("--hosts", type=json.loads, default={}, help='JSON: {"SITE": ["words", "before", "its", "commands"]}')
    options = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    stage, start = Stage(options.folder.resolve(), options.hosts), time.monotonic()
    report = Report(stage.folder / "report.json")
    try:
        tell(stage, report)
    except (ClaimFailed, CommandFailed, TimeoutError) as e:
        console.print(f"\n[bold red]The story broke off:[/] {e}", markup=True, soft_wrap=True)
        console.print(f"Logs are in {stage.logs}")
    except KeyboardInterrupt:
        console.print("\nstopped")
    finally:
        if not (options.keep and report.ok):
            stage.close()
    report.summary()
    verdict = "[bold green]Every claim held[/]" if report.ok else "[bold red]Failed[/]"
    console.print(f"\n{verdict} in {time.monotonic() - start:.0f} s. {report.path}")
    if options.keep and report.ok:
        invite(stage)
    return 0 if report.ok else 1


def invite(stage: Stage) -> None:
    """Leave everything running, and say what to try, until Ctrl-C."""
    bin_ = Path(sys.executable).parent
    port = (stage.home("frankfurt") / "run" / "server.port").read_text().strip()
    console.print(
        f"\nHub and spokes go on running; Ctrl-C stops them. Try in another terminal:\n"
        f"  {bin_}/hub --home {stage.home('hub')} spoke list\n"
        f"  {bin_}/spoke --home {stage.home('frankfurt')} egress show\n"
        f"  curl -s http://127.0.0.1:{port}/v2/models/digits\n"
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        stage.close()


if __name__ == "__main__":
    sys.exit(main())
