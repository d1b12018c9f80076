"""Arrays on the GPU: those of other libraries as feeds, and our own as results."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from enginesmith.runtime.devices.cuda import CudaDevice, DeviceMemory

Shape = tuple[int, ...]
DLPACK_CUDA = 2
"""The DLPack type of memory on an NVIDIA GPU."""

STRIDED = "is not C-contiguous; pass a contiguous copy"


class DeviceArray:
    """A C-contiguous array on the GPU. Libraries that know `__cuda_array_interface__` (CuPy, Numba,
    torch.as_tensor, cuda.core) use it without a copy; `numpy()` copies it to the host."""

    def __init__(
        self, device: CudaDevice, address: int, shape: Shape, dtype: str, owner: Any
    ) -> None:
        self._device, self._owner = device, owner
        self.address, self.shape, self.dtype = address, shape, np.dtype(dtype)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.nbytes else 0, False),
            "version": 3,
            "strides": None,
            "stream": None,  # the work that fills it is done
        }

    def numpy(self) -> np.ndarray[Any, np.dtype[Any]]:
        """A copy on the host."""
        result = np.empty(self.shape, self.dtype)
        stream = self._device.stream()
        try:
            self._device.copy_out(result.ctypes.data, self.address, result.nbytes, stream)
            self._device.synchronize(stream)
        finally:
            self._device.close_stream(stream)
        return result

    def __repr__(self) -> str:
        return f"DeviceArray({self.shape}, {self.dtype})"


def new_array(device: CudaDevice, shape: Shape, dtype: str) -> DeviceArray:
    """A new array, not cleared."""
    memory: DeviceMemory = device.allocate(prod(shape) * np.dtype(dtype).itemsize)
    return DeviceArray(device, memory.address, shape, dtype, memory)


def to_device(device: CudaDevice, array: np.ndarray[Any, np.dtype[Any]]) -> DeviceArray:
    """A copy of a host array on the GPU."""
    data = np.ascontiguousarray(array)
    result = new_array(device, data.shape, data.dtype.name)
    stream = device.stream()
    try:
        device.copy_in(result.address, data.ctypes.data, data.nbytes, stream)
        device.synchronize(stream)
    finally:
        device.close_stream(stream)
    return result


def on_device(value: Any) -> bool:
    """Is this an array in a GPU's memory?"""
    if hasattr(value, "__cuda_array_interface__"):
        return True
    kind = getattr(value, "__dlpack_device__", None)
    return kind is not None and kind()[0] == DLPACK_CUDA


def as_device_array(device: CudaDevice, value: Any) -> tuple[DeviceArray | None, str]:
    """The array of another library as ours, None if its type and shape can't be told; and what is
    wrong with it ("" if nothing is)."""
    if isinstance(value, DeviceArray):
        return value, ""
    try:
        if hasattr(value, "__cuda_array_interface__"):
            return _by_interface(device, value)
        return _by_dlpack(device, value)
    except Exception as error:  # whatever another library's object says or lacks
        return None, (
            f"can't be read as an array on the GPU: {type(error).__name__}: {error}; "
            "pass numpy.asarray(value)"
        )


def _by_interface(device: CudaDevice, value: Any) -> tuple[DeviceArray, str]:
    facts = value.__cuda_array_interface__
    shape, dtype = tuple(facts["shape"]), np.dtype(facts["typestr"])
    array = DeviceArray(device, int(facts["data"][0] or 0), shape, dtype.name, value)
    strides = facts.get("strides")
    if strides is not None and not _is_dense(shape, [s // dtype.itemsize for s in strides]):
        return array, STRIDED
    if not dtype.isnative:
        return array, "is of another byte order than this machine's; pass a copy in its own"
    return array, ""


def _by_dlpack(device: CudaDevice, value: Any) -> tuple[DeviceArray, str]:
    from cuda.core.utils import StridedMemoryView

    view = StridedMemoryView.from_dlpack(value, stream_ptr=-1)
    array = DeviceArray(device, view.ptr, tuple(view.shape), view.dtype.name, (value, view))
    dense = view.strides is None or _is_dense(view.shape, view.strides)
    return array, "" if dense else STRIDED


def _is_dense(shape: Any, strides: Any) -> bool:
    """Row-major without gaps; strides in elements."""
    if 0 in tuple(shape):
        return True  # whatever an empty array's strides are
    expected = 1
    for size, stride in zip(reversed(tuple(shape)), reversed(tuple(strides)), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
