"""Launches of kernels in Triton, by Triton's interpreter: numpy in place of a GPU.

One block runs after the other, so what blocks do to each other shows no more than by its order.
Every address is checked before it is touched.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from enginesmith.kernels.cuda import CudaSource

Range = tuple[int, int]
"""First address and the one after the last."""


@cache
def interpreter() -> ModuleType:
    """Triton's interpreter. What `triton` defines with @jit must be made for it when imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from triton import knobs
        from triton.runtime import interpreter
    finally:
        del os.environ["TRITON_INTERPRET"]
    knobs.runtime.interpret = True
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # Newer numpy makes no number of an array with an axis.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
    return interpreter


@dataclass(frozen=True)
class Tensor:
    """What a tensor descriptor describes. sizes, strides (elements): the outermost axis first,
    whose innermost one is dense."""

    address: int
    sizes: Sequence[int]
    strides: Sequence[int]


def launch(
    source: CudaSource, grid: Sequence[int], arguments: Sequence[int | Tensor],
    readable: Sequence[Range], writable: Sequence[Range], backwards: bool,
) -> None:  # fmt: skip
    """Run all blocks, the last one first if `backwards`. IndexError names an address outside."""
    assert source.triton is not None
    machine, function = interpreter(), _function(source)
    tensors = []
    for value, (kind, divisor) in zip(arguments, source.triton.parameters, strict=True):
        if isinstance(value, Tensor):
            tensors.append(_descriptor(value, kind))
            continue
        assert value % divisor == 0, f"{kind} {value} is no multiple of {divisor}"
        tensors.append(_number(value, kind))
    scope = machine._patch_lang(function)
    builder = machine.interpreter_builder
    builder.set_grid_dim(*grid)
    blocks = list(np.ndindex(*grid))
    try:
        with _checked(builder, readable, writable), np.errstate(all="ignore"):
            for block in reversed(blocks) if backwards else blocks:
                builder.set_grid_idx(*block)
                function(*tensors)
    finally:
        scope.restore()


def _number(value: int, kind: str) -> Any:
    """A pointer or a number as a kernel sees it."""
    machine = interpreter()
    import triton.language as tl

    ty = tl.str_to_ty(kind, None)
    dtype = np.uint64 if ty.is_ptr() else np.int32
    return tl.tensor(machine.TensorHandle(np.array([value], dtype), ty), ty)


def _descriptor(value: Tensor, kind: str) -> Any:
    """A tensor descriptor, from Triton's name of its type: tensordesc<fp16[128, 64]>."""
    machine = interpreter()
    import triton.language as tl

    found = re.fullmatch(r"tensordesc<(\w+)\[([\d, ]+)\]>", kind)
    assert found is not None, kind
    semantic = machine.TritonSemantic(machine.InterpreterBuilder())
    return semantic.make_tensor_descriptor(
        base=_number(value.address, f"*{found[1]}"),
        shape=[_number(size, "i32") for size in value.sizes],
        strides=[*(_number(stride, "i32") for stride in value.strides), tl.constexpr(1)],
        block_shape=[tl.constexpr(int(size)) for size in found[2].split(",")],
    )


@cache
def _function(source: CudaSource) -> Any:
    """The function as the interpreter runs it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source.name}.py"
        path.write_text(source.code)
        spec = importlib.util.spec_from_file_location(source.name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for name in ("gdc_wait", "gdc_launch_dependents"):  # nothing runs beside a block
            setattr(module, name, lambda: None)
        return getattr(module, source.name).rewrite()


@contextmanager
def _checked(builder: Any, readable: Sequence[Range], writable: Sequence[Range]) -> Iterator[None]:
    """Loads and stores check addresses; products of bfloat16, which numpy lacks, are those of the
    same numbers in float32."""
    import triton.language as tl

    load, store, dot = (
        type(builder).create_masked_load, type(builder).create_masked_store,
        type(builder).create_dot,
    )  # fmt: skip

    def create_masked_load(ptrs: Any, mask: Any, *rest: Any, **more: Any) -> Any:
        _check(ptrs, mask, readable, "reads")
        return load(builder, ptrs, mask, *rest, **more)

    def create_masked_store(ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(ptrs, mask, writable, "writes")
        return store(builder, ptrs, value, mask, *rest)

    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (builder.cast_impl(x, tl.float32) for x in (a, b))
        return dot(builder, a, b, *rest)

    patches = {
        "create_masked_load": create_masked_load, "create_masked_store": create_masked_store,
        "create_dot": create_dot,
    }  # fmt: skip
    for name, function in patches.items():
        setattr(builder, name, function)
    try:
        yield
    finally:
        for name in patches:
            delattr(builder, name)


def _check(ptrs: Any, mask: Any, allowed: Sequence[Range], what: str) -> None:
    addresses = ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)]
    item = ptrs.get_element_ty().primitive_bitwidth // 8
    inside = np.zeros(addresses.shape, bool)
    for first, end in allowed:
        inside |= (addresses >= first) & (addresses + item <= end)
    if not inside.all():
        bad = int(addresses[~inside].flat[0])
        places = ", ".join(f"{first:#x} to {end:#x}" for first, end in allowed)
        raise IndexError(f"{what} {item} bytes at {bad:#x}, outside of {places}")
