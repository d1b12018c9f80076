"""What a GPU can do: its copy bandwidth as measured now, its arithmetic as its datasheet says.

A copy comes as close to the memory's limit as kernels do. Of arithmetic no kernel is known to reach
the datasheet's rate, so a per cent of it compares with other programs, not with what is possible.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.runtime.devices.cuda import CudaDevice

COPY_BYTES = 256 << 20
"""Of each array: several times a last-level cache."""

COPIES = 8
"""In a row, timed together."""

GFLOPS = {
    # architecture: (10^9 operations a second of tensor cores on float16 and bfloat16, of float32)
    80: (312e3, 19.5e3),  # A100
    86: (125e3, 31.2e3),  # A10
    89: (362e3, 91.6e3),  # L40S
    90: (989e3, 66.9e3),  # H100 SXM
    100: (2250e3, 75e3),  # B200
}
"""NVIDIA's datasheets: dense, at boost clocks, of the architecture's best-known server card."""


@dataclass(frozen=True, slots=True)
class CudaPeak:
    """The datasheet's `gflops` of the precision (0: not known) and `gbps`, bytes read plus bytes
    written by a copy, both in 10^9 a second. `card`: the GPU's name."""

    card: str
    gflops: float
    gbps: float


def cuda_peak(device: CudaDevice, precision: str) -> CudaPeak:
    """The limits of this GPU at a precision ("fp32", "fp16", "bf16")."""
    tensor, plain = GFLOPS.get(device.arch, (0.0, 0.0))
    return CudaPeak(device.name, plain if precision == "fp32" else tensor, copy_rate(device) / 1e9)


def copy_rate(device: CudaDevice, rounds: int = 5) -> float:
    """Bytes a second, read and written, of device-to-device copies: the best of some rounds."""
    size = COPY_BYTES
    to, source, stream = device.allocate(size), device.allocate(size), device.stream()
    start, end = device.event(timing=True), device.event(timing=True)
    best = float("inf")
    try:
        device.clear(source.address, size, stream)
        for _ in range(rounds):
            device.record(start, stream)
            for _ in range(COPIES):
                device.copy(to.address, source.address, size, stream)
            device.record(end, stream)
            device.wait_for(end)
            best = min(best, device.elapsed(start, end))
    finally:
        device.close_event(start)
        device.close_event(end)
        device.close_stream(stream)
    return 2 * size * COPIES / best
