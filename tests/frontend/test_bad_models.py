"""All that can be wrong with a model: messages name the node, the reason and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from enginesmith.errors import EnginesmithError, ModelError, UnsupportedError
from enginesmith.frontend import import_model, read_model

from .graphs import model, node


def small() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    return model([node("Conv", "x w", "y")], {"x": ["n", 3, 8, 8]}, ["y"], {"w": w})


# --- files ---------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"can't read the model .*none\.onnx: No such file"):
        read_model(tmp_path / "none.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="can't read the model"):
        read_model(str(tmp_path))


@pytest.mark.parametrize("text", [b"\x89PNG\r\n\x1a\nnot a model", b"hello, world", b"PK\x03\x04"])
def test_not_an_onnx_file(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "photo.onnx"
    path.write_bytes(text)
    with pytest.raises(ModelError, match=r"photo\.onnx isn't an ONNX model"):
        read_model(path)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(ModelError, match=r"empty\.onnx is empty"):
        read_model(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.onnx"
    data = small().SerializeToString()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"cut\.onnx .*truncated"):
        import_model(path)


def test_a_type_that_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"a path, bytes or onnx\.ModelProto, not int"):
        read_model(3)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(EnginesmithError):
        import_model(data)


DAMAGED = small().SerializeToString()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(DAMAGED) - 1), st.integers(1, 255))
def test_a_flipped_byte_never_crashes(position: int, change: int) -> None:
    data = bytearray(DAMAGED)
    data[position] ^= change
    try:
        graph = import_model(bytes(data))
    except EnginesmithError:
        return
    assert graph.outputs


# --- external data -------------------------------------------------------------------------------


def saved_with_external_data(folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(
        small(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


def test_external_data_is_mapped(tmp_path: Path) -> None:
    graph = import_model(saved_with_external_data(tmp_path))
    (w,) = [v for v in graph.values() if v.is_constant]
    expected = onnx.numpy_helper.to_array(small().graph.initializer[0])
    np.testing.assert_array_equal(w.data, expected)
    assert w.data is not None and not w.data.flags.owndata


def test_missing_external_data(tmp_path: Path) -> None:
    path = saved_with_external_data(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError) as caught:
        import_model(path)
    for part in ("tensor w", "weights.bin", str(tmp_path), "copy it next to the model"):
        assert part in str(caught.value)


def test_truncated_external_data(tmp_path: Path) -> None:
    path = saved_with_external_data(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"tensor w: .*ends at byte 432 of weights.bin, .* 5"):
        import_model(path)


@pytest.mark.parametrize("escape", ["../secret.bin", "/etc/hostname"])
def test_external_data_outside_the_folder(tmp_path: Path, escape: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(1000))
    path = saved_with_external_data(folder)
    proto = onnx.load(str(path), load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = escape
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"tensor w: its data file .* lies outside the model's"):
        import_model(path)


def test_external_data_of_bytes(tmp_path: Path) -> None:
    data = saved_with_external_data(tmp_path).read_bytes()
    with pytest.raises(ModelError, match=r"tensor w: .*weights.bin.*pass the model's path"):
        import_model(data)


# --- graphs --------------------------------------------------------------------------------------

X = {"x": ["n", 4]}


def constants(**arrays: Any) -> dict[str, Any]:
    return {k: np.asarray(v) for k, v in arrays.items()}


INVALID = {
    "cycle": (
        model([node("Add", "x b", "a", "one"), node("Relu", "a", "b", "two")], X, ["b"]),
        ["is part of a cycle", "one", "two"],
    ),
    "undefined input": (
        model([node("Add", "x ghost", "y", "add")], X, ["y"]),
        ["add: reads ghost, which nothing defines"],
    ),
    "undefined output": (
        model([node("Relu", "x", "y")], X, ["z"]),
        ["output z: nothing defines it"],
    ),
    "duplicate outputs": (
        model([node("Relu", "x", "y", "one"), node("Abs", "x", "y", "two")], X, ["y"]),
        ["two: defines y, which node one define already"],
    ),
    "shape conflict of operands": (
        model([node("Add", "x c", "y", "add")], X, ["y"], constants(c=np.ones(3, np.float32))),
        ["add: shapes don't broadcast: (n, 4) and (3)"],
    ),
    "shape conflict of a product": (
        model([node("MatMul", "x c", "y", "mm")], X, ["y"], constants(c=np.ones((3, 2), "f"))),
        ["mm: the inner sizes of the matrix product differ: 4 and 3"],
    ),
    "shape conflict with the declaration": (
        model([node("Relu", "x", "y")], X, ["y"], declared={"y": ["n", 5]}),
        ["output y: shape conflict: declared (?, 5), the graph computes float32[n, 4]"],
    ),
    "type conflict with the declaration": (
        model([node("Relu", "x", "y")], X, ["y"], dtypes={"y": TensorProto.INT64}),
        ["output y: is declared int64, the graph computes float32"],
    ),
    "conflicting types": (
        model([node("Add", "x i", "y", "add")], X, ["y"], constants(i=np.array([1]))),
        ["add: operands of element types float32 and int64"],
    ),
    "unknown attribute": (
        model([node("Relu", "x", "y", "r", alpha=1.0)], X, ["y"]),
        ["r: Relu: unknown attribute alpha"],
    ),
    "attribute of a wrong type": (
        model([node("Softmax", "x", "y", "s", axis=1.5)], X, ["y"]),
        ["s: Softmax: attribute axis is of type FLOAT, not INT"],
    ),
    "missing attribute": (
        model([node("Concat", "x x", "y", "c")], X, ["y"]),
        ["c: Concat: attribute axis is missing"],
    ),
    "missing operand": (
        model([node("Add", "x", "y", "a")], X, ["y"]),
        ["a: Add: 1 inputs where 2 are needed"],
    ),
    "axis out of range": (
        model([node("Softmax", "x", "y", "s", axis=2)], X, ["y"]),
        ["s: axis 2 of a tensor of rank 2"],
    ),
    "impossible reshape": (
        model([node("Reshape", "x t", "y", "r")], {"x": [2, 4]}, ["y"], constants(t=[3, 3])),
        ["r: a tensor of shape (2, 4) can't be reshaped to (3, 3)"],
    ),
    "channels": (
        model(
            [node("Conv", "x w", "y", "c")], {"x": ["n", 4, 8, 8]}, ["y"],
            constants(w=np.ones((2, 3, 1, 1), np.float32)),
        ),
        ["c: the input has 4 channels, the weights are for 3"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_invalid_graphs(name: str) -> None:
    bad, parts = INVALID[name]
    with pytest.raises(ModelError) as caught:
        import_model(bad)
    assert not isinstance(caught.value, UnsupportedError)
    assert "isn't a valid model" in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_every_unsupported_operator_is_listed() -> None:
    nodes = [
        node("NonZero", "x", "a", "first"),
        node("Relu", "x", "b", "fine"),
        helper.make_node("TopK", ["b", "k"], ["values", "indices"]),
        helper.make_node("Fancy", ["b"], ["c"], name="third", domain="com.example"),
        node("Resize", "image - scales", "d", "fourth", antialias=1, mode="linear"),
    ]
    scales = np.array([1, 1, 0.5, 0.5], np.float32)
    inputs = {"x": ["n", 4], "image": ["n", 3, 8, 8]}
    bad = model(nodes, inputs, ["b"], {"k": [2], "scales": scales}, opset=18)
    with pytest.raises(UnsupportedError) as caught:
        import_model(bad)
    assert [(p.where, p.reason) for p in caught.value.problems] == [
        ("first", "no importer for operator NonZero"),
        ("TopK -> values", "no importer for operator TopK"),
        ("third", "no importer for operator Fancy of domain com.example"),
        ("fourth", "Resize with antialias=1"),
    ]
    assert "4 problems" in str(caught.value)


def test_an_unsupported_element_type() -> None:
    bad = model([node("Relu", "x", "y")], X, ["y"], dtypes={"x": TensorProto.BFLOAT16, "y": 16})
    with pytest.raises(UnsupportedError, match=r"input x: it has element type bfloat16.*float32"):
        import_model(bad)


def test_an_input_of_unknown_rank() -> None:
    bad = model([node("Relu", "x", "y")], {"x": None}, ["y"])  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match="input x: its rank is unknown"):
        import_model(bad)
