"""The algorithm a `LibrarySource` stands for: what the library's heuristic says on this GPU.

It takes the place of machine code: 8 bytes, how much workspace it takes (little-endian), then what
the library is told.
"""

from __future__ import annotations

from enginesmith.errors import DeviceError
from enginesmith.kernels.base import value_of
from enginesmith.kernels.cuda import LibrarySource
from enginesmith.runtime.devices.cublas import BIAS_ALIGNMENT, Algorithm
from enginesmith.runtime.devices.cuda import CudaDevice
from enginesmith.runtime.library_calls import prepare


def choose_algorithm(source: LibrarySource, device: CudaDevice) -> bytes:
    """The source's algorithm at its typical sizes; the same library and GPU give the same one.
    Nothing if the heuristic's list is shorter, or a size is 0."""
    device.use()
    operation = source.operation.sized(lambda size: value_of(size, source.hint))
    if operation.empty:
        return b""
    prepared = prepare(device, operation, (BIAS_ALIGNMENT,) * len(source.operands))
    found = prepared.algorithms(source.WORKSPACE, source.CHOICES)
    if source.choice >= len(found):
        return b""
    algorithm = found[source.choice]
    return algorithm.workspace.to_bytes(8, "little") + algorithm.data


def unpack_algorithm(binary: bytes) -> Algorithm:
    """What `choose_algorithm` found. DeviceError if that was nothing."""
    if not binary:
        raise DeviceError("the library knows no such algorithm for the operation")
    return Algorithm(binary[8:], int.from_bytes(binary[:8], "little"))
