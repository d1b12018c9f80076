"""A CudaSource on arrays: memory, launches, and the checks of the contract in kernels/cuda.py."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tests.cuda_emulator import triton
from tests.cuda_emulator.compile import kernels, runtime
from tests.cuda_emulator.memory import Memory, Placed, numpy_dtype

from enginesmith.kernels.base import ITEMSIZE, Problem, value_of
from enginesmith.kernels.cuda import CudaSource, Launch, TensorMap, unread

SHARED_LIMIT = 227 * 1024
ORDERS = {"both": (False, True), "forward": (False, False), "reversed": (True, True)}


class EmulationError(Exception):
    """A kernel broke a rule of the machine or of the contract."""


class LaunchArguments(ctypes.Structure):
    """runtime.cpp's Launch."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("cluster", ctypes.c_uint * 3), ("threads", ctypes.c_uint),
        ("shared", ctypes.c_uint), ("reversed", ctypes.c_uint), ("call", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p), ("statics", ctypes.c_void_p),
        ("static_bytes", ctypes.c_uint64),
    )  # fmt: skip


class TensorMapBytes(ctypes.Structure):
    """runtime.cpp's TensorMap."""

    _fields_ = (
        ("base", ctypes.c_uint64), ("strides", ctypes.c_int64 * 4), ("sizes", ctypes.c_int32 * 5),
        ("box", ctypes.c_int32 * 5), ("steps", ctypes.c_int32 * 5), ("rank", ctypes.c_int32),
        ("item", ctypes.c_int32), ("swizzle", ctypes.c_int32), ("unused", ctypes.c_int32 * 4),
    )  # fmt: skip


def run_source(
    source: CudaSource, problem: Problem, arrays: Sequence[np.ndarray],
    hint_values: Sequence[int] | None = None, *, order: str = "both",
    packed: Mapping[int, np.ndarray] | None = None, arch: int = 90,
) -> list[np.ndarray]:  # fmt: skip
    """The outputs (logical arrays; bfloat16 by ml_dtypes) of a run at runtime sizes `hint_values`
    (the problem's hint if None).

    arrays: one per input, logical (what is broadcast may be of size 1). packed: constants that the
    tactic packed, by operand index.

    Everything runs twice over the same workspace, once with threads in rising and once in falling
    order (`order` "both"; "forward" or "reversed": twice so), with outputs poisoned differently;
    both must give the same up to rounding. EmulationError says what a kernel did wrong.
    """
    slots = tuple(problem.hint if hint_values is None else hint_values)
    count = len(problem.operands)
    raw = dict(packed or {})
    placed = [Placed(o, slots, raw.get(i)) for i, o in enumerate(problem.operands)]
    workspace = Memory(value_of(source.workspace, slots), 256)
    try:
        workspace.bytes[:] = 255
        cleared = workspace.inside[: value_of(source.cleared, slots)]
        cleared[:] = 0
        for i in range(count - problem.outputs):
            if i not in raw:
                dtype = numpy_dtype(problem.operands[i].dtype)
                if placed[i].view.size:
                    placed[i].view[...] = np.asarray(arrays[i]).astype(dtype)
            placed[i].memory.writable(False)
        results = []
        for backwards, poison in zip(ORDERS[order], (255, 0x7D), strict=True):
            for item in placed[count - problem.outputs :]:
                item.poison(poison)
            for launch in source.launches:
                run = _run if source.triton is None else _interpret
                run(source, launch, placed, workspace, slots, backwards, arch)
            for i, item in enumerate(placed[count - problem.outputs :]):
                if not item.untouched(poison):
                    raise EmulationError(f"wrote outside of output {i}")
            if cleared.any():
                raise EmulationError("left the workspace's cleared bytes other than zero")
            results.append([item.view.copy() for item in placed[count - problem.outputs :]])
        compare_runs(*results)
        return results[0]
    finally:
        for item in placed:
            item.memory.close()
        workspace.close()


