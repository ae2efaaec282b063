"""The server takes no model that the limit of its control group (`MemoryMax`) would have it ended for."""

from functools import partial

import pytest

from spoke_agent.server.models.loader import MemoryRefused, load_version
from spoke_agent.server.settings import ServeSettings
from spoke_agent.site.memory import free_memory_bytes
from sync.store import BlobStore


def test_a_model_without_room_in_the_group_is_refused(site, tmp_path):
    slot = site.publish(1, memory_mb=64)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/spoke.service\n")
    (tmp_path / "meminfo").write_text("MemAvailable:    8388608 kB\n")
    group = tmp_path / "groups" / "spoke.service"
    group.mkdir(parents=True)
    (group / "memory.current").write_text(str(60 << 20))
    (group / "memory.stat").write_text("inactive_file 0\n")
    settings, store = ServeSettings(home=site.home), BlobStore(site.home)
    free = partial(free_memory_bytes, proc=tmp_path, groups=tmp_path / "groups")

    def load():
        return load_version(settings, store, "digits", slot, adaptable=False, free_memory=free)

    (group / "memory.max").write_text(str(100 << 20))
    with pytest.raises(MemoryRefused, match="needs about 64 MB; there are 40 MB left"):
        load()
    (group / "memory.max").write_text(str(200 << 20))
    assert load().model == "digits"
