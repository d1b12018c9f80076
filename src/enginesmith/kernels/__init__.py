"""Kernel families: what each step of a plan can be made of."""

from __future__ import annotations

from types import ModuleType

from enginesmith.kernels.pointwise import cpu as pointwise

FAMILIES: dict[str, ModuleType] = {
    "pointwise": pointwise,
}
"""Name -> module with the functions of `base.Family`."""
