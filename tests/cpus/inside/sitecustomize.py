"""First on PYTHONPATH inside a class: children are started under the emulator too, not by the host's kernel."""

import os
import sys

sys.executable = os.environ["SPOKESHAVE_CLASS_PYTHON"]
