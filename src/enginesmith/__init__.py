"""Enginesmith: a trained model becomes the fastest engine for one machine.

    import enginesmith as es
    engine = es.build("model.onnx", shapes={"x": (1, 3, 224, 224)})
    outputs = engine({"x": x})
    engine.save("model.plan"); engine = es.load("model.plan")

Names load on first use: running a saved plan needs numpy alone, building needs
`enginesmith[build]`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enginesmith.builder import Profile, Progress, build, check_model, tune
    from enginesmith.errors import (
        BuildError,
        ContextError,
        EnginesmithError,
        FeedError,
        ModelError,
        PlanError,
        UnsupportedError,
    )
    from enginesmith.plan.plan import Plan, TensorSpec
    from enginesmith.runtime.context import ExecutionContext, Pending, Stream
    from enginesmith.runtime.engine import Engine, load

__version__ = "0.1.0"

_HOMES = {
    "build": "builder", "check_model": "builder", "Profile": "builder", "Progress": "builder",
    "tune": "builder",
    "load": "runtime.engine", "Engine": "runtime.engine",
    "ExecutionContext": "runtime.context", "Pending": "runtime.context",
    "Stream": "runtime.context", "Plan": "plan.plan", "TensorSpec": "plan.plan",
    "EnginesmithError": "errors", "ModelError": "errors", "UnsupportedError": "errors",
    "BuildError": "errors", "PlanError": "errors", "FeedError": "errors",
    "ContextError": "errors",
}  # fmt: skip
"""Public name -> module."""

__all__ = [
    "BuildError", "ContextError", "Engine", "EnginesmithError", "ExecutionContext", "FeedError",
    "ModelError", "Pending", "Plan", "PlanError", "Profile", "Progress", "Stream", "TensorSpec",
    "UnsupportedError", "__version__", "build", "check_model", "load", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'enginesmith' has no attribute {name!r}")
    try:
        value = getattr(import_module(f"enginesmith.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("enginesmith"):
            raise
        from enginesmith.errors import BuildError

        raise BuildError(
            f"enginesmith.{name} needs the package {error.name!r}, which is not installed; "
            "install the builder with: pip install 'enginesmith[build]'"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
