"""Compares an engine's outputs with a reference: ONNX Runtime where installed, else onnx's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import onnx

from enginesmith.ir.difference import Difference, Outputs, compare_outputs, difference, worst

__all__ = [
    "Difference", "Outputs", "Runner", "compare", "compare_outputs", "difference", "reference",
    "worst",
]  # fmt: skip

Runner: TypeAlias = Callable[[Mapping[str, Any]], Outputs]
"""Feeds by name -> outputs by name; an Engine is one."""


def compare(engine: Runner, reference: Runner, feeds: Mapping[str, Any]) -> list[Difference]:
    """Run both on the same feeds and compare every output of the reference."""
    return compare_outputs(engine(feeds), reference(feeds))


def reference(model: onnx.ModelProto | str | Path, threads: int = 0) -> tuple[str, Runner]:
    """(name, runner) of the best reference installed. `threads`: ONNX Runtime's, 0: its choice."""
    try:
        return "ONNX Runtime", _onnxruntime(model, threads)
    except ImportError:
        return "onnx.reference", _onnx_reference(model)


def _onnxruntime(model: onnx.ModelProto | str | Path, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _onnx_reference(model: onnx.ModelProto | str | Path) -> Runner:
    from onnx.reference import ReferenceEvaluator

    proto = model if isinstance(model, onnx.ModelProto) else onnx.load(str(model))
    evaluator = ReferenceEvaluator(proto)
    names = [output.name for output in proto.graph.output]

    def run(feeds: Mapping[str, Any]) -> Outputs:
        return dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))

    return run
