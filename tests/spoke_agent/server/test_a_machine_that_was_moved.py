"""One home, started on one class of CPU after the other: the choice of mode is made anew, and is right on each.

The file has signed weights of eight bits, whose 16-bit sums saturate on AVX2 (and only there).
"""

import json

import numpy as np
import pytest

from tests.cpus.machines import HOST, X86
from tests.cpus.rig import Rig
from tests.cpus.test_saturation_is_caught import CLASSES, INPUTS, _contract, _model

LOAD = """
import json, sys
from pathlib import Path
from spoke_agent.server.models.loader import load_version
from spoke_agent.server.settings import ServeSettings
from spoke_agent.site.slots import read_slots
from sync.store import BlobStore

home = Path(sys.argv[1])
slot = read_slots(home / "slots.json").models["digits"].champion
loaded = load_version(ServeSettings(home=home), BlobStore(home), "digits", slot, adaptable=False)
print(json.dumps([loaded.cpu_class, loaded.engine, loaded.session.mode, loaded.golden.ok]))
"""


@pytest.mark.xdist_group("cpus")
def test_a_home_that_moves_between_classes_serves_right_on_each(site):
    rig, random = Rig(), np.random.default_rng(1)
    machines = [machine for machine in (HOST, *X86) if rig.lacks(machine) is None]
    if len(machines) < 2:
        pytest.skip("; ".join(filter(None, (rig.lacks(machine) for machine in X86))))
    weights = random.integers(100, 128, (INPUTS, CLASSES)).astype(np.int8)
    bright = {"x": random.integers(200, 256, (40, INPUTS)).astype(np.float32) / 255}
    site.slots(champion=site.publish(1, proto=_model(weights), contract=_contract(), golden_inputs=bright))
    found = [json.loads(rig.run(machine, "-c", LOAD, site.home).splitlines()[-1]) for machine in machines]
    assert all(right for *_, right in found)
    modes = {cpu_class: mode for cpu_class, _, mode, _ in found}
    assert modes.get("avx2", "exact") == "exact"
    assert modes.get("sse42", "fast") == "fast"
    assert len(json.loads((site.home / "run/engines.json").read_text())) == len(modes)
