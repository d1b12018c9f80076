"""Feeds: what is taken, and the messages for what isn't."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny

from enginesmith.errors import EnginesmithError, FeedError
from enginesmith.plan.plan import Buffer, Constraint, SymbolRange, TensorSpec
from enginesmith.runtime.binding import Binder
from enginesmith.runtime.engine import Engine
from enginesmith.runtime.feeds import gather


@pytest.fixture(scope="module", params=[0, 128])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Batch 1 to 8; without and with slack."""
    with Engine(tiny.plan(slack=request.param, min_batch=1, max_batch=8), threads=2) as engine:
        yield engine


class OnlyDlpack:
    """Another library's tensor."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class OnlyArray:
    """An object of the array protocol."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


class OnAnotherDevice(OnlyArray):
    """DLPack refuses, the array protocol serves."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("not on the CPU")

    def __dlpack_device__(self) -> Any:
        return (2, 0)


def misaligned(x: np.ndarray) -> np.ndarray:
    """The same values at an address that is no multiple of 4."""
    memory = np.empty(x.nbytes + 1, np.uint8)
    view = memory[1:].view(np.uint8)[: x.nbytes]
    view[:] = x.reshape(-1).view(np.uint8)
    return np.ndarray(x.shape, x.dtype, memory, 1)


FORMS = {
    "fortran order": np.asfortranarray,
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "transposed": lambda x: x.T.copy().T,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "byte-swapped and strided": lambda x: np.repeat(x.astype(">f4"), 2, axis=0)[::2],
    "misaligned": misaligned,
    "inside another array": lambda x: np.pad(x, 3)[3:-3, 3:-3],
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "subclass": lambda x: x.view(np.ma.MaskedArray),
    "memory map": lambda x: x.view(np.memmap),
    "dlpack": OnlyDlpack,
    "array protocol": OnlyArray,
    "dlpack that refuses": OnAnotherDevice,
}


@pytest.mark.parametrize("form", FORMS)
def test_any_layout(engine: Engine, form: str) -> None:
    """Whatever its layout, an array of the right type and shape is taken."""
    for batch in (1, 5):
        x = tiny.sample(batch, batch)
        tiny.check(engine(FORMS[form](x)), x)


def test_broadcast_view(engine: Engine) -> None:
    """Strides of zero."""
    x = np.broadcast_to(tiny.sample(1), (6, tiny.COLUMNS))
    tiny.check(engine(x), x)


def test_dlpack_out(engine: Engine) -> None:
    """Results go to other libraries without a copy."""
    y = engine(tiny.sample(3))["y"]
    taken = np.from_dlpack(y)
    assert np.shares_memory(taken, y)


def message(engine: Engine, *feeds: Any) -> str:
    """The text of the FeedError these feeds raise."""
    with pytest.raises(FeedError) as caught:
        engine(*feeds)
    assert isinstance(caught.value, EnginesmithError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


X = tiny.sample(2)


@pytest.mark.parametrize(
    ("feeds", "parts"),
    [
        ({}, ["input 'x' is missing: float32 (batch, 37)"]),
        ({"X": X}, ["input 'x' is missing", "no input 'X'; the inputs are ['x']"]),
        ({"x": X, "extra": X}, ["no input 'extra'"]),
        ({"x": X, 3: X}, ["no input 3"]),
        ({"x": X.astype(np.float64)}, ["'x' is float64, but", "float32; pass value.astype"]),
        ({"x": X.astype(np.float16)}, ["'x' is float16, but the engine takes float32"]),
        ({"x": X.astype(object)}, ["'x' is object, but the engine takes float32"]),
        ({"x": X.astype("U")}, ["but the engine takes float32"]),
        ({"x": X[0]}, ["has 1 dimensions (37,), but the engine takes 2: (batch, 37)"]),
        ({"x": X[None]}, ["has 3 dimensions (1, 2, 37)"]),
        ({"x": X[:, :36]}, ["axis 1 is 36, but the engine takes 37: (batch, 37)"]),
        ({"x": tiny.sample(9)}, ["axis 0 (batch) is 9", "built for 1 to 8", "wider profile"]),
        ({"x": tiny.sample(0)}, ["axis 0 (batch) is 0", "built for 1 to 8"]),
        ({"x": X.tolist()}, ["'x' is a list, not an array; pass numpy.asarray"]),
        ({"x": None}, ["'x' is a NoneType, not an array"]),
        ({"x": "text"}, ["'x' is a str, not an array"]),
        ({"x": 1.5}, ["'x' is a float, not an array"]),
        ({"x": np.float32(1)}, ["has 0 dimensions ()"]),
    ],
)  # fmt: skip
def test_misfits(engine: Engine, feeds: dict[Any, Any], parts: list[str]) -> None:
    """Each says which input, what it is, what was expected and what to do."""
    text = message(engine, feeds)
    assert text.startswith("the feeds don't fit the engine:\n  - ")
    for part in parts:
        assert part in text


def test_all_misfits_at_once(engine: Engine) -> None:
    """Type, size, range and unknown names in one message."""
    text = message(engine, {"x": np.zeros((9, 36)), "xx": X})
    assert text.count("\n  - ") == 4


def test_wrong_number_of_arrays(engine: Engine) -> None:
    """Arrays by position must be complete."""
    assert "0 arrays given, but the engine has 1 inputs: ['x']" in message(engine)
    assert "2 arrays given" in message(engine, X, X)
    assert "2 arrays given" in message(engine, {"x": X}, X)


PLAN = replace(
    tiny.plan(),
    symbols=(SymbolRange("n", 1, 1, 4), SymbolRange("h", 2, 2, None)),
    inputs=(
        TensorSpec("pixels", "float32", ("n", 3, "h", "2*h")),
        TensorSpec("mask", "bool", ("n", "h")),
        TensorSpec("scale", "float64", ()),
    ),
    outputs=(TensorSpec("y", "float32", ("n", "h - 4")), TensorSpec("s", "float32", ("n",))),
    exprs=("n", "h"),
    buffers=(),
    scratch=0,
)
GOOD = {
    "pixels": np.zeros((2, 3, 5, 10), np.float32),
    "mask": np.ones((2, 5), bool),
    "scale": np.float64(3),
}


def test_several_inputs() -> None:
    """The order is the plan's; symbols come from all of them."""
    arrays, bound = gather(PLAN.inputs, dict(reversed(GOOD.items())), Binder(PLAN))
    assert [a.shape for a in arrays] == [(2, 3, 5, 10), (2, 5), ()]
    assert bound.symbols == {"n": 2, "h": 5}
    assert bound.outputs == ((2, 1), (2,))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"mask": np.ones((3, 5), bool)},
         ["input 'mask', axis 0 (n) is 3, but input 'pixels', axis 0 makes it 2"]),
        ({"pixels": np.zeros((2, 3, 5, 11), np.float32)},
         ["input 'pixels', axis 3 is 11, but 2*h is 10 (h = 5)"]),
        ({"mask": np.ones((2, 6), np.uint8)}, ["'mask' is uint8", "axis 1 (h) is 6"]),
        ({"pixels": np.zeros((5, 3, 1, 2), np.float32), "mask": np.ones((5, 1), bool)},
         ["(n) is 5, but the engine was built for 1 to 4",
          "(h) is 1, but the engine was built for at least 2"]),
        ({"pixels": np.zeros((2, 3, 3, 6), np.float32), "mask": np.ones((2, 3), bool)},
         ["output 'y' would have the shape (2, -1): the inputs are too small"]),
        ({"scale": np.zeros(1)}, ["'scale' has 1 dimensions (1,), but the engine takes 0: ()"]),
    ],
)  # fmt: skip
def test_misfits_between_inputs(change: dict[str, Any], parts: list[str]) -> None:
    """One symbol, two values; expressions; ranges of several symbols."""
    with pytest.raises(FeedError) as caught:
        gather(PLAN.inputs, {**GOOD, **change}, Binder(PLAN))
    for part in parts:
        assert part in str(caught.value)


