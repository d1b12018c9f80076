"""Lets these tests import the kernels' helpers (`harness`) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
