"""A cuBLASLt that isn't there: the functions that the runtime calls, by numpy on the emulated GPU.

It takes what ctypes gives the library, checks it as the library does, and computes in the order of
the device's streams and captures. Its heuristic knows three algorithms, and which library made one
is part of its bytes.
"""

from __future__ import annotations

import ctypes
import struct
from itertools import count
from typing import Any

import ml_dtypes
import numpy as np
from tests.cuda_emulator.device import EmulatedDevice

from enginesmith.runtime.devices import cublas

SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 7, 15
NAMES = {7: b"CUBLAS_STATUS_INVALID_VALUE", 15: b"CUBLAS_STATUS_NOT_SUPPORTED"}
DTYPES = {0: np.float32, 2: np.float16, 14: ml_dtypes.bfloat16}
WORKSPACES = (4096, 0, 1 << 16)
"""Bytes that algorithm 0, 1, 2 takes; algorithm 0 needs a number of columns divisible by 8."""

BIAS_TYPE_ATTRIBUTE = 26
SIZES = {
    "desc": {3: 4, 4: 4, 7: 4, 8: 8, BIAS_TYPE_ATTRIBUTE: 4},
    "layout": {5: 4, 6: 8},
    "preference": {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4},
}
"""Bytes of the attributes it knows."""


class FakeCublasLt:
    """version: of the library. calls: how many products were computed. fail_next: name of a
    function -> the status it gives next time. alive: descriptors not yet destroyed."""

    def __init__(self, device: EmulatedDevice, version: int = 130100) -> None:
        self.device, self.version = device, version
        self.calls = self.handles = 0
        self.fail_next: dict[str, int] = {}
        self.alive: dict[int, dict[Any, Any]] = {}
        self._numbers = count(1)  # threads take them one by one
        for kind, name in (("desc", "Desc"), ("preference", "Preference")):
            self._descriptor(f"cublasLtMatmul{name}", kind, ("compute", "scale"))
        self._descriptor("cublasLtMatrixLayout", "layout", ("dtype", "rows", "columns", "leading"))

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cublasLt") and name in self.fail_next:
            return lambda *_: self.fail_next.pop(name)
        return found

    def _descriptor(self, prefix: str, kind: str, fields: tuple[str, ...]) -> None:
        def create(to: Any, *values: int) -> int:
            what = dict(zip(fields, values, strict=False))
            if kind == "layout" and not (0 < what["rows"] <= what["leading"] and what["columns"]):
                return INVALID_VALUE
            to._obj.value = number = next(self._numbers)
            self.alive[number] = what
            return SUCCESS

        def set_attribute(which: Any, attribute: int, value: Any, size: int) -> int:
            if SIZES[kind].get(attribute) != size:
                return INVALID_VALUE
            self.alive[which.value][attribute] = value._obj.value
            return SUCCESS

        def destroy(which: Any) -> int:
            del self.alive[which.value]
            return SUCCESS

        for verb, function in (
            ("Create", create), ("SetAttribute", set_attribute), ("Destroy", destroy),
        ):  # fmt: skip
            setattr(self, prefix + verb, function)

    def cublasLtGetVersion(self) -> int:
        return self.version

    def cublasLtGetStatusName(self, status: int) -> bytes | None:
        return NAMES.get(status)

    def cublasLtCreate(self, to: Any) -> int:
        self.handles += 1
        to._obj.value = 4711
        return SUCCESS

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle: Any, operation: Any, a: Any, b: Any, c: Any, d: Any, preference: Any,
        count: int, results: Any, found: Any,
    ) -> int:  # fmt: skip
        assert handle.value == 4711
        wishes = self.alive[preference.value]
        assert wishes[cublas.REDUCTIONS] == cublas.IN_FLOAT32
        if not self._known(operation, a, b, c, d):
            return NOT_SUPPORTED
        able = [
            k for k, size in enumerate(WORKSPACES)
            if size <= wishes[cublas.MOST_WORKSPACE] and self._serves(k, d)
        ]  # fmt: skip
        for slot, k in zip(results._obj, able[:count], strict=False):
            data = struct.pack("<8sQQ40x", b"cublaslt", self.version, k)
            ctypes.memmove(slot.algorithm, data, 64)
            slot.workspace, slot.state = WORKSPACES[k], SUCCESS
        found._obj.value = min(count, len(able))
        return SUCCESS

    def _known(self, operation: Any, *layouts: Any) -> bool:
        a, b, c, d = (self.alive[layout.value]["dtype"] for layout in layouts)
        tf32 = self.alive[operation.value]["compute"] == cublas.COMPUTE_TF32
        return a == b and c == d and d in (a, 0) and (not tf32 or a == 0)

    def _serves(self, k: int, d: Any) -> bool:
        return k != 0 or self.alive[d.value]["columns"] % 8 == 0

    def _algorithm(self, data: Any) -> int | None:
        magic, version, k = struct.unpack("<8sQQ40x", bytes(data._obj))
        return k if (magic, version) == (b"cublaslt", self.version) else None

    def cublasLtMatmulAlgoCheck(
        self, handle: Any, operation: Any, a: Any, b: Any, c: Any, d: Any, data: Any, result: Any
    ) -> int:
        k = self._algorithm(data)
        if k is None or not self._serves(k, d) or not self._known(operation, a, b, c, d):
            return NOT_SUPPORTED
        result._obj.workspace, result._obj.state = WORKSPACES[k], SUCCESS
        return SUCCESS

    def cublasLtMatmul(
        self, handle: Any, operation: Any, alpha: Any, a: int, a_layout: Any, b: int,
        b_layout: Any, beta: Any, c: int, c_layout: Any, d: int, d_layout: Any, data: Any,
        workspace: int, size: int, stream: int,
    ) -> int:  # fmt: skip
        k = self._algorithm(data)
        assert handle.value == 4711 and stream
        if k is None or not self._serves(k, d_layout) or size < WORKSPACES[k] or workspace % 256:
            return INVALID_VALUE
        what = dict(self.alive[operation.value])
        layouts = [dict(self.alive[x.value]) for x in (a_layout, b_layout, c_layout, d_layout)]
        scale, added = alpha._obj.value, beta._obj.value

        def job() -> None:
            self.calls += 1
            if size:
                ctypes.memset(workspace, 0xA5, size)
            x, y, z, out = map(_matrices, (a, b, c, d), layouts)
            _compute(what, scale, added, x, y, z, out)

        self.device._do(job)
        return SUCCESS


