"""The public names, and that importing the package costs next to nothing."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import enginesmith as es

PUBLIC = {
    "BuildError",
    "ContextError",
    "Engine",
    "EnginesmithError",
    "ExecutionContext",
    "FeedError",
    "ModelError",
    "Pending",
    "Plan",
    "PlanError",
    "Profile",
    "Progress",
    "Stream",
    "TensorSpec",
    "UnsupportedError",
    "__version__",
    "build",
    "check_model",
    "load",
    "tune",
}

HEAVY = {"onnx", "onnx_ir", "sympy", "ziglang", "rich", "click", "numpy"}


def modules_after(statement: str) -> set[str]:
    """The top-level packages loaded by a statement in a new interpreter."""
    program = f"import sys\n{statement}\nimport json\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return {name.split(".")[0] for name in json.loads(result.stdout)}


def test_public_names_are_pinned() -> None:
    """Adding or removing a public name is a decision, made here and in CHANGELOG.md."""
    assert set(es.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(es, name) is not None, name


def test_dir_lists_the_public_names() -> None:
    """Lazily loaded names are found by completion."""
    assert set(dir(es)) >= PUBLIC


def test_unknown_name_is_an_attribute_error() -> None:
    """Lazy loading keeps Python's own behaviour for a misspelt name."""
    assert not hasattr(es, "biuld")


def test_signatures_are_pinned() -> None:
    """The arguments that callers write."""
    build = inspect.signature(es.build).parameters
    assert next(iter(build)) == "model"
    assert {"target", "precision", "shapes"} <= set(build)
    assert all(
        build[name].kind is inspect.Parameter.KEYWORD_ONLY
        for name in ("target", "precision", "shapes")
    )
    assert next(iter(inspect.signature(es.load).parameters)) == "path"
    assert list(inspect.signature(es.Profile).parameters) == ["min", "opt", "max"]
    assert [*inspect.signature(es.TensorSpec).parameters][:3] == ["name", "dtype", "shape"]


def test_errors_share_one_base() -> None:
    """`except es.EnginesmithError` catches what this package raises on purpose."""
    errors = [getattr(es, name) for name in PUBLIC if name.endswith("Error")]
    assert all(issubclass(error, es.EnginesmithError) for error in errors)
    # A wrong feed is also what Python calls a wrong value.
    assert issubclass(es.FeedError, ValueError)


def test_import_is_light() -> None:
    """`import enginesmith` loads no builder package and not even numpy."""
    assert not modules_after("import enginesmith") & HEAVY


def test_load_needs_numpy_alone() -> None:
    """The runtime's names load numpy and nothing of the builder."""
    loaded = modules_after("import enginesmith; enginesmith.load; enginesmith.Engine")
    assert loaded & HEAVY <= {"numpy"}
