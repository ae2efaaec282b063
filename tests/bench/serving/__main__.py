"""`python -m tests.bench.serving [ROUNDS]`."""

import sys

from tests.bench.house import as_after_a_boot

if __name__ == "__main__":
    as_after_a_boot()
    from tests.bench.serving.bench_serving import main  # what it imports is what is measured

    main(*(int(a) for a in sys.argv[1:]))
