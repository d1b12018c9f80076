"""What every test shares: the artifact cache and the choice of slow tests.

Slow tests build whole models. A plain run takes a fixed sample of them (about one in
`SLOW_SAMPLE`), picked by a checksum of the test's name, so that two runs and all xdist workers
agree on it; `--slow` runs every one. The environment variable ENGINESMITH_SLOW_SAMPLE sets another
sample: 1 runs all, 0 none. Those marked `slow(sampled=False)` belong to no sample.

Tests of CUDA kernels come in two forms: on the emulator, and marked `cuda` on this machine's GPU
(see tests/cuda_kernels).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SLOW_SAMPLE = 4

# Compiled kernels and timings outlive a run, so repeated runs are quick. Set before any test module
# imports enginesmith, and inherited by the processes that tests start.
os.environ.setdefault("ENGINESMITH_CACHE", str(ROOT / ".cache" / "enginesmith"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --slow, --share and --update-golden."""
    parser.addoption("--slow", action="store_true", help="run every slow test, not a sample")
    parser.addoption("--share", metavar="K/N", help="run the Kth of N shares of the tests")
    parser.addoption(
        "--update-golden", action="store_true", help="write the kernels' texts that tests compare"
    )


def is_sampled(nodeid: str, one_in: int) -> bool:
    """Whether a slow test belongs to the fixed sample of one in `one_in` (0: none)."""
    return one_in > 0 and zlib.crc32(nodeid.encode()) % one_in == 0


def _names_test(argument: str) -> bool:
    """Whether a command line argument picks single tests: `tests/test_x.py::test_y`."""
    return "::" in argument


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests of CUDA kernels their form for the GPU."""
    from tests import cuda_kernels

    if cuda_kernels.runs_kernels(metafunc.function):
        forms = [cuda_kernels.MACHINES[0], pytest.param("gpu", marks=pytest.mark.cuda)]
        metafunc.parametrize("kernel_machine", forms, indirect=True)


@pytest.fixture(autouse=True)
def kernel_machine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where kernels of this test run, if it runs any."""
    from tests import cuda_kernels

    machine = getattr(request, "param", "emulator")
    cuda_kernels.use(machine)
    yield machine
    cuda_kernels.use("emulator")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is for a GPU where there is none that can be used."""
    if item.get_closest_marker("cuda"):
        from tests.cuda_kernels import gpu

        if (reason := gpu.why_not()) is not None:
            pytest.skip(f"no usable GPU: {reason}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests outside the sample, unless asked for by --slow, -m or their name; leave
    out the other shares' tests."""
    if share := config.getoption("--share"):
        number, _, count = (int(part) if part.isdigit() else 0 for part in share.partition("/"))
        if not 1 <= number <= count:
            raise pytest.UsageError(f"--share {share}: write K/N, such as 3/16")
        mine = set(items[number - 1 :: count])
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = [item for item in items if item in mine]
    asked = config.getoption("--slow") or any(map(_names_test, config.args))
    if asked or "slow" in config.option.markexpr:
        return
    one_in = int(os.environ.get("ENGINESMITH_SLOW_SAMPLE", SLOW_SAMPLE))
    skip = pytest.mark.skip(reason="slow and not in this run's sample: use --slow")
    for item in items:
        marker = item.get_closest_marker("slow")
        if marker is None:
            continue
        if not marker.kwargs.get("sampled", True) or not is_sampled(item.nodeid, one_in):
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
