"""What a GPU can do: its copy bandwidth as measured now, its arithmetic as its datasheet says.

A copy comes as close to the memory's limit as kernels do. Of arithmetic no kernel is known to reach
the datasheet's rate, so a per cent of it compares with other programs, not with what is possible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from enginesmith.runtime.devices.cuda import CudaDevice

COPY_BYTES = 256 << 20
"""Of each array: several times a last-level cache."""

COPIES = 8
"""In a row, timed together."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a card, in 10^12 operations a second, dense, at boost clocks: tensor cores on float16 or
    bfloat16 with float32 sums, on TF32, and plain float32."""

    half: float
    tf32: float
    plain: float

    def gflops(self, precision: str) -> float:
        """10^9 operations a second at a plan's precision. In "fp32" tensor cores take three
        products for one; where plain arithmetic is faster, that is the limit."""
        if precision == "fp32":
            return 1e3 * max(self.plain, self.tf32 / 3)
        return 1e3 * (self.tf32 if precision == "tf32" else self.half)


CARDS = {
    # "NVIDIA A100 Tensor Core GPU" datasheet (June 2021)
    "A100.*": Rates(312, 156, 19.5),
    # "NVIDIA A10 Tensor Core GPU" datasheet (2021); the A10G is slower
    "A10": Rates(125, 62.5, 31.2),
    # "NVIDIA L4 Tensor Core GPU" datasheet (2023): 242, 120 with sparsity
    "L4": Rates(121, 60, 30.3),
    # "NVIDIA L40S" datasheet (2023)
    "L40S": Rates(362, 183, 91.6),
    # "NVIDIA H100 Tensor Core GPU" datasheet (2023): 1,979 and 989 with sparsity (SXM), 1,513 and
    # 756 (PCIe); "NVIDIA H200 Tensor Core GPU" datasheet (2024): as H100 SXM
    "H100 80GB HBM3": Rates(989.4, 494.7, 66.9),
    "H100 PCIe": Rates(756.5, 378, 51),
    "H200": Rates(989.4, 494.7, 66.9),
    # "NVIDIA Blackwell" datasheet (2025), HGX B200: 4.5 and 2.2 PFLOPS with sparsity
    "B200": Rates(2250, 1100, 75),
    # "NVIDIA Ampere GA102 GPU Architecture" (v2, 2021), appendix A
    "GeForce RTX 3090": Rates(71, 35.6, 35.6),
    # "NVIDIA Ada GPU Architecture" (v2, 2023), appendix A
    "GeForce RTX 4090": Rates(165.2, 82.6, 82.6),
    # "NVIDIA RTX Blackwell GPU Architecture" (2025), appendix A
    "GeForce RTX 5090": Rates(209.5, 104.8, 104.8),
}
"""By the name that the driver gives a card, after "NVIDIA " (a regular expression)."""


def rates_of(card: str) -> Rates | None:
    """What is known of a card, by the name that the driver gives it; None: nothing (of parts of
    one, too)."""
    name = "" if " MIG " in card else card.removeprefix("NVIDIA ")
    found = (rates for pattern, rates in CARDS.items() if re.fullmatch(pattern, name))
    return next(found, None)


@dataclass(frozen=True, slots=True)
class CudaPeak:
    """The datasheet's `gflops` of the precision (0: not known) and `gbps`, bytes read plus bytes
    written by a copy, both in 10^9 a second. `card`: the GPU's name."""

    card: str
    gflops: float
    gbps: float


def cuda_peak(device: CudaDevice, precision: str) -> CudaPeak:
    """The limits of this GPU at a plan's precision ("fp32", "tf32", "fp16", "bf16")."""
    rates = rates_of(device.name)
    gflops = 0.0 if rates is None else rates.gflops(precision)
    return CudaPeak(device.name, gflops, copy_rate(device) / 1e9)


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
