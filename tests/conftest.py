"""What every test shares: the artifact cache and the choice of slow tests.

Slow tests build whole models. A plain run takes a fixed sample of them (about one in
`SLOW_SAMPLE`), picked by a checksum of the test's name, so that two runs and all xdist workers
agree on it; `--slow` runs every one. The environment variable ENGINESMITH_SLOW_SAMPLE sets another
sample: 1 runs all, 0 none.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLOW_SAMPLE = 4

# Compiled kernels and timings outlive a run, so repeated runs are quick. Set before any test module
# imports enginesmith, and inherited by the processes that tests start.
os.environ.setdefault("ENGINESMITH_CACHE", str(ROOT / ".cache" / "enginesmith"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow."""
    parser.addoption("--slow", action="store_true", help="run every slow test, not a sample")


def is_sampled(nodeid: str, one_in: int) -> bool:
    """Whether a slow test belongs to the fixed sample of one in `one_in` (0: none)."""
    return one_in > 0 and zlib.crc32(nodeid.encode()) % one_in == 0


def _names_test(argument: str) -> bool:
    """Whether a command line argument picks single tests: `tests/test_x.py::test_y`."""
    return "::" in argument


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests outside the sample, unless asked for by --slow, -m or their name."""
    asked = config.getoption("--slow") or any(map(_names_test, config.args))
    if asked or "slow" in config.option.markexpr:
        return
    one_in = int(os.environ.get("ENGINESMITH_SLOW_SAMPLE", SLOW_SAMPLE))
    skip = pytest.mark.skip(reason="slow and not in this run's sample: use --slow")
    for item in items:
        if item.get_closest_marker("slow") and not is_sampled(item.nodeid, one_in):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def artifact_cache() -> Path:
    """The directory of compiled kernels and timings that all tests share."""
    path = Path(os.environ["ENGINESMITH_CACHE"])
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty artifact cache for one test, for this process and those it starts."""
    path = tmp_path / "cache"
    path.mkdir()
    monkeypatch.setenv("ENGINESMITH_CACHE", str(path))
    return path