def _matrices(address: int, layout: dict[Any, Any]) -> np.ndarray:
    """The (batch, rows, columns) matrices at an address."""
    dtype = np.dtype(DTYPES[layout["dtype"]])
    count, stride = layout.get(cublas.BATCH_COUNT, 1), layout.get(cublas.BATCH_STRIDE, 0)
    shape = (count, layout["rows"], layout["columns"])
    strides = (stride, 1, layout["leading"])
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_uint8 * (extent * dtype.itemsize)).from_address(address)
    flat = np.frombuffer(memory, dtype)
    return np.lib.stride_tricks.as_strided(
        flat, shape, [s * dtype.itemsize for s in strides], writeable=True
    )


def _compute(
    what: dict[Any, Any], scale: float, added: float, a: np.ndarray, b: np.ndarray, c: np.ndarray,
    d: np.ndarray,
) -> None:  # fmt: skip
    """d = activation(scale * op(a) @ op(b) + added * c + bias), in float32."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    a = a.swapaxes(1, 2) if what.get(cublas.TRANSPOSE_A) else a
    b = b.swapaxes(1, 2) if what.get(cublas.TRANSPOSE_B) else b
    y = np.float32(scale) * (a @ b)
    if added:
        y += np.float32(added) * c.astype(np.float32)
    epilogue = what[cublas.EPILOGUE]
    if epilogue & cublas.BIAS:
        size = d.shape[1] * d.dtype.itemsize
        memory = (ctypes.c_uint8 * size).from_address(what[cublas.BIAS_POINTER])
        y += np.frombuffer(memory, d.dtype).astype(np.float32)[:, None]
    if epilogue & cublas.ACTIVATIONS["relu"]:
        y = np.maximum(y, 0)
    if epilogue & cublas.ACTIVATIONS["gelu"]:
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    d[...] = y.astype(d.dtype)
