"""The machine a plan is built for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from enginesmith.errors import BuildError

ISAS = {"avx2": 8, "avx512": 16}
"""CPU instruction sets a target can name, with their float32 lanes per vector."""


ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
"""NVIDIA GPU architectures a target can name (compute capability 8.0 and newer), the oldest
first."""


def nearest_architecture(arch: int) -> str | None:
    """The best of ARCHITECTURES whose plans run on a GPU of this compute capability (times ten);
    None for GPUs older than all."""
    older = [isa for isa in ARCHITECTURES if int(isa.removeprefix("sm_")) <= arch]
    return older[-1] if older else None


@dataclass(frozen=True, slots=True)
class Target:
    """`device` ("cpu" or "cuda") and `isa` (a key of ISAS, or one of ARCHITECTURES); written
    `cpu:avx512` or `cuda:sm_90`."""

    device: str
    isa: str

    @property
    def arch(self) -> int:
        """Compute capability of a GPU times ten: 90 for `cuda:sm_90`."""
        return int(self.isa.removeprefix("sm_"))

    @property
    def lanes(self) -> int:
        """float32 lanes of a vector, which is also the channel block of activations."""
        return ISAS[self.isa]

    @property
    def registers(self) -> int:
        """Vector registers of the ISA."""
        return 32 if self.isa == "avx512" else 16

    def __str__(self) -> str:
        return f"{self.device}:{self.isa}"


def parse_target(text: str, host_isa: str | None) -> Target:
    """`cpu` or `cuda` (what the host has), or with an instruction set or architecture: `cpu:avx2`,
    `cuda:sm_90`. BuildError lists the choices."""
    device, _, isa = text.partition(":")
    isa = isa or host_isa or ""
    known: dict[str, Collection[str]] = {"cpu": ISAS, "cuda": ARCHITECTURES}
    if isa not in known.get(device, ()):
        choices = ", ".join(f"{name}:{isa}" for name, isas in known.items() for isa in isas)
        reason = "" if isa else " (this machine has none that is known)"
        raise BuildError(f"target {text!r} is not known{reason}; choose cpu, cuda, {choices}")
    return Target(device, isa)
