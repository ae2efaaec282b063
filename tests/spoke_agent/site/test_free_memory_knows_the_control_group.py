"""What a process may still take is the least of the machine's free memory and that of every control group it is in."""

import pytest

from spoke_agent.site.memory import free_memory_bytes

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path):
    """A machine with 8 GiB available; `group` limits a control group, the process is in `system.slice/spoke.service`."""
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    (proc / "self" / "cgroup").write_text("0::/system.slice/spoke.service\n")

    def group(path, limit, used_mb, cache_mb=0):
        folder = groups / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(limit if limit == "max" else str(int(limit) * MIB))
        (folder / "memory.current").write_text(str(used_mb * MIB))
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache_mb * MIB}\n")

    group.free_mb = lambda: free_memory_bytes(proc=proc, groups=groups) // MIB
    return group


def test_without_a_limit_it_is_the_machines(machine):
    assert machine.free_mb() == 8192
    machine("system.slice/spoke.service", "max", 100)
    assert machine.free_mb() == 8192


def test_a_limit_of_the_own_service_counts(machine):
    machine("system.slice/spoke.service", "512", 100)
    assert machine.free_mb() == 412


def test_a_limit_of_a_group_above_counts_too(machine):
    machine("system.slice/spoke.service", "512", 100)
    machine("system.slice", "600", 500)
    assert machine.free_mb() == 100


def test_a_container_sees_its_own_group_as_the_root(machine):
    machine(".", "300", 100)
    assert machine.free_mb() == 200


def test_files_in_the_cache_can_be_dropped_and_are_free(machine):
    machine("system.slice/spoke.service", "512", 500, cache_mb=400)
    assert machine.free_mb() == 412


def test_a_group_over_its_limit_has_none_left(machine):
    machine("system.slice/spoke.service", "100", 120)
    assert machine.free_mb() == 0


def test_a_machine_that_tells_nothing_is_not_known(tmp_path):
    assert free_memory_bytes(proc=tmp_path, groups=tmp_path) is None
