"""The machine a plan is built for."""

from __future__ import annotations

from dataclasses import dataclass

from enginesmith.errors import BuildError

ISAS = {"avx2": 8, "avx512": 16}
"""CPU instruction sets a target can name, with their float32 lanes per vector."""


@dataclass(frozen=True, slots=True)
class Target:
    """`device` ("cpu") and `isa` (a key of ISAS); written `cpu:avx512`."""

    device: str
    isa: str

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
    """`cpu` (the host's best ISA), `cpu:avx2` or `cpu:avx512`. BuildError lists the choices."""
    device, _, isa = text.partition(":")
    isa = isa or host_isa or ""
    if device != "cpu" or isa not in ISAS:
        choices = ", ".join(f"cpu:{name}" for name in ISAS)
        reason = "" if isa else " (this machine has none of these instruction sets)"
        raise BuildError(f"target {text!r} is not known{reason}; choose cpu, {choices}")
    return Target(device, isa)