def _run(
    source: CudaSource, launch: Launch, placed: Sequence[Placed], workspace: Memory,
    slots: tuple[int, ...], backwards: bool, arch: int,
) -> None:  # fmt: skip
    """One launch. A launch whose grid is empty is left out."""
    grid = [value_of(size, slots) for size in launch.grid]
    if 0 in grid:
        return
    name = source.name + launch.suffix
    check_launch(grid, launch.threads, launch.shared, launch.cluster, arch)
    library = kernels(source, arch)
    pointers = [item.memory.address for item in placed]
    arguments: list[Any] = [ctypes.c_uint64(p) for p in pointers]
    kinds = "p" * len(placed)
    if source.workspace != 0:
        arguments.append(ctypes.c_uint64(workspace.address))
        kinds += "p"
    arguments += [ctypes.c_int32(_int32(value_of(v, slots))) for v in launch.values]
    maps = [_tensor_map(m, pointers, slots) for m in launch.maps]
    arguments += maps
    kinds += "i" * len(launch.values) + "m" * len(launch.maps)
    get_kinds = getattr(library, f"es_kinds_{name}")
    get_kinds.restype = ctypes.c_char_p
    if (found := get_kinds().decode()) != kinds:
        raise EmulationError(
            f"kernel NAME{launch.suffix} takes parameters {found!r}, the launch gives {kinds!r} "
            "(p: pointer, i: int, m: tensor map)"
        )
    addresses = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
    error = launch_kernel(
        library, getattr(library, f"es_call_{name}"), grid, launch.threads, launch.shared,
        launch.cluster, ctypes.addressof(addresses), backwards,
    )  # fmt: skip
    if error is not None:
        places = ", ".join(
            f"operand {i} at {item.memory.address:#x}+{item.memory.inside.size}"
            for i, item in enumerate(placed)
        )
        raise EmulationError(f"kernel NAME{launch.suffix}: {error}; {places}")


def _interpret(
    source: CudaSource, launch: Launch, placed: Sequence[Placed], workspace: Memory,
    slots: tuple[int, ...], backwards: bool, arch: int,
) -> None:  # fmt: skip
    """One launch of a kernel in Triton."""
    grid = [value_of(size, slots) for size in launch.grid]
    if 0 in grid:
        return
    check_launch(grid, launch.threads, launch.shared, launch.cluster, arch)
    assert source.triton is not None
    kinds = [kind for kind, _ in source.triton.parameters]
    values = [_int32(value_of(v, slots)) for v in launch.values[: kinds.count("i32")]]
    memories = [*(item.memory for item in placed), *([workspace] if source.workspace != 0 else [])]
    ranges = [(m.address, m.address + m.inside.size) for m in memories]
    arguments: list[Any] = [*(m.address for m in memories), *values]
    maps = list(dict.fromkeys(launch.maps))
    assert unread(launch.values[: len(values)], tuple(maps)) == (launch.values, launch.maps)
    for spec in maps:
        _tensor_map(spec, [item.memory.address for item in placed], slots)  # checks it
        sizes = [value_of(size, slots) for size in spec.sizes]
        strides = [value_of(stride, slots) for stride in spec.strides]
        address = placed[spec.operand].memory.address
        arguments.append(triton.Tensor(address, sizes[::-1], strides[::-1]))
    try:
        triton.launch(source, grid, arguments, ranges, ranges, backwards)
    except IndexError as error:
        raise EmulationError(f"kernel NAME{launch.suffix} {error}") from error


def launch_kernel(
    library: Any, entry: Any, grid: Sequence[int], threads: int, shared: int,
    cluster: Sequence[int], parameters: int, backwards: bool = False,
) -> str | None:  # fmt: skip
    """Run a kernel; what it did wrong, None if nothing. entry: its es_call function; parameters:
    the address of an array of addresses, one per parameter."""
    statics = library.es_statics(0) or 0
    what = LaunchArguments(
        (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*cluster), threads, shared, backwards,
        ctypes.cast(entry, ctypes.c_void_p), parameters, statics,
        (library.es_statics(1) or 0) - statics,
    )  # fmt: skip
    error = runtime().es_launch(ctypes.byref(what))
    return None if error is None else error.decode()


