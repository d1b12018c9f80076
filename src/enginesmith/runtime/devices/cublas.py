"""Matrix products by cuBLASLt: the dozen functions of the library that it takes, each checked.

`CublasLt` is the library on one GPU, `PreparedProduct` one product of fixed sizes. The binding is
ctypes over the library that `cuda.pathfinder` finds: the functions are few and their structs part
of the library's stable interface, so no further package of bindings is needed.
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Sequence
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

from enginesmith.errors import DeviceError
from enginesmith.plan.plan import Matrices, Product

MAJOR = 13
"""The version of the library (and of CUDA) whose use is tested."""

INSTALL = "install it with: pip install 'enginesmith[cublaslt]'"

# Numbers from cublasLt.h, cublas_api.h and library_types.h.
DTYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
COMPUTE_FLOAT32, COMPUTE_TF32 = 68, 77
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
BATCH_COUNT, BATCH_STRIDE = 5, 6
MOST_WORKSPACE, REDUCTIONS, ALIGNMENTS = 1, 3, (5, 6, 7, 8)
IN_FLOAT32 = 2
"""The only way to add up parts of a split sum that keeps them in float32."""
NOT_SUPPORTED = 15
ACTIVATIONS = {"none": 0, "relu": 2, "gelu": 32}
PLAIN, BIAS = 1, 4
"""Epilogues: an activation's bits, BIAS added if there is one, PLAIN if there is nothing."""

BIAS_ALIGNMENT = 16
"""Bytes that the address of a bias must be a multiple of."""

WORKSPACE_ALIGNMENT = 256
"""The same of a workspace: elsewhere the library refuses a call as an "invalid value"."""

ALGORITHM_BYTES = 64


class _Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", ctypes.c_uint8 * ALGORITHM_BYTES), ("workspace", c_size_t),
        ("state", c_int), ("waves", c_float), ("reserved", c_int * 4),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What the library is told to use: its opaque bytes, and the workspace that takes (bytes)."""

    data: bytes
    workspace: int


@cache
def library() -> Any:
    """The loaded library. DeviceError says what is missing."""
    try:
        pathfinder = importlib.import_module("cuda.pathfinder")
        found = pathfinder.load_nvidia_dynamic_lib("cublasLt")
        loaded = ctypes.CDLL(found.abs_path or f"libcublasLt.so.{MAJOR}")
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"cuBLASLt is not installed ({reason}); {INSTALL}") from error
    for name, kinds in _SIGNATURES.items():
        getattr(loaded, name).argtypes = kinds
    loaded.cublasLtGetVersion.restype = c_size_t
    loaded.cublasLtGetStatusName.restype = ctypes.c_char_p
    if (version := int(loaded.cublasLtGetVersion())) // 10000 != MAJOR:
        raise DeviceError(
            f"cuBLASLt {version_text(version)} is installed, and {MAJOR} is needed; {INSTALL}"
        )
    return loaded


_P = c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "cublasLtGetVersion": [],
    "cublasLtGetStatusName": [c_int],
    "cublasLtCreate": [_P],
    "cublasLtMatmulDescCreate": [_P, c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [_P, c_int, _P, c_size_t],
    "cublasLtMatmulDescDestroy": [_P],
    "cublasLtMatrixLayoutCreate": [_P, c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatrixLayoutSetAttribute": [_P, c_int, _P, c_size_t],
    "cublasLtMatrixLayoutDestroy": [_P],
    "cublasLtMatmulPreferenceCreate": [_P],
    "cublasLtMatmulPreferenceSetAttribute": [_P, c_int, _P, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [_P],
    "cublasLtMatmulAlgoGetHeuristic": [_P, _P, _P, _P, _P, _P, _P, c_int, _P, _P],
    "cublasLtMatmulAlgoCheck": [_P] * 8,
    "cublasLtMatmul": [_P] * 14 + [c_size_t, _P],
}


def why_missing() -> str | None:
    """None if the library is here, else what is missing."""
    try:
        library()
    except DeviceError as error:
        return str(error).removesuffix(f"; {INSTALL}")
    return None


def installed_version() -> int:
    """The library's version, 130100 for 13.1.0. DeviceError if it is missing."""
    return int(library().cublasLtGetVersion())


def version_text(version: int) -> str:
    """The library's version as people write it."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def workspace_address(address: int) -> int:
    """The first one from `address` on that the library takes."""
    return -(-address // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT


class CublasLt:
    """The library on the GPU that the calling thread uses; then for any thread that uses it."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.version = int(library.cublasLtGetVersion())
        handle = c_void_p()
        self.call("cublasLtCreate", byref(handle))
        self.handle = handle  # for good: at exit the GPU's context may be gone

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function; its status, 0 for success."""
        return int(getattr(self._library, name)(*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function. DeviceError unless it succeeds."""
        if status := self.status(name, *arguments):
            self.fail(name, status)

    def fail(self, name: str, status: int) -> None:
        """Raise the DeviceError of a status."""
        text = self._library.cublasLtGetStatusName(status)
        raise DeviceError(
            f"{name} failed: {text.decode() if text else status} (cuBLASLt "
            f"{version_text(self.version)}; build with tactic_sources=('cuda',) to do without)"
        )

    def make(self, owner: object, kind: str, *arguments: Any) -> c_void_p:
        """A new descriptor of a kind, destroyed with its owner."""
        made = c_void_p()
        self.call(f"{kind}Create", byref(made), *arguments)
        destroy = getattr(self._library, f"{kind}Destroy")
        weakref.finalize(owner, destroy, made).atexit = False
        return made

    def set(self, kind: str, descriptor: c_void_p, attribute: int, value: Any) -> None:
        """Set an attribute of a descriptor to a ctypes value."""
        size = ctypes.sizeof(value)
        self.call(f"{kind}SetAttribute", descriptor, attribute, byref(value), size)


