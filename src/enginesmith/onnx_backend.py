"""ONNX's backend interface over Enginesmith, as ONNX Runtime and others offer it.

    from enginesmith import onnx_backend
    outputs = onnx_backend.prepare(model).run([x])
    outputs = onnx_backend.run_node(node, [x, y])

Engines are built untuned (`tuning=True` times candidates, as `enginesmith.build` does by default),
and every other option of `enginesmith.build` can be given by name. What can't be built raises
UnsupportedError or ModelError, which list the nodes and the reasons. Nothing runs on the host
through onnx.reference, whose results the backend is compared with, unless `host_steps=True` asks
for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from enginesmith.builder import build, check_model
from enginesmith.errors import BuildError, FeedError, UnsupportedError
from enginesmith.runtime.engine import Engine

if TYPE_CHECKING:
    from enginesmith.builder import Source

Array = np.ndarray[Any, np.dtype[Any]]
OutputsInfo = Sequence[tuple[np.dtype[Any], tuple[int, ...]]]


class EnginesmithRep(BackendRep):
    """A model that is built and ready to run."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in the graph's order, as a tuple that can also be indexed by name.

        inputs: arrays by name, a sequence of arrays in the graph's order, or the single array.
        FeedError if they don't fit. There are no options.
        """
        if kwargs:
            raise TypeError(f"run() takes no options, got {', '.join(map(repr, kwargs))}")
        found = self.engine(*_feeds(inputs))
        return namedtupledict("Outputs", list(found))(*found.values())


def _feeds(inputs: Any) -> tuple[Any, ...]:
    """`inputs` as the arguments of an engine."""
    if isinstance(inputs, Mapping):
        return (dict(inputs),)
    return tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)


class EnginesmithBackend(Backend):
    """onnx.backend.base.Backend; its methods are also functions of this module."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether `device`, such as "CPU" or "CPU:0", is one engines can be built for."""
        return re.fullmatch(r"CPU(:0)?", device) is not None

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether every node of the model can be built; kwargs: those of `check_model`."""
        if not cls.supports_device(device):
            return False
        return not check_model(model, host_steps=kwargs.pop("host_steps", False), **kwargs)

    @classmethod
    def prepare(
        cls, model: Source, device: str = "CPU", *, tuning: bool = False, host_steps: bool = False,
        **kwargs: Any,
    ) -> EnginesmithRep:  # fmt: skip
        """Build `model`. kwargs: options of `enginesmith.build`.

        Raises ModelError, UnsupportedError (both list everything found) and BuildError.
        """
        if not cls.supports_device(device):
            raise BuildError(f"device {device!r} isn't supported; use 'CPU'")
        return EnginesmithRep(build(model, tuning=tuning, host_steps=host_steps, **kwargs))

    @classmethod
    def run_model(
        cls, model: Source, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[Any, ...]:
        """Build and run once; arguments as for `prepare` and EnginesmithRep.run."""
        prepared = cls.prepare(model, device, **kwargs)
        with prepared.engine:
            return prepared.run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: OutputsInfo | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one operator. inputs: one array per input that isn't left out (or by name).

        Small integers that decide shapes, such as the target of Reshape, become constants of the
        engine. outputs_info: (dtype, shape) of each output, checked if given. kwargs: opset_version
        (of the standard domain, by default the newest this onnx knows) and those of `prepare`.
        """
        feeds = _named(node, inputs)
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        model = node_model(node, feeds, opset, outputs_info)
        try:
            return cls.run_model(model, feeds, device, **kwargs)
        except UnsupportedError as error:
            decisive = [name for name, array in feeds.items() if _may_decide_shapes(array)]
            if "computed from data" not in str(error) or not decisive:
                raise
        model = with_constants(model, {name: feeds.pop(name) for name in decisive})
        return cls.run_model(model, feeds, device, **kwargs)


def _named(node: onnx.NodeProto, inputs: Any) -> dict[str, Array]:
    """The arrays by the names of the node's inputs, as feeds of a model of it."""
    names = list(dict.fromkeys(name for name in node.input if name))
    if not isinstance(inputs, Mapping):
        arrays = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        given = [name for name in node.input if name]
        if len(arrays) != len(given):
            raise FeedError(f"{len(arrays)} arrays for the inputs {given} of {node.op_type}")
        inputs = dict(zip(given, arrays, strict=True))
    missing = [name for name in names if name not in inputs]
    if missing:
        raise FeedError(f"no array for the inputs {missing} of {node.op_type}")
    return {name: np.asarray(inputs[name]) for name in names}


def _may_decide_shapes(array: Array) -> bool:
    return array.dtype == np.int64 and array.ndim <= 1


def node_model(
    node: onnx.NodeProto,
    feeds: Mapping[str, Array],
    opset: int,
    outputs_info: OutputsInfo | None = None,
) -> onnx.ModelProto:
    """A model of one node, its inputs typed like `feeds`."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feeds.items()
    ]
    names = [name for name in node.output if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    if outputs_info is not None:
        outputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
            )
            for name, (dtype, shape) in zip(names, outputs_info, strict=True)
        ]
    graph = helper.make_graph([node], node.op_type, inputs, outputs)
    imports = [helper.make_opsetid("", opset)]
    if node.domain not in ("", "ai.onnx"):
        imports.append(helper.make_opsetid(node.domain, 1))
    return helper.make_model(graph, opset_imports=imports)


def with_constants(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the model with these inputs as constants."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [value for value in result.graph.input if value.name not in values]
    del result.graph.input[:]
    result.graph.input.extend(kept)
    for name, array in values.items():
        result.graph.initializer.append(numpy_helper.from_array(array, name))
    return result


is_compatible = EnginesmithBackend.is_compatible
prepare = EnginesmithBackend.prepare
run_model = EnginesmithBackend.run_model
run_node = EnginesmithBackend.run_node
supports_device = EnginesmithBackend.supports_device