def test_constraints() -> None:
    """Sizes the model can't take, with the nodes that say so; intermediate results too small."""
    plan = replace(
        PLAN,
        outputs=(),
        constraints=(Constraint("h//4*4", "h", ("Reshape_7", "Add_8")),),
        buffers=(Buffer("arena", "h*64 - 400"),),
    )
    words = "node Reshape_7, Add_8 needs h//4.4 and h to be equal, but they are 4 and 5: feed"
    with pytest.raises(FeedError, match=words):
        gather(plan.inputs, GOOD, Binder(plan))
    even = {**GOOD, "pixels": np.zeros((2, 3, 4, 8), np.float32), "mask": np.ones((2, 4), bool)}
    with pytest.raises(FeedError, match="feed larger inputs"):
        gather(plan.inputs, even, Binder(plan))
    plan = replace(plan, buffers=())
    assert gather(plan.inputs, even, Binder(plan))[1].symbols["h"] == 4


def test_close_names_are_suggested() -> None:
    """Typing errors."""
    feeds = {"pixel": GOOD["pixels"], "mask": GOOD["mask"], "scale": GOOD["scale"]}
    with pytest.raises(FeedError, match="no input 'pixel'; did you mean 'pixels'"):
        gather(PLAN.inputs, feeds, Binder(PLAN))


def test_binding_is_remembered_within_bounds() -> None:
    """The same shapes bind once; the cache doesn't grow for ever."""
    binder = Binder(tiny.plan())
    first = binder.bind(((5, tiny.COLUMNS),))
    assert binder.bind(((5, tiny.COLUMNS),)) is first
    for batch in range(1000):
        binder.bind(((batch, tiny.COLUMNS),))
    assert len(binder._cache) <= 64
