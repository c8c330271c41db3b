"""Puts the tests folder on the path: `from checkpoints_conv.conv_models import …`, `from
distributed import run_ranks`."""

import sys
from pathlib import Path

TESTS = str(Path(__file__).resolve().parent.parent)
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)
