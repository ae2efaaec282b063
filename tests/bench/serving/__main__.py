"""`python -m tests.bench.serving [ROUNDS]`."""

import sys

from tests.bench.serving.bench_serving import main

if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
