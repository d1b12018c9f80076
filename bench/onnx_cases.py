"""ONNX's own test cases (onnx.backend.test) through engines: right, not supported, or wrong.

A case is `unsupported` only if the build refuses it with an UnsupportedError, which names the node
and the reason. Everything else that isn't right is `failed`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from enginesmith.errors import UnsupportedError
from enginesmith.onnx_backend import EnginesmithBackend, with_constants

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
"""Those whose models and data come with the package."""

DIFFERENT = {
    f"test_resize_downsample_scales_{mode}_align_corners": (
        "where the scaled size isn't whole, ONNX's reference aligns the corners to the size before "
        "it is rounded; Enginesmith aligns them to the real one, as ONNX Runtime and PyTorch do"
    )
    for mode in ("linear", "cubic")
}
"""Cases that give something else on purpose, and why."""

Arrays = list[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """status: passed, unsupported or failed; reasons: why, but for passed ones."""

    status: str
    reasons: tuple[str, ...] = ()


@cache
def cases(kind: str) -> dict[str, Any]:
    """onnx's TestCase objects by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in sorted(load_model_tests(kind=kind), key=_name)}


def _name(case: Any) -> str:
    return str(case.name)


def model_of(case: Any) -> onnx.ModelProto:
    """The case's model."""
    return case.model or onnx.load(Path(case.model_dir) / "model.onnx")


def data_of(case: Any, model: onnx.ModelProto) -> Iterator[tuple[Arrays, Arrays]]:
    """(inputs, expected outputs) of each data set."""
    for inputs, outputs in case.data_sets or ():
        yield [_array(v) for v in inputs], [_array(v) for v in outputs]
    if case.data_sets is None:
        for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
            yield (
                _files(folder, "input", model.graph.input),
                _files(folder, "output", model.graph.output),
            )


def _files(folder: Path, role: str, infos: Any) -> Arrays:
    found: Arrays = []
    count = len(list(folder.glob(f"{role}_*.pb")))
    for i, info in zip(range(count), infos, strict=False):
        if not info.type.HasField("tensor_type"):
            found.append(None)  # a sequence: the build refuses it
            continue
        tensor = TensorProto.FromString((folder / f"{role}_{i}.pb").read_bytes())
        found.append(numpy_helper.to_array(tensor))
    return found


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def with_symbols(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs have symbols for sizes, the same one for equal sizes; 1 stays, since
    whether a size repeats is decided at build time."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for value in result.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value != 1:
                dim.dim_param = f"size{dim.dim_value}"
    for value in result.graph.output:
        value.type.tensor_type.ClearField("shape")
    del result.graph.value_info[:]
    return result


def run(case: Any, symbolic: bool = False) -> Outcome:
    """Build and run a case; symbolic: with sizes only the run time knows. Weights, and operands
    that decide shapes (axes, the target of Reshape), that are fed at run time become constants
    where the engine needs that, as in real models."""
    model = model_of(case)
    data = list(data_of(case, model))
    model = with_symbols(model) if symbolic else model
    try:
        for inputs, expected in data:
            names = [i.name for i in model.graph.input]
            _check(case, _run(model, dict(zip(names, inputs, strict=False))), expected)
    except UnsupportedError as error:
        return Outcome("unsupported", tuple(dict.fromkeys(p.reason for p in error.problems)))
    except Exception as error:  # whatever it is, it is what must be told
        return Outcome("failed", (f"{type(error).__name__}: {error}",))
    return Outcome("passed")


def _check(case: Any, found: tuple[Any, ...], expected: Arrays) -> None:
    Runner.assert_similar_outputs(expected, found, case.rtol, case.atol, case.model_dir)


def _run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
    """With all inputs as feeds; if some must be constants, with the first alone, then none."""
    for kept in (len(feeds), 1, 0):
        fixed = {n: np.asarray(a) for n, a in list(feeds.items())[kept:]}
        rest = {n: a for n, a in feeds.items() if n not in fixed}
        try:
            return EnginesmithBackend.run_model(with_constants(model, fixed), rest)
        except UnsupportedError as error:
            if not kept or not re.search("computed from data|not a plain constant", str(error)):
                raise
    raise AssertionError


def operator_of(case: Any) -> str:
    """The operator a node case is about; for one that is expanded into its function's nodes, the
    operator it expands; with the domain if it isn't the standard one. Empty if none stands out."""
    base = cases("node").get(re.sub(r"_expanded(_ver\d+)?$", "", case.name), case)
    nodes = base.model.graph.node if base.model is not None else []
    if len(nodes) != 1:
        return ""
    domain = nodes[0].domain
    return nodes[0].op_type if domain in ("", "ai.onnx") else f"{domain}.{nodes[0].op_type}"
