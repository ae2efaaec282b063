"""`make bench`: every table, one after the other; `python -m tests.bench delta serving` for some. JSON goes to build/bench/."""

import subprocess
import sys

from tests.bench.house import as_after_a_boot

BENCHES = ("quantize", "delta", "transfer", "serving", "grpc", "learning", "drift", "cpus")


def main(names: list[str]) -> int:
    """Run each in a process of its own, so that one's memory is not another's; the status is that of the worst."""
    chosen = [b for b in BENCHES if not names or b.split(".")[0] in names]
    worst = 0
    for bench in chosen:
        print(f"\n== {bench}", flush=True)
        as_after_a_boot()
        worst = max(worst, subprocess.run([sys.executable, "-m", f"tests.bench.{bench}"], check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
