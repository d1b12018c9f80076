"""An NVIDIA GPU behind a few checked operations: memory, copies, streams, events, code, graphs.

Everything the runtime asks of a GPU goes through `CudaDevice`; every status of the driver is
checked. The rest of the runtime knows this class only, so tests put another in its place.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np

from enginesmith.errors import DeviceError
from enginesmith.runtime.devices import cublas, cudnn
from enginesmith.runtime.devices.cublas import CublasLt
from enginesmith.runtime.devices.cudnn import Cudnn

INSTALL = "install them with: pip install 'enginesmith[cuda]'"

LOST = frozenset(
    {
        "CUDA_ERROR_ILLEGAL_ADDRESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_HARDWARE_STACK_ERROR", "CUDA_ERROR_ILLEGAL_INSTRUCTION", "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_MISALIGNED_ADDRESS", "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC", "CUDA_ERROR_ECC_UNCORRECTABLE", "CUDA_ERROR_CONTAINED",
        "CUDA_ERROR_CONTEXT_IS_DESTROYED", "CUDA_ERROR_TENSOR_MEMORY_LEAK",
    }
)  # fmt: skip
"""Errors after which the driver refuses all further work of the process."""

REMEDIES = {
    "CUDA_ERROR_OUT_OF_MEMORY": "use smaller batches, or close other engines and contexts",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the NVIDIA driver, or build the model again for "
    "this GPU",
}
"""What to do about an error of the driver."""


@cache
def driver() -> Any:
    """The driver's bindings, initialised. DeviceError says what is missing."""
    try:
        bindings = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise DeviceError(f"the packages for GPUs are missing ({error}); {INSTALL}") from error
    try:
        status = bindings.cuInit(0)[0]
    except RuntimeError as error:  # the driver's library can't be loaded
        raise DeviceError(
            f"no NVIDIA driver is installed ({error}); install one, or build with target='cpu'"
        ) from error
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise DeviceError(
            f"no usable NVIDIA GPU: the driver says {status.name}; "
            "check `nvidia-smi`, or build with target='cpu'"
        )
    return bindings


@cache
def _launch_host_function() -> Any:
    """The driver's own cuLaunchHostFunc: a graph calls it again and again, which the bindings'
    wrapper around a callback isn't made for."""
    driver()  # which says what is missing
    function = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc
    function.argtypes, function.restype = [ctypes.c_void_p] * 3, ctypes.c_int
    return function


def call(name: str, *arguments: Any) -> Any:
    """Call the driver; its results (None, one, or a tuple). DeviceError unless it succeeds."""
    bindings = driver()
    status, *results = getattr(bindings, name)(*arguments)
    if status != bindings.CUresult.CUDA_SUCCESS:
        raise _failure(name, status)
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def _failure(name: str, status: Any) -> DeviceError:
    usable = status.name not in LOST
    text = driver().cuGetErrorString(status)[1]
    reason = text.decode() if isinstance(text, bytes) else str(text)
    state = (
        "the engine can still be used"
        if usable
        else "the GPU can't be used by this process any more: start it again"
    )
    remedy = f"; {REMEDIES[status.name]}" if status.name in REMEDIES else ""
    return DeviceError(f"{name} failed: {status.name}: {reason}{remedy} ({state})", usable)


class DeviceMemory:
    """`size` bytes on the GPU at `address`, freed when collected or closed."""

    __slots__ = ("__weakref__", "_free", "address", "size")

    def __init__(self, size: int, address: int, free: Callable[[], None]) -> None:
        self.size, self.address = size, address
        self._free = weakref.finalize(self, free)
        self._free.atexit = False

    def close(self) -> None:
        """Free it now."""
        self._free()


