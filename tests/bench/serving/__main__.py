"""`python -m tests.bench.serving [SECONDS]`."""

import sys

from tests.bench.serving.bench_serving import main

if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:]))
