"""Kernel families: what each step of a plan can be made of."""

from __future__ import annotations

from types import ModuleType

from enginesmith.kernels.layout import cpu as layout
from enginesmith.kernels.pointwise import cpu as pointwise
from enginesmith.kernels.pool import cpu as pool

FAMILIES: dict[str, ModuleType] = {
    "pointwise": pointwise,
    "layout": layout,
    "pool": pool,
}
"""Name -> module with the functions of `base.Family`."""