class PreparedProduct:
    """A product whose sizes are all ints, ready to run. bias: its address if it has one.

    Not for sizes of 0: the library knows no empty matrices.
    """

    def __init__(self, cublas: CublasLt, product: Product, bias: int = 0) -> None:
        self._cublas, self._product = cublas, product
        kind = "cublasLtMatmulDesc"
        compute = COMPUTE_TF32 if product.tf32 else COMPUTE_FLOAT32
        self._operation = cublas.make(self, kind, compute, DTYPES["float32"])
        for attribute, flag in zip((TRANSPOSE_A, TRANSPOSE_B), product.transposed, strict=True):
            cublas.set(kind, self._operation, attribute, c_int32(flag))
        epilogue = ACTIVATIONS[product.activation] | (BIAS if product.biased else 0)
        cublas.set(kind, self._operation, EPILOGUE, c_uint32(epilogue or PLAIN))
        if product.biased:
            cublas.set(kind, self._operation, BIAS_POINTER, c_uint64(bias))
        self._layouts = [self._layout(m) for m in (product.a, product.b, product.c, product.d)]
        # Kept alive for the calls that read them.
        self._scale, self._beta = c_float(product.scale), c_float(float(product.added))

    def _layout(self, m: Matrices) -> c_void_p:
        cublas, kind = self._cublas, "cublasLtMatrixLayout"
        layout = cublas.make(self, kind, DTYPES[m.dtype], m.rows, m.columns, m.leading)
        if self._product.count != 1:
            cublas.set(kind, layout, BATCH_COUNT, c_int32(int(self._product.count)))
            cublas.set(kind, layout, BATCH_STRIDE, c_int64(int(m.stride)))
        return layout

    def algorithms(self, workspace: int, count: int) -> list[Algorithm]:
        """The first `count` algorithms (or fewer) of the library's heuristic, the most promising
        first, that take no more than so many bytes of workspace."""
        cublas, kind, product = self._cublas, "cublasLtMatmulPreference", self._product
        owner = _Owner()  # the preference's life ends with this call
        preference = cublas.make(owner, kind)
        cublas.set(kind, preference, MOST_WORKSPACE, c_uint64(workspace))
        cublas.set(kind, preference, REDUCTIONS, c_uint32(IN_FLOAT32))
        matrices = (product.a, product.b, product.c, product.d)
        for attribute, m in zip(ALIGNMENTS, matrices, strict=True):
            cublas.set(kind, preference, attribute, c_uint32(m.alignment))
        results, found = (_Result * count)(), c_int(0)
        name = "cublasLtMatmulAlgoGetHeuristic"
        status = cublas.status(
            name, cublas.handle, self._operation, *self._layouts, preference, count, byref(results),
            byref(found),
        )  # fmt: skip
        if status == NOT_SUPPORTED:
            return []
        if status:
            cublas.fail(name, status)
        usable = [r for r in results[: found.value] if r.state == 0]
        return [Algorithm(bytes(r.algorithm), r.workspace) for r in usable]

    def workspace(self, algorithm: bytes) -> int | None:
        """How many bytes of workspace the algorithm takes here, None if it doesn't serve."""
        result = _Result()
        data = (ctypes.c_uint8 * ALGORITHM_BYTES).from_buffer_copy(algorithm)
        cublas = self._cublas
        status = cublas.status(
            "cublasLtMatmulAlgoCheck", cublas.handle, self._operation, *self._layouts,
            byref(data), byref(result),
        )  # fmt: skip
        return None if status or result.state else int(result.workspace)

    def run(
        self, operands: Sequence[int], algorithm: bytes, workspace: tuple[int, int], stream: int
    ) -> None:
        """Compute on the stream. operands: the addresses of a, b, c, d (and of the bias, which is
        known); workspace: address, bytes."""
        a, b, c, d, *_ = operands
        data = (ctypes.c_uint8 * ALGORITHM_BYTES).from_buffer_copy(algorithm)
        one, two, three, four = self._layouts
        self._cublas.call(
            "cublasLtMatmul", self._cublas.handle, self._operation, byref(self._scale), a, one,
            b, two, byref(self._beta), c, three, d, four, byref(data), *workspace, stream,
        )  # fmt: skip


class _Owner:
    """Something that descriptors are destroyed with."""
