"""What pip installs: version, extras, the command, the wheel's contents, the runtime alone."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import pytest

import enginesmith as es

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "enginesmith"
# Where pip's names differ from Python's.
IMPORT_NAMES = {"cuda-core": "cuda", "ml-dtypes": "ml_dtypes", "protobuf": "google"}
# What a module may use where it is installed, and does without where it is not.
OPTIONAL = {"verify/compare.py: onnxruntime"}


def requirements(extra: str = "") -> set[str]:
    """The pip names that an extra adds; those that are always installed for the empty one."""
    names = set()
    for line in importlib.metadata.requires("enginesmith") or []:
        name = re.split(r"[^\w-]", line)[0].lower()
        marker = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if (marker.group(1) if marker else "") == extra:
            names.add(name)
    return names


def test_version_is_the_packages() -> None:
    """One version, in __init__.py."""
    assert es.__version__ == importlib.metadata.version("enginesmith")


def test_running_a_plan_needs_numpy_alone() -> None:
    """The core installs nothing else."""
    assert requirements() == {"numpy"}


def test_extras_are_pinned() -> None:
    """The extras that the README names."""
    extras = set(importlib.metadata.metadata("enginesmith").get_all("Provides-Extra") or [])
    assert extras == {
        "build", "cuda", "triton", "cublaslt", "cudnn", "bench", "examples", "dev",
    }  # fmt: skip


def test_every_dependency_has_a_range_and_a_reason() -> None:
    """docs/dependencies.md says why each is there."""
    reasons = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for line in importlib.metadata.requires("enginesmith") or []:
        requirement = line.split(";")[0]
        name = re.split(r"[^\w-]", requirement)[0].lower()
        if name != "enginesmith":
            assert ">=" in requirement, f"{requirement}: no lower bound"
            assert "<" in requirement, f"{requirement}: no upper bound"
            assert f"| {name} |" in reasons, f"docs/dependencies.md does not say why {name}"


def test_every_import_is_declared() -> None:
    """What src/ imports is in the core or in an extra that a user installs."""
    extras = ("build", "cuda", "triton")
    installed = requirements().union(*map(requirements, extras))
    declared = {IMPORT_NAMES.get(name, name) for name in installed}
    known = declared | {"enginesmith"} | sys.stdlib_module_names
    undeclared = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            else:
                continue
            undeclared |= {
                f"{path.relative_to(PACKAGE)}: {name}"
                for name in names
                if name.split(".")[0] not in known
            }
    assert undeclared <= OPTIONAL


def test_command_is_installed() -> None:
    """`enginesmith` calls the command line's main."""
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert scripts["enginesmith"].value == "enginesmith.cli:main"
    assert callable(scripts["enginesmith"].load())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `pip install` would build from this checkout."""
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = target.glob("*.whl")
    return built


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    """No tests, no benchmarks, no examples; the licence and the typing marker are there."""
    names = zipfile.ZipFile(wheel).namelist()
    outside = [n for n in names if not n.startswith(("enginesmith/", "enginesmith-0"))]
    assert not outside
    assert not [n for n in names if re.search(r"(^|/)(tests?|bench|examples)/", n)]
    assert "enginesmith/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in names)
    sources = {str(p.relative_to(PACKAGE.parent)) for p in PACKAGE.rglob("*.py")}
    assert sources <= set(names)


RUN_ALONE = """
import sys
sys.path[:0] = sys.argv[1:3]
import numpy as np
import enginesmith as es
assert es.__file__.startswith(sys.argv[1]), es.__file__
engine = es.load(sys.argv[3])
(y,) = engine(np.full((1, 4), 3, np.float32)).values()
np.testing.assert_array_equal(y, np.full((1, 4), 5, np.float32))
assert not {"onnx", "sympy", "ziglang", "rich", "click"} & set(sys.modules)
"""


def add_model() -> onnx.ModelProto:
    """y = x + 2 on float32 [1, 4]."""
    info = [onnx.helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy"]
    two = onnx.numpy_helper.from_array(np.float32(2), "two")
    node = onnx.helper.make_node("Add", ["x", "two"], ["y"])
    graph = onnx.helper.make_graph([node], "add", info[:1], info[1:], [two])
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9
    )


def test_the_wheel_runs_a_plan_with_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    """An interpreter that sees the wheel, numpy and the standard library runs a saved plan."""
    es.build(add_model(), target="cpu").save(tmp_path / "add.plan")
    zipfile.ZipFile(wheel).extractall(tmp_path / "wheel")
    only_numpy = tmp_path / "numpy"
    only_numpy.mkdir()
    site = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (only_numpy / name).symlink_to(site / name)
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", RUN_ALONE]
        + [str(tmp_path / name) for name in ("wheel", "numpy", "add.plan")],
        check=True,
        cwd=tmp_path,
    )
