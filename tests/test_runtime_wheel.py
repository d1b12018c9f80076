"""The wheel alone: a virtual environment with numpy and nothing else loads and runs a plan."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tests.test_builder import convnet, rand

import enginesmith as es

ROOT = Path(__file__).resolve().parent.parent
SIZES = [(1, 32, 32), (3, 33, 47), (2, 64, 17)]

SCRIPT = """
import importlib.util, sys
import numpy as np
import enginesmith as es

for name in ("onnx", "sympy", "ziglang", "click", "rich", "google.protobuf", "onnxruntime"):
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    assert found is None, f"{name} is installed"
assert es.__file__.startswith(sys.prefix), es.__file__

data = np.load(sys.argv[2])
engine = es.load(sys.argv[1])
results = {f"y{i}": engine({"x": data[f"x{i}"]})["y"] for i in range(len(data.files))}
context = engine.context()
pending = [context.enqueue({"x": data[f"x{i}"]}) for i in range(len(data.files))]
for i, item in enumerate(pending):
    np.testing.assert_array_equal(item.result(60)["y"], results[f"y{i}"])
assert engine.report
np.savez(sys.argv[3], **results)

try:
    es.build("model.onnx")
except es.EnginesmithError as error:
    assert "enginesmith[build]" in str(error), error
else:
    raise AssertionError("built without a compiler")
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment that holds the wheel and this one's numpy."""
    folder = tmp_path_factory.mktemp("bare")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    home = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    installed = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs", f"numpy-{np.__version__}.dist-info"):
        if (installed / name).exists():
            shutil.copytree(installed / name, packages / name)
    return home / "bin" / "python"


@pytest.mark.slow
def test_a_plan_runs_with_the_wheel_and_numpy(bare_python: Path, tmp_path: Path) -> None:
    feeds = {f"x{i}": rand(n, 3, h, w) for i, (n, h, w) in enumerate(SIZES)}
    np.savez(tmp_path / "feeds.npz", **feeds)
    engine = es.build(convnet(), tuning=False)
    engine.save(tmp_path / "net.plan")
    arguments = [str(tmp_path / name) for name in ("net.plan", "feeds.npz", "found.npz")]
    done = subprocess.run(
        [str(bare_python), "-I", "-c", SCRIPT, *arguments],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(found[f"y{i}"], engine({"x": feeds[f"x{i}"]})["y"])
