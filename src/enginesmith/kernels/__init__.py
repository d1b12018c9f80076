"""Kernel families: what each step of a plan can be made of."""

from __future__ import annotations

from types import ModuleType

from enginesmith.kernels.argmax import cpu as argmax
from enginesmith.kernels.attention import cpu as attention
from enginesmith.kernels.conv import cpu as conv
from enginesmith.kernels.cumsum import cpu as cumsum
from enginesmith.kernels.gather import cpu as gather
from enginesmith.kernels.halo import cpu as halo
from enginesmith.kernels.layout import cpu as layout
from enginesmith.kernels.matmul import cpu as matmul
from enginesmith.kernels.normalization import cpu as normalization
from enginesmith.kernels.pad import cpu as pad
from enginesmith.kernels.pointwise import cpu as pointwise
from enginesmith.kernels.pool import cpu as pool
from enginesmith.kernels.range import cpu as range_
from enginesmith.kernels.reduce import cpu as reduce
from enginesmith.kernels.resize import cpu as resize
from enginesmith.kernels.sizes import cpu as sizes
from enginesmith.kernels.softmax import cpu as softmax

_CPU: dict[str, ModuleType] = {
    "conv": conv,
    "halo": halo,
    "pointwise": pointwise,
    "layout": layout,
    "pool": pool,
    "reduce": reduce,
    "matmul": matmul,
    "softmax": softmax,
    "normalization": normalization,
    "resize": resize,
    "gather": gather,
    "pad": pad,
    "range": range_,
    "cumsum": cumsum,
    "argmax": argmax,
    "attention": attention,
    "sizes": sizes,
}

import importlib


def _load(name):
    try:
        return importlib.import_module(f"enginesmith.kernels.{name}.cuda")
    except ModuleNotFoundError:
        return None


_CUDA: dict[str, ModuleType] = {
    name: m for name in _CPU if name != "halo" and (m := _load(name)) is not None
}

FAMILIES: dict[str, dict[str, ModuleType]] = {"cpu": _CPU, "cuda": _CUDA}
"""Device -> family's name -> module with the functions of `base.Family`."""
