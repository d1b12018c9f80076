"""Reading ONNX: a path, bytes or a ModelProto; external data is checked at once and mapped
lazily."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, inliner, numpy_helper

from enginesmith.errors import ModelError, Problem, UnsupportedError

_LARGEST_FILE = 2**31 - 1
STANDARD = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""
_IR_VERSION_FIELD = b"\x08"  # the first byte of nearly every ONNX file: field 1, varint


@dataclass(frozen=True, eq=False)
class Model:
    """A model read: `proto` holds no external data, which lies in `folder` (None: the model came
    from memory). `name`: for messages."""

    proto: onnx.ModelProto
    folder: Path | None
    name: str

    def array(self, tensor: TensorProto) -> np.ndarray[Any, Any]:
        """The tensor's elements; external ones are memory-mapped, never copied."""
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        assert self.folder is not None
        path, offset, _ = _location(tensor)
        shape = tuple(tensor.dims)
        if prod(shape) == 0:
            return np.zeros(shape, dtype)
        return np.asarray(np.memmap(self.folder / path, dtype, "r", offset, shape))


Source = str | os.PathLike[str] | bytes | onnx.ModelProto | Model


def read_model(source: Source) -> Model:
    """Read a model and inline its local functions. ModelError lists what is wrong."""
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        proto, folder, name = source, None, "the model"
    elif isinstance(source, bytes | bytearray | memoryview):
        proto, folder, name = _parse(bytes(source), "the model's bytes"), None, "the model"
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        proto, folder, name = _parse(_bytes_of(path), str(path)), path.parent, str(path)
    else:
        raise TypeError(f"a model is a path, bytes or onnx.ModelProto, not {type(source).__name__}")
    if not proto.HasField("graph") or not proto.opset_import:
        lacks = "graph" if not proto.HasField("graph") else "operator set version"
        raise ModelError(f"{name} isn't an ONNX model, or is truncated: it has no {lacks}")
    if not _is_text(proto):
        raise ModelError(f"{name} is damaged: a name in it isn't text")
    problems = list(_external_problems(proto, folder))
    if problems:
        raise ModelError(f"{name}: external data can't be read", problems)
    if proto.functions:
        try:
            proto = inliner.inline_local_functions(proto)
        except Exception as error:  # onnx raises bare C++ exceptions of several kinds
            raise ModelError(f"{name}: its local functions can't be inlined: {error}") from error
    return Model(proto, folder, name)


def _is_text(proto: onnx.ModelProto) -> bool:
    """Protobuf hands out strings that aren't UTF-8 as bytes."""

    def names() -> Iterator[object]:
        graph = proto.graph
        yield graph.name
        for opset in proto.opset_import:
            yield opset.domain
        for info in (*graph.input, *graph.output):
            yield info.name
            for dim in info.type.tensor_type.shape.dim:
                yield dim.dim_param
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (a.name for a in node.attribute)
        for tensor in tensors_of(graph):
            yield tensor.name
            yield from (e.value for e in tensor.external_data)

    return all(isinstance(name, str) for name in names())


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UnsupportedError(
                f"{path} is larger than 2 GiB, more than an ONNX file can hold: save it with "
                "external data (onnx.save(..., save_as_external_data=True))"
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"can't read the model {path}: {error.strerror or error}") from error


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    if not data:
        raise ModelError(f"{name} is empty, not an ONNX model")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RuntimeError) as error:
        if data[:1] == _IR_VERSION_FIELD:
            raise ModelError(
                f"{name} is truncated or damaged: it breaks off inside a field "
                f"({len(data)} bytes read)"
            ) from error
        raise ModelError(f"{name} isn't an ONNX model: no protobuf message") from error
    return proto


def tensors_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every tensor stored in the graph, subgraphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for subgraph in ([attribute.g] if attribute.HasField("g") else []) + list(
                attribute.graphs
            ):
                yield from tensors_of(subgraph)


def _location(tensor: TensorProto) -> tuple[str, int, int | None]:
    """(path within the folder, offset, length or None) of external data."""
    entries = {e.key: e.value for e in tensor.external_data}
    length = entries.get("length")
    return (
        entries.get("location", ""),
        int(entries.get("offset") or 0),
        int(length) if length else None,
    )


def _external_problems(proto: onnx.ModelProto, folder: Path | None) -> Iterator[Problem]:
    sizes: dict[str, int] = {}
    for tensor in tensors_of(proto.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        reason, remedy = _external_problem(tensor, folder, sizes)
        if reason:
            yield Problem(f"tensor {tensor.name}", reason, remedy)


def _external_problem(
    tensor: TensorProto, folder: Path | None, sizes: dict[str, int]
) -> tuple[str, str]:
    """(reason, remedy), empty where the data is there. `sizes`: of the files already looked at."""
    try:
        location, offset, length = _location(tensor)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (ValueError, KeyError) as error:
        return f"its external data entry is malformed: {error}", "export the model again"
    if folder is None:
        return (
            f"its data is in the file {location}, and the folder is unknown",
            "pass the model's path, not its bytes",
        )
    if not location:
        return "its external data names no file", "export the model again"
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"its data file {location} lies outside the model's folder {folder}", ""
    if location not in sizes:
        if not path.is_file():
            return (
                f"the file {location} with its data isn't in the folder {folder}",
                "copy it next to the model",
            )
        sizes[location] = path.stat().st_size
    need = prod(tensor.dims) * dtype.itemsize
    if any(d < 0 for d in tensor.dims) or offset < 0 or (length is not None and length < need):
        return f"its external data entry doesn't fit its shape {list(tensor.dims)}", ""
    if offset + need > sizes[location]:
        return (
            f"its data ends at byte {offset + need} of {location}, which has {sizes[location]}",
            "the file is truncated: copy it again",
        )
    return "", ""
