"""What a plan carries to be tuned elsewhere: the graph comes back as it was."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from tests.passes.graphs import Builder

from enginesmith.errors import PlanError
from enginesmith.ir import dims
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.printer import print_graph
from enginesmith.plan.plan import Plan, SymbolRange
from enginesmith.planner.carry import pack_graph, unpack_graph

N = dims.symbol("n")


def hold(value: Value, dtype: str) -> Value:
    value.type = replace(value.type, layout=replace(value.type.layout, held=dtype))
    return value


def net(held: str = "") -> Graph:
    """Products by a large, a repeated and a small constant, with notes and an assumption."""
    b = Builder()
    x = b.input(N, 40)
    w = b.const(40, 40)
    if held:
        hold(w, held)
    y = b.matmul(b.matmul(x, w), w)
    graph = b.result(b.matmul(y, b.const(40, 3)), b.call("add", y, constant("one", np.float32(1))))
    graph.notes.append('a "note"\nof two lines')
    graph.assumptions.append((N, 2 * dims.floordiv(N, 2), ("node", "other")))
    graph.metadata["author"] = "nobody"
    return graph


def plan_of(graph: bytes, weights: bytes = b"") -> Plan:
    return Plan(
        "net", "cpu:avx2", "fp32", (SymbolRange("n", 0, 1, None),), (), (), (), (), (), 0,
        graph=graph, weights=weights,
    )  # fmt: skip


def data_of(graph: Graph) -> list[np.ndarray]:
    return [value.data for value in graph.values() if value.data is not None]


def test_round_trip() -> None:
    graph = net()
    found = unpack_graph(plan_of(pack_graph(graph, {})))
    assert print_graph(found) == print_graph(graph)
    for before, after in zip(data_of(graph), data_of(found), strict=True):
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype


@pytest.mark.parametrize(("held", "kind"), [("float16", np.float16), ("bfloat16", bfloat16)])
def test_constants_are_kept_as_they_are_held(held: str, kind: Any) -> None:
    full, graph = len(pack_graph(net(), {})), net(held)
    wanted = data_of(graph)[0].astype(kind)
    packed = pack_graph(graph, {})
    assert full - len(packed) > 1.8 * 40 * 40
    (w, *_) = data_of(unpack_graph(plan_of(packed)))
    assert w.dtype == np.float32
    np.testing.assert_array_equal(w.astype(kind).view(np.uint16), wanted.view(np.uint16))


def test_what_the_weights_hold_is_not_stored_again() -> None:
    graph = net()
    w = data_of(graph)[0].tobytes()
    packed = pack_graph(graph, {hashlib.sha256(w).digest(): 64})
    assert len(pack_graph(net(), {})) - len(packed) > len(w) - 200
    found = unpack_graph(plan_of(packed, bytes(64) + w))
    assert print_graph(found) == print_graph(graph)


def header_of(packed: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", packed[:8])
    return json.loads(packed[8 : 8 + length]), packed[8 + length :]


def packed_with(fields: Any, rest: bytes) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f | {"text": "graph"},
        lambda f: f | {"text": f["text"].replace("matmul", "__import__")},
        lambda f: f | {"text": f["text"].replace("matmul(%", "matmul(%no")},
        lambda f: f | {"text": "graph " + "(" * 10**5},
        lambda f: f | {"text": f["text"].replace("float32[n, 40]", f"float32[{'(' * 999}n, 40]")},
        lambda f: f | {"text": f["text"].replace("[n, ", "[other, ")},
        lambda f: f | {"constants": []},
        lambda f: f | {"constants": [[*f["constants"][0][:-1], 1 << 60]]},
        lambda f: f | {"constants": [[*f["constants"][0][:-1], -64]]},
        lambda f: f | {"constants": [["0" * 12, "object", "object", [1], False, 0]]},
        lambda f: f | {"constants": 3},
        lambda f: [],
        lambda f: {},
    ],
)
def test_damage_is_an_error(change: Any) -> None:
    fields, rest = header_of(pack_graph(net(), {}))
    with pytest.raises(PlanError, match=r"damaged.*graph.*build the model again"):
        unpack_graph(plan_of(packed_with(change(fields), rest)))


@pytest.mark.parametrize("size", [0, 5, 8, 100, 2000])
def test_truncation_is_an_error(size: int) -> None:
    with pytest.raises(PlanError, match="damaged"):
        unpack_graph(plan_of(pack_graph(net(), {})[:size]))
