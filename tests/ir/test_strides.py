"""Strides of reshaped views: numpy's where it reshapes without a copy, none where it copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.strides import Stride, dense, natural, reshaped

N, H, W = (dims.symbol(name) for name in "nhw")


def viewed(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The reshaped array, if that needs no copy."""
    try:
        return np.reshape(array, shape, copy=False)
    except ValueError:
        return None


@st.composite
def shapes(draw: st.DrawFn, size: int) -> tuple[int, ...]:
    """A shape of `size` elements, perhaps with axes of length 1."""
    axes = []
    while size > 1:
        divisors = [d for d in range(2, size + 1) if size % d == 0]
        axes.append(draw(st.sampled_from(divisors)))
        size //= axes[-1]
    for _ in range(draw(st.integers(0, 2))):
        axes.insert(draw(st.integers(0, len(axes))), 1)
    return tuple(axes) or (1,)


@st.composite
def strided_arrays(draw: st.DrawFn, size: int) -> np.ndarray:
    """Transposed parts of arrays."""
    shape = draw(shapes(size))
    gaps = [draw(st.sampled_from([0, 0, 0, 1])) for _ in shape]
    whole = np.arange(math.prod(d + g for d, g in zip(shape, gaps, strict=True)))
    part = whole.reshape([d + g for d, g in zip(shape, gaps, strict=True)])
    part = part[tuple(slice(0, d) for d in shape)]
    return part.transpose(draw(st.permutations(range(len(shape)))))


def units(array: np.ndarray) -> list[int]:
    return [s // array.itemsize for s in array.strides]


@given(data=st.data(), size=st.sampled_from([1, 4, 6, 12, 24, 30, 36]))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_a_reshape_is_a_view_exactly_where_numpy_makes_one(data: st.DataObject, size: int) -> None:
    array = data.draw(strided_arrays(size))
    shape = data.draw(shapes(size))
    expected = viewed(array, shape)
    found = reshaped(tuple((s,) for s in units(array)), array.shape, shape)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        numbers = [int(dims.product(s)) for s in found]
        pairs = zip(shape, numbers, units(expected), strict=True)
        assert all(d == 1 or a == b for d, a, b in pairs)


def seen(strides: tuple[Stride, ...], old: Shape, new: Shape) -> list[str] | None:
    found = reshaped(strides, old, new)
    return None if found is None else [dims.to_text(dims.product(s)) for s in found]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((N, 6, 10), (N, 60), ["60", "1"]),
        ((N, 60), (N, 5, 12), ["60", "12", "1"]),
        ((N, H, W, 4), (N, H * W, 2, 2), ["4*h*w", "4", "2", "1"]),
        ((N, H * W), (N * H, W), ["w", "1"]),
        ((N, 1, H), (1, N * H), ["h*n", "1"]),
        ((2, 3), (3, 2), ["2", "1"]),
        ((N, 4), (N, 4, 1), ["4", "1", "1"]),
    ],
)
def test_dense_arrays(old: Shape, new: Shape, expected: list[str]) -> None:
    assert seen(dense(old), old, new) == expected


def test_channels_last_planes_merge_but_not_with_their_channels() -> None:
    old: tuple[Dim, ...] = (N, 8, H, W)
    strides = natural(old, True)
    assert seen(strides, old, (N, 8, H * W)) == ["8*h*w", "1", "8"]
    assert seen(strides, old, (N, 2, 4, H, W)) == ["8*h*w", "4", "1", "8*w", "8"]
    assert seen(strides, old, (N, 8 * H * W)) is None
    assert seen(strides, old, (N, 8 * H, W)) is None


def test_the_columns_of_a_slice_split_but_rows_do_not_merge_with_them() -> None:
    """(n, 12) of rows of 36: a third of merged queries, keys and values."""
    strides: tuple[Stride, ...] = ((36,), (1,))
    assert seen(strides, (N, 12), (N, 3, 4)) == ["36", "4", "1"]
    assert seen(strides, (2 * N, 12), (N, 2, 12)) == ["72", "36", "1"]
    assert seen(strides, (N, 12), (N * 12,)) is None


def test_sizes_that_do_not_divide_each_other_for_all_symbols_copy() -> None:
    assert seen(dense((N, H)), (N, H), (H, N)) is None
    assert seen(dense((N, 6)), (N, 6), (N * H, 6)) is None


def test_empty_arrays_are_no_trouble() -> None:
    assert seen(dense((0, 4)), (0, 4), (0, 2, 2)) == ["4", "2", "1"]
    reshaped(((8,), (1,)), (3, 0), (0, 5))  # either answer will do
