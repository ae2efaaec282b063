"""The guide is true: its curl command, its example script, its metrics."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from spoke_agent.data.store import open_data
from tests.spoke_agent.server.sites import image

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs/guide-callers.md").read_text()


def shell(command: str, shared) -> str:
    return subprocess.run(["bash", "-ec", f"PORT={shared.port}\n{command}"], check=True, capture_output=True, text=True).stdout


def test_the_curl_commands_work(shared):
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.S)
    assert len(blocks) == 3
    assert '"platform"' in shell(blocks[0].split("\n", 1)[1], shared)
    assert '"till-7-000123"' in shell(blocks[1], shared)
    assert '"known":true' in shell(blocks[2], shared)


def test_the_till_asks_and_tells(site, run):
    site.slots(champion=site.publish(1))
    running = run(site)
    pixels = " ".join(str(v) for v in image().ravel().tolist())
    script = ROOT / "examples/callers/till.py"
    done = subprocess.run([sys.executable, script, str(running.port), pixels, "4"], check=True, capture_output=True, text=True)
    assert re.fullmatch(r"\d \(\d+%\)\n", done.stdout)
    store = open_data(site.home)
    assert store.labelled_accuracy("digits", running.control.serving()[0].index)[0] == 1
    store.close()


def test_the_till_tells_what_is_wrong(shared):
    script = ROOT / "examples/callers/till.py"
    done = subprocess.run([sys.executable, script, str(shared.port), "1 2 3"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "3 values" in done.stderr


def test_the_till_says_how_it_is_called():
    done = subprocess.run([sys.executable, ROOT / "examples/callers/till.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "till.py PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_metric_is_in_the_guide(shared):
    page = shared.http.get("/metrics").text
    names = re.findall(r"^# TYPE (\S+)", page, re.M)
    assert [n for n in names if f"`{n}`" not in GUIDE] == []


@pytest.mark.parametrize("code", ["503", "504", "413", "404", "400"])
def test_the_statuses_are_explained(code):
    assert code in GUIDE