def check_launch(
    grid: Sequence[int], threads: int, shared: int, cluster: Sequence[int], arch: int
) -> None:
    """The machine's limits. EmulationError names what is beyond them."""
    bad = (
        "threads" if threads % 32 or not 0 < threads <= 1024
        else "grid" if grid[0] >= 2**31 or max(grid[1:]) > 65535
        else "shared memory" if shared > (SHARED_LIMIT if arch in (90, 100) else 99 * 1024)
        else "cluster" if any(g % c for g, c in zip(grid, cluster, strict=True))
        or np.prod(cluster) > (8 if arch >= 90 else 1)
        else None
    )  # fmt: skip
    if bad:
        raise EmulationError(
            f"the launch's {bad} can't be: {threads=}, {shared=}, {cluster=}, {grid=}"
        )


def _int32(value: int) -> int:
    if not -(2**31) <= value < 2**31:
        raise EmulationError(f"value {value} doesn't fit an int")
    return value


def _tensor_map(m: TensorMap, pointers: Sequence[int], slots: tuple[int, ...]) -> Any:
    """The map as runtime.cpp reads it. It lies at a multiple of 64 bytes, as kernel parameters
    do."""
    if len(m.strides) != len(m.sizes) - 1:
        raise EmulationError(f"the tensor map's rank can't be: {m}")
    buffer = ctypes.create_string_buffer(ctypes.sizeof(TensorMapBytes) + 64)
    answer = TensorMapBytes.from_buffer(buffer, -ctypes.addressof(buffer) % 64)
    fill_tensor_map(
        answer, pointers[m.operand], ITEMSIZE[m.dtype], [value_of(s, slots) for s in m.sizes],
        [value_of(s, slots) * ITEMSIZE[m.dtype] for s in m.strides], m.box, m.swizzle,
        m.element_strides or (1,) * len(m.sizes),
    )  # fmt: skip
    return answer


def fill_tensor_map(
    answer: TensorMapBytes, base: int, item: int, sizes: Sequence[int], strides: Sequence[int],
    box: Sequence[int], swizzle: int, steps: Sequence[int],
) -> None:  # fmt: skip
    """Make a map after the checks that the driver makes. item: bytes of an element; strides: in
    bytes, of all axes but the innermost."""
    rank, row = len(sizes), box[0] * item
    bad = (
        "rank" if not 2 <= rank <= 5 or len(box) != rank or len(strides) != rank - 1
        else "base address" if base % 16
        else "sizes" if not all(0 < s < 2**32 for s in sizes)
        else "strides" if any(s % 16 or not 0 < s < 2**40 for s in strides)
        else "box" if not all(0 < b <= 256 for b in box) or row % 16
        else "element strides" if len(steps) != rank or not all(1 <= s <= 8 for s in steps)
        else "swizzle" if swizzle not in (0, 32, 64, 128) or (swizzle and row != swizzle)
        else None
    )  # fmt: skip
    if bad:
        raise EmulationError(
            f"the tensor map's {bad} can't be: {base=:#x}, {sizes=}, {strides=} bytes, {box=}, "
            f"{swizzle=}, {steps=}"
        )
    answer.base, answer.rank, answer.item, answer.swizzle = base, rank, item, swizzle
    for k in range(rank):
        answer.sizes[k], answer.box[k], answer.steps[k] = sizes[k], box[k], steps[k]
    for k in range(rank - 1):
        answer.strides[k] = strides[k]


def compare_runs(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> None:
    """Both runs agree: exactly for integers, else up to what the order of a sum may change."""
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.dtype.kind in "iub" or a.size == 0:
            agree = np.array_equal(a, b)
        else:
            x, y = a.astype(np.float64), b.astype(np.float64)
            scale = np.abs(x, where=np.isfinite(x), out=np.zeros_like(x)).max()
            agree = np.allclose(x, y, rtol=1e-2, atol=1e-2 * scale, equal_nan=True)
        if not agree:
            raise EmulationError(
                f"output {i} differs between two runs: what the first left behind, the order of "
                "the threads or what the output held before shows"
            )
