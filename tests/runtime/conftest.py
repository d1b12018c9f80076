"""Lets the tests of the runtime import their helpers (`tiny`) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
