"""`python -m spoke_agent.serve.trial QUESTION`: time the engines on one model file, in a process that may grow and then ends."""

import json
import sys
from pathlib import Path

from model_formats.golden import read_golden
from model_formats.runtimes.choose import choose_engine

__all__ = ["main"]


def main(question: str) -> str:
    """QUESTION is JSON: path, golden path, variant, engines, threads, allow_bf16. The answer is the engine's name, as JSON."""
    path, golden, variant, engines, threads, allow_bf16 = json.loads(question)
    choice = choose_engine(Path(path), engines, read_golden(Path(golden)), variant, threads=threads, allow_bf16=bool(allow_bf16))
    return json.dumps(choice)


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1]))
