"""The pipeline is the folder layout: a module imports only from the stages above its own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
PACKAGE = SOURCE / "enginesmith"

# From the top of the pipeline to its bottom. `__init__` is the door: it names the stages lazily.
ORDER = [
    "errors",
    "knobs",
    "log",
    "plan",
    "runtime",
    "ir",
    "frontend",
    "passes",
    "codegen",
    "kernels",
    "toolchain",
    "tuner",
    "planner",
    "builder",
    "verify",
    "onnx_backend",
    "__init__",
    "cli",
    "__main__",
]
# What a machine that only runs plans must be able to import, besides the standard library.
RUNTIME_STAGES = {"errors", "knobs", "log", "plan", "runtime"}
RUNTIME_PACKAGES = {"numpy", "cuda"}
# What plans with host steps need besides.
ALLOWED = {"runtime/host_node.py": {"onnx"}}

MODULES = sorted(PACKAGE.rglob("*.py"))


def stage_of(module: str) -> str:
    """The stage of a dotted module name: enginesmith.plan.target -> plan."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def type_checking_lines(tree: ast.Module) -> set[int]:
    """The lines under `if TYPE_CHECKING:`, which nothing imports when the program runs."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    }


def imports(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports, also inside functions."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from enginesmith import plan` imports a stage, not a name.
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, n if module == "enginesmith" else module) for n in names)


def violations(path: Path, source: str) -> list[str]:
    """What a module imports against the order of the stages."""
    tree = ast.parse(source)
    own = stage_of(module_name(path))
    allowed = ALLOWED.get(str(path.relative_to(PACKAGE)), set())
    unseen = type_checking_lines(tree) if own == "__init__" else set()
    wrong = []
    for line, name in imports(path, tree):
        top = name.split(".")[0]
        if line in unseen:
            continue
        if top == "enginesmith":
            stage = stage_of(name)
            stage = stage if stage in ORDER else "__init__"  # a public name such as es.build
            above = ORDER.index(stage) <= ORDER.index(own)
            light = own not in RUNTIME_STAGES or stage in RUNTIME_STAGES
            if not (above and light):
                wrong.append(f"{path}:{line}: {own} imports {stage}, which is below it")
        elif own in RUNTIME_STAGES and not is_light(top) and top not in allowed:
            wrong.append(f"{path}:{line}: {own} imports {top}; running a plan needs numpy alone")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_above(path: Path) -> None:
    """No stage knows those below it, and the runtime knows nothing of the builder."""
    own = stage_of(module_name(path))
    assert own in ORDER, f"{own} is no stage of the pipeline: add it to ORDER and docs"
    wrong = violations(path, path.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source", "count"),
    [
        ("ir/a.py", "from enginesmith.plan.plan import Plan", 0),
        ("ir/a.py", "from enginesmith.passes import layout", 1),
        ("ir/a.py", "def f():\n    from ..tuner import choice", 1),
        ("ir/a.py", "from .. import plan, tuner", 1),
        ("ir/a.py", "import enginesmith", 1),
        ("ir/a.py", "import sympy", 0),
        ("runtime/devices/cpu.py", "import numpy, ctypes", 0),
        ("runtime/devices/cpu.py", "from enginesmith.ir import graph", 1),
        ("runtime/devices/cpu.py", "import sympy", 1),
        ("runtime/host_node.py", "import onnx", 0),
        ("runtime/host_calls.py", "import onnx", 1),
        ("plan/a.py", "from ..runtime import engine", 1),
    ],
)
def test_the_check_finds_what_it_should(module: str, source: str, count: int) -> None:
    """Absolute, relative and nested imports are seen."""
    assert len(violations(PACKAGE / module, source)) == count


def is_light(package: str) -> bool:
    """Whether a machine that only runs plans has this package."""
    return package in sys.stdlib_module_names or package in RUNTIME_PACKAGES


def test_every_stage_exists() -> None:
    """ORDER lists what there is."""
    missing = [
        stage
        for stage in ORDER
        if not (PACKAGE / stage).is_dir() and not (PACKAGE / f"{stage}.py").is_file()
    ]
    assert set(missing) <= {"__main__"}
