"""What a plan with untuned steps carries, so that another machine can tune it: its graph.

The graph is the one that steps were lowered from (all passes done, layouts and held types chosen),
as the text of `ir/printer.py`, with its constants as they are held in memory. Tuning goes on from
there exactly as a build does, so it gives the plan that a build on that machine would have given.

    8 bytes       length of the header, little-endian
    header        JSON: text, and per constant that the text prints as a hash its place:
                  [hash, type, held type, shape, whether among the plan's weights, byte offset]
    constants     those that aren't among the plan's weights as they are, each 64-byte aligned

Nothing in it is executed; whatever is wrong with it is a PlanError.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from enginesmith.errors import PlanError
from enginesmith.ir import dims
from enginesmith.ir.graph import Graph
from enginesmith.ir.parser import parse_graph
from enginesmith.ir.printer import INLINE, constant_hash, print_graph
from enginesmith.ir.verifier import InternalError, verify
from enginesmith.kernels.base import ITEMSIZE
from enginesmith.plan.plan import Plan
from enginesmith.planner.lower import held_data

ALIGNMENT = 64


def pack_graph(graph: Graph, weights: Mapping[bytes, int]) -> bytes:
    """The bytes for `Plan.graph`. weights: SHA-256 of what the plan's weights hold -> byte offset
    there. Constants of the graph that are held in fewer bits are rounded."""
    places: dict[str, list[Any]] = {}
    pieces: list[bytes] = []
    size = 0
    for value in graph.values():
        if value.data is None:
            continue
        held, shape = np.ascontiguousarray(held_data(value)), value.data.shape
        value.data = held.astype(value.dtype, copy=False).reshape(shape)
        digest = constant_hash(value.data)
        if value.data.size <= INLINE or digest in places:
            continue
        data = held.tobytes()
        known = weights.get(hashlib.sha256(data).digest())
        place = [known is not None, size if known is None else known]
        places[digest] = [digest, value.dtype, held.dtype.name, shape, *place]
        if known is None:
            pieces.append(data + bytes(-len(data) % ALIGNMENT))
            size += len(pieces[-1])
    fields = {"text": print_graph(graph), "constants": list(places.values())}
    header = json.dumps(fields, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    return b"".join([struct.pack("<Q", len(header)), header, *pieces])


def unpack_graph(plan: Plan) -> Graph:
    """The graph of a plan that carries one. PlanError if it is damaged."""
    try:
        graph = _unpack(memoryview(plan.graph), memoryview(plan.weights))
        verify(graph)
        _check_symbols(graph, {symbol.name for symbol in plan.symbols})
    except (
        ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, struct.error,
        InternalError,
    ) as error:  # fmt: skip
        raise PlanError(
            f"the plan is damaged: its graph can't be read ({error}); build the model again"
        ) from error
    return graph


def _unpack(data: memoryview, weights: memoryview) -> Graph:
    (length,) = struct.unpack("<Q", data[:8])
    fields = json.loads(bytes(data[8 : 8 + length]))
    own = data[8 + length :]
    constants = {}
    for digest, dtype, held, shape, shared, offset in fields["constants"]:
        pool = np.frombuffer(weights if shared else own, np.uint8)
        if not {dtype, held} <= ITEMSIZE.keys() or offset < 0 or min(shape, default=0) < 0:
            raise ValueError(f"a constant of {dtype} and shape {shape} at {offset}")
        part = pool[offset : offset + prod(shape) * ITEMSIZE[held]]
        constants[digest] = part.view(_dtype(held)).reshape(shape).astype(dtype, copy=False)
    return parse_graph(fields["text"], constants)


def _check_symbols(graph: Graph, known: set[str]) -> None:
    """ValueError for sizes over symbols that the plan doesn't have."""
    for value in graph.values():
        for dim in value.shape:
            if unknown := dims.symbols_of(dim) - known:
                raise ValueError(f"%{value.name} has unknown sizes {sorted(unknown)}")


def _dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes  # a numpy type that onnx depends on

        return ml_dtypes.bfloat16
    return name
