"""Lets the tests of passes import their helper (`graphs`) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
