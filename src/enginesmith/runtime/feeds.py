"""Feeds as the program can read them, and the list of everything wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from enginesmith.errors import FeedError
from enginesmith.plan.plan import TensorSpec
from enginesmith.runtime.binding import Binder, Bound, MisfitError, Shape, show_shape

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class StandIn:
    """What is checked in the place of an array elsewhere: one of its type and shape that occupies
    no memory, None if these can't be told. problem: what else is wrong with it."""

    array: Array | None
    problem: str = ""


def gather(
    specs: Sequence[TensorSpec], feeds: Mapping[str, Any], binder: Binder
) -> tuple[list[Array], Bound]:
    """The inputs in the plan's order, of the right type and native byte order (but maybe not
    contiguous), and what their shapes bind to. FeedError lists every misfit."""
    found, problems = arrays_of(specs, feeds)
    arrays = list(found.values())
    if len(arrays) == len(specs):
        try:
            bound = binder.bind(tuple(a.shape for a in arrays))
        except MisfitError as misfit:
            problems += misfit.problems
    if problems:
        raise feed_error(problems)
    return arrays, bound


def arrays_of(
    specs: Sequence[TensorSpec], feeds: Mapping[str, Any]
) -> tuple[dict[str, Array], list[str]]:
    """The arrays fed for `specs`, in their order, without what is none; and what is wrong with
    names and types."""
    problems = _name_problems(specs, feeds)
    arrays: dict[str, Array] = {}
    for spec in specs:
        if spec.name in feeds:
            array, problem = _array(spec, feeds[spec.name])
            problems += problem
            if array is not None:
                arrays[spec.name] = array
    return arrays, problems


def feed_error(problems: Sequence[str]) -> FeedError:
    """One error for all problems."""
    return FeedError(
        "\n".join(["the feeds don't fit the engine:", *(f"  - {p}" for p in problems)])
    )


def _name_problems(specs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> list[str]:
    names = [spec.name for spec in specs]
    problems = []
    for spec in specs:
        if spec.name not in feeds:
            problems.append(
                f"input {spec.name!r} is missing: {spec.dtype} {show_shape(spec.shape)}"
            )
    for name in feeds:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1, 0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"the inputs are {names}"
            problems.append(f"there is no input {name!r}; {hint}")
    return problems


def _array(spec: TensorSpec, value: Any) -> tuple[Array | None, list[str]]:
    """`value` as an array of the spec's type, any array or None; and what is wrong."""
    problems = []
    if isinstance(value, StandIn):
        if value.problem:
            problems.append(f"input {spec.name!r} {value.problem}")
        if value.array is None:
            return None, problems
        value = value.array
    if type(value) is not np.ndarray:
        converted = _converted(value)
        if converted is None:
            kind = type(value).__name__
            remedy = f"pass numpy.asarray(value, {spec.dtype!r})"
            return None, [f"input {spec.name!r} is a {kind}, not an array; {remedy}"]
        value = converted
    if value.dtype == spec.dtype:  # also false for another byte order
        return value, problems
    if value.dtype.newbyteorder("=") == spec.dtype:
        return value.astype(spec.dtype), problems
    return value, [
        *problems,
        f"input {spec.name!r} is {value.dtype}, but the engine takes {spec.dtype}; "
        f"pass value.astype({spec.dtype!r})",
    ]


def _converted(value: Any) -> Array | None:
    """Another library's tensor, or a subclass of ndarray, as a plain array; no copy if it can."""
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        try:
            return np.from_dlpack(value)
        except (TypeError, ValueError, RuntimeError, BufferError):
            pass  # a type or device DLPack can't hand over; the array protocol may
    if hasattr(value, "__array__"):
        try:
            return np.asarray(value)
        except (TypeError, ValueError, RuntimeError):
            return None
    return None


def check_outputs(
    specs: Sequence[TensorSpec],
    shapes: Sequence[Shape],
    outputs: Mapping[str, Any],
    inputs: Sequence[Array],
) -> None:
    """FeedError unless the program can write into the arrays of `outputs` directly."""
    if problems := output_problems(specs, shapes, outputs, inputs):
        raise feed_error(problems)


def output_problems(
    specs: Sequence[TensorSpec],
    shapes: Sequence[Shape],
    outputs: Mapping[str, Any],
    inputs: Sequence[Array],
) -> list[str]:
    """Why the program can't write into the arrays of `outputs` directly."""
    places = {spec.name: (spec, shape) for spec, shape in zip(specs, shapes, strict=True)}
    problems = []
    for name, array in outputs.items():
        if name not in places:
            problems.append(f"there is no output {name!r}; the outputs are {list(places)}")
            continue
        spec, shape = places[name]
        if (
            not isinstance(array, np.ndarray)
            or array.dtype != spec.dtype
            or array.shape != shape
            or not array.flags.c_contiguous
            or not array.flags.writeable
        ):
            problems.append(
                f"the array for output {name!r} must be a writable, C-contiguous numpy array of "
                f"type {spec.dtype} and shape {shape}; pass numpy.empty({shape}, {spec.dtype!r})"
            )
            continue
        others = [*inputs, *(a for n, a in outputs.items() if n != name)]
        if any(isinstance(a, np.ndarray) and np.may_share_memory(array, a) for a in others):
            problems.append(f"the array for output {name!r} shares memory with another array")
    return problems
