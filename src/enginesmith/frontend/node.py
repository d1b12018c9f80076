"""One ONNX node as its importer sees it: operands as Values, attributes read with their types.

Importers raise `Invalid` (the model breaks ONNX's rules) or `Unsupported` (it doesn't, but no
lowering exists); the driver adds the node's name and goes on with the other nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper

from enginesmith.ir.expr import DTYPES
from enginesmith.ir.graph import Value


class Refusal(Exception):  # noqa: N818 (not an error by itself: the driver collects them)
    """Why a node can't be imported, and what the user can do."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


class Invalid(Refusal):
    """The node breaks ONNX's rules."""


class Unsupported(Refusal):
    """The node is valid, but of a form that has no lowering."""


class FixedSize(Exception):  # noqa: N818 (not an error: the import starts again with the size)
    """The model makes sense for one value of a symbol only."""

    def __init__(self, symbol: str, size: int, node: str) -> None:
        super().__init__(f"{symbol} is {size}, which node {node} demands")
        self.symbol = symbol
        self.size = size


def dtype_name(elem_type: int, what: str = "a tensor") -> str:
    """The numpy name of an ONNX element type. `what`: the subject of the error's sentence."""
    try:
        name = np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)).name
    except KeyError:
        raise Invalid(f"{what} has the unknown element type {elem_type}") from None
    if name not in DTYPES:
        onnx_name = TensorProto.DataType.Name(elem_type).lower()
        raise Unsupported(f"{what} has element type {onnx_name}", f"supported: {', '.join(DTYPES)}")
    return name


def label(node: onnx.NodeProto) -> str:
    """How errors and provenance call a node: its name, or operator and first output when
    unnamed."""
    if node.name:
        return node.name
    outputs = [name for name in node.output if name]
    return f"{node.op_type} -> {outputs[0]}" if outputs else node.op_type


class OnnxNode:
    """Operands and attributes of one node.

    `opset`: the version its domain is imported at; `outputs`: how many outputs anything reads, the
    unread ones before the last read one included.
    """

    def __init__(
        self, proto: onnx.NodeProto, opset: int, inputs: Sequence[Value | None], outputs: int = 1
    ) -> None:
        self.proto = proto
        self.opset = opset
        self.inputs = list(inputs)
        self.outputs = outputs
        self._attributes = {a.name: a for a in proto.attribute}

    def value(self, slot: int) -> Value:
        """A required operand."""
        value = self.optional(slot)
        if value is None:
            raise Invalid(f"input {slot} is missing")
        return value

    def optional(self, slot: int) -> Value | None:
        """An operand, or None where it is left out."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def has(self, name: str) -> bool:
        """Is the attribute written in the file?"""
        return name in self._attributes

    def integer(self, name: str, default: int | None = None) -> int:
        found = self._get(name, AttributeProto.INT, default is None)
        if found is not None:
            return int(found.i)
        assert default is not None
        return default

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        found = self._get(name, AttributeProto.INTS, default is None)
        return tuple(found.ints if found is not None else default or ())

    def number(self, name: str, default: float | None = None) -> float:
        found = self._get(name, AttributeProto.FLOAT, default is None)
        if found is not None:
            return float(found.f)
        assert default is not None
        return default

    def numbers(self, name: str) -> tuple[float, ...]:
        found = self._get(name, AttributeProto.FLOATS, required=True)
        assert found is not None
        return tuple(found.floats)

    def text(self, name: str, default: str | None = None) -> str:
        found = self._get(name, AttributeProto.STRING, default is None)
        if found is not None:
            return found.s.decode(errors="replace")
        assert default is not None
        return default

    def tensor(self, name: str) -> TensorProto:
        found = self._get(name, AttributeProto.TENSOR, required=True)
        assert found is not None
        return found.t

    def _get(self, name: str, kind: int, required: bool) -> AttributeProto | None:
        found: AttributeProto | None = self._attributes.get(name)
        if found is None:
            if required:
                raise Invalid(f"the attribute {name} is missing")
            return None
        if found.type != kind:
            names = AttributeProto.AttributeType
            raise Invalid(
                f"the attribute {name} is of type {names.Name(found.type)}, not {names.Name(kind)}"
            )
        return found

    def axis(self, rank: int, default: int | None = None, name: str = "axis") -> int:
        """The attribute as a non-negative axis of a tensor of this rank."""
        return normal_axis(self.integer(name, default), rank)


def normal_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front; Invalid if it is out of range."""
    if not -rank <= axis < rank:
        raise Invalid(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank


def normal_axes(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front, ascending; Invalid if one is out of range or repeated."""
    result = sorted(normal_axis(a, rank) for a in axes)
    if len(set(result)) != len(result):
        raise Invalid(f"axes {list(axes)} repeat")
    return tuple(result)