class CudaDevice:
    """One GPU. Its methods may be called from any thread."""

    def __init__(self, ordinal: int = 0) -> None:
        count = call("cuDeviceGetCount")
        if ordinal >= count:
            raise DeviceError(f"there is no GPU {ordinal}: the driver sees {count}")
        self.ordinal = ordinal
        self._device = call("cuDeviceGet", ordinal)
        self._context = call("cuDevicePrimaryCtxRetain", self._device)
        raw = call("cuDeviceGetName", 128, self._device)
        self.name = raw.split(b"\0")[0].decode() if isinstance(raw, bytes) else str(raw)
        self.arch = 10 * self._attribute("COMPUTE_CAPABILITY_MAJOR") + self._attribute(
            "COMPUTE_CAPABILITY_MINOR"
        )
        self.multiprocessors = self._attribute("MULTIPROCESSOR_COUNT")
        self.shared_limit = self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        self.driver_version = call("cuDriverGetVersion")
        self._cublas: CublasLt | None = None
        self._cudnn: Cudnn | None = None
        self._lock = threading.Lock()
        self._captures = threading.local()

    def _attribute(self, name: str) -> int:
        kinds = driver().CUdevice_attribute
        value = getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(call("cuDeviceGetAttribute", value, self._device))

    def use(self) -> None:
        """Make this GPU the calling thread's."""
        call("cuCtxSetCurrent", self._context)

    # -- memory -----------------------------------------------------------------------------------

    def allocate(self, size: int) -> DeviceMemory:
        """Device memory, not cleared; its address is a multiple of 256."""
        self.use()
        pointer = call("cuMemAlloc", max(size, 1))

        def free() -> None:
            driver().cuCtxSetCurrent(self._context)
            driver().cuMemFree(pointer)  # at exit the context may be gone already: no check

        return DeviceMemory(size, int(pointer), partial(self.after_capture, free))

    def pinned(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Page-locked host memory as an array of bytes, which keeps it alive."""
        self.use()
        pointer = call("cuMemHostAlloc", max(size, 1), 0)
        address = int(pointer)
        buffer = (ctypes.c_uint8 * max(size, 1)).from_address(address)

        def free() -> None:
            driver().cuCtxSetCurrent(self._context)
            driver().cuMemFreeHost(address)

        weakref.finalize(buffer, self.after_capture, free).atexit = False
        return np.ctypeslib.as_array(buffer)[:size]

    def copy_in(self, to: int, source: int, size: int, stream: int) -> None:
        """Host to device, in the order of the stream."""
        if size:
            call("cuMemcpyHtoDAsync", to, source, size, stream)

    def copy_out(self, to: int, source: int, size: int, stream: int) -> None:
        """Device to host, in the order of the stream."""
        if size:
            call("cuMemcpyDtoHAsync", to, source, size, stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Device to device, in the order of the stream."""
        if size:
            call("cuMemcpyDtoDAsync", to, source, size, stream)

    def clear(self, address: int, size: int, stream: int) -> None:
        """Zeros, in the order of the stream."""
        if size:
            call("cuMemsetD8Async", address, 0, size, stream)

    # -- streams and events -----------------------------------------------------------------------

    def stream(self) -> int:
        """A new stream that doesn't wait for the default one."""
        self.use()
        return int(call("cuStreamCreate", driver().CUstream_flags.CU_STREAM_NON_BLOCKING))

    def close_stream(self, stream: int) -> None:
        driver().cuStreamDestroy(stream)

    def event(self, timing: bool = False) -> int:
        self.use()
        flags = driver().CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        return int(call("cuEventCreate", kind))

    def close_event(self, event: int) -> None:
        driver().cuEventDestroy(event)

    def record(self, event: int, stream: int, in_graph: bool = False) -> None:
        """Record the event in the order of the stream; in_graph: whenever a captured graph runs."""
        flags = driver().CUevent_record_flags
        kind = flags.CU_EVENT_RECORD_EXTERNAL if in_graph else flags.CU_EVENT_RECORD_DEFAULT
        call("cuEventRecordWithFlags", event, stream, kind)

    def wait(self, stream: int, event: int) -> None:
        """Let the stream wait for the event."""
        call("cuStreamWaitEvent", stream, event, 0)

    def done(self, event: int) -> bool:
        """Whether all before the event is done."""
        bindings = driver()
        status = bindings.cuEventQuery(event)[0]
        if status in (bindings.CUresult.CUDA_SUCCESS, bindings.CUresult.CUDA_ERROR_NOT_READY):
            return bool(status == bindings.CUresult.CUDA_SUCCESS)
        raise _failure("cuEventQuery", status)

    def wait_for(self, event: int) -> None:
        """Let the calling thread wait for the event."""
        call("cuEventSynchronize", event)

    def elapsed(self, start: int, end: int) -> float:
        """Seconds between two recorded events made for timing."""
        return float(call("cuEventElapsedTime", start, end)) / 1e3

    def synchronize(self, stream: int) -> None:
        call("cuStreamSynchronize", stream)

    def call_host(self, function: int, stream: int) -> None:
        """Call the C function at this address, with a pointer it ignores, in the order of the
        stream, on a thread of the driver. It must not call CUDA."""
        status = _launch_host_function()(stream, function, None)
        if status:
            raise _failure("cuLaunchHostFunc", driver().CUresult(status))

    # -- code -------------------------------------------------------------------------------------

    def module(self, code: bytes) -> int:
        """Load a cubin, or PTX text that ends in a zero byte (the driver compiles it)."""
        self.use()
        return int(call("cuModuleLoadData", code))

    def unload(self, module: int) -> None:
        self.after_capture(lambda: driver().cuModuleUnload(module))

    def function(self, module: int, name: str, shared: int) -> int:
        """A kernel that may be launched with `shared` bytes of dynamic shared memory."""
        self.use()
        function = call("cuModuleGetFunction", module, name.encode())
        if shared > 48 << 10:
            kind = driver().CUfunction_attribute
            most = kind.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            call("cuFuncSetAttribute", function, most, shared)
        return int(function)

    def launch(
        self, function: int, grid: Sequence[int], threads: int, shared: int,
        cluster: Sequence[int], parameters: int, stream: int, overlap: bool,
    ) -> None:  # fmt: skip
        """Launch a kernel. parameters: the address of an array of addresses, one per parameter.
        overlap: it may be set up before the kernels before it have finished (it waits itself)."""
        bindings = driver()
        config = bindings.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes, config.hStream = shared, bindings.CUstream(stream)
        attributes = []
        kinds = bindings.CUlaunchAttributeID
        if overlap:
            attribute = bindings.CUlaunchAttribute()
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            attributes.append(attribute)
        if max(cluster) > 1:
            attribute = bindings.CUlaunchAttribute()
            attribute.id = kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
            shape = attribute.value.clusterDim
            shape.x, shape.y, shape.z = cluster
            attributes.append(attribute)
        config.attrs, config.numAttrs = attributes, len(attributes)
        call("cuLaunchKernelEx", config, bindings.CUfunction(function), parameters, 0)

    def tensor_map(
        self, address: int, dtype: str, sizes: Sequence[int], strides: Sequence[int],
        box: Sequence[int], swizzle: int, steps: Sequence[int],
    ) -> bytes:  # fmt: skip
        """The 128 bytes of a tensor map. strides: in bytes, of all axes but the innermost."""
        bindings = driver()
        kind = bindings.CUtensorMapDataType
        dtypes = {
            "float16": kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            "bfloat16": kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            "float32": kind.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            "int8": kind.CU_TENSOR_MAP_DATA_TYPE_UINT8,
        }
        swizzles = bindings.CUtensorMapSwizzle
        pattern = getattr(swizzles, f"CU_TENSOR_MAP_SWIZZLE_{f'{swizzle}B' if swizzle else 'NONE'}")
        encoded = call(
            "cuTensorMapEncodeTiled", dtypes[dtype], len(sizes), address,
            [bindings.cuuint64_t(s) for s in sizes], [bindings.cuuint64_t(s) for s in strides],
            [bindings.cuuint32_t(b) for b in box], [bindings.cuuint32_t(s) for s in steps],
            bindings.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE, pattern,
            bindings.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            bindings.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )  # fmt: skip
        return ctypes.string_at(encoded.getPtr(), 128)

    def cublas_lt(self) -> CublasLt:
        """cuBLASLt on this GPU. DeviceError if the library is missing."""
        with self._lock:
            if self._cublas is None:
                self.use()
                self._cublas = CublasLt(cublas.library())
            return self._cublas

    def cudnn(self) -> Cudnn:
        """cuDNN on this GPU. DeviceError if the library is missing."""
        with self._lock:
            if self._cudnn is None:
                self.use()
                self._cudnn = Cudnn(cudnn.library(), self.after_capture)
            return self._cudnn

    # -- graphs -----------------------------------------------------------------------------------

    def after_capture(self, free: Callable[[], None]) -> None:
        """Free something, now or when this thread's capture ends, which it would spoil. (Python's
        garbage collector may come at any moment.)"""
        waiting: list[Callable[[], None]] | None = getattr(self._captures, "waiting", None)
        if waiting is None:
            free()
        else:
            waiting.append(free)

    @contextmanager
    def capture(self, stream: int) -> Iterator[list[int]]:
        """Record what is launched on the stream instead of running it. After the block the yielded
        list holds the executable graph."""
        bindings = driver()
        mode = bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call("cuStreamBeginCapture", stream, mode)
        made: list[int] = []
        self._captures.waiting = waiting = list[Callable[[], None]]()
        try:
            try:
                yield made
            except BaseException:
                status, graph = bindings.cuStreamEndCapture(stream)
                if status == bindings.CUresult.CUDA_SUCCESS:
                    bindings.cuGraphDestroy(graph)
                raise
            graph = call("cuStreamEndCapture", stream)
        finally:
            self._captures.waiting = None
            for free in waiting:
                free()
        try:
            made.append(int(call("cuGraphInstantiate", graph, 0)))
        finally:
            bindings.cuGraphDestroy(graph)

    def replay(self, graph: int, stream: int) -> None:
        call("cuGraphLaunch", graph, stream)

    def close_graph(self, graph: int) -> None:
        self.after_capture(lambda: driver().cuGraphExecDestroy(graph))


@cache
def cuda_device(ordinal: int = 0) -> CudaDevice:
    """The GPU with this number. DeviceError if there is none."""
    return CudaDevice(ordinal)


def host_architecture() -> str | None:
    """The architecture of this machine's first GPU (`sm_90`), None if it has none that works."""
    try:
        return f"sm_{cuda_device().arch}"
    except DeviceError:
        return None
