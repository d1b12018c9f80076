"""Kernel families: what each step of a plan can be made of."""

from __future__ import annotations

from types import ModuleType

from enginesmith.kernels.argmax import cpu as argmax
from enginesmith.kernels.argmax import cuda as argmax_cuda
from enginesmith.kernels.attention import cpu as attention
from enginesmith.kernels.attention import cuda as attention_cuda
from enginesmith.kernels.conv import cpu as conv
from enginesmith.kernels.conv import cuda as conv_cuda
from enginesmith.kernels.cumsum import cpu as cumsum
from enginesmith.kernels.cumsum import cuda as cumsum_cuda
from enginesmith.kernels.gather import cpu as gather
from enginesmith.kernels.gather import cuda as gather_cuda
from enginesmith.kernels.halo import cpu as halo
from enginesmith.kernels.host import cpu as host
from enginesmith.kernels.host import cuda as host_cuda
from enginesmith.kernels.layout import cpu as layout
from enginesmith.kernels.layout import cuda as layout_cuda
from enginesmith.kernels.matmul import cpu as matmul
from enginesmith.kernels.matmul import cuda as matmul_cuda
from enginesmith.kernels.normalization import cpu as normalization
from enginesmith.kernels.normalization import cuda as normalization_cuda
from enginesmith.kernels.pad import cpu as pad
from enginesmith.kernels.pad import cuda as pad_cuda
from enginesmith.kernels.pointwise import cpu as pointwise
from enginesmith.kernels.pointwise import cuda as pointwise_cuda
from enginesmith.kernels.pool import cpu as pool
from enginesmith.kernels.pool import cuda as pool_cuda
from enginesmith.kernels.range import cpu as range_
from enginesmith.kernels.range import cuda as range__cuda
from enginesmith.kernels.reduce import cpu as reduce
from enginesmith.kernels.reduce import cuda as reduce_cuda
from enginesmith.kernels.resize import cpu as resize
from enginesmith.kernels.resize import cuda as resize_cuda
from enginesmith.kernels.sizes import cpu as sizes
from enginesmith.kernels.sizes import cuda as sizes_cuda
from enginesmith.kernels.softmax import cpu as softmax
from enginesmith.kernels.softmax import cuda as softmax_cuda

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
    "host": host,
}

_CUDA: dict[str, ModuleType] = {
    "conv": conv_cuda,
    "pointwise": pointwise_cuda,
    "layout": layout_cuda,
    "pool": pool_cuda,
    "reduce": reduce_cuda,
    "matmul": matmul_cuda,
    "softmax": softmax_cuda,
    "normalization": normalization_cuda,
    "resize": resize_cuda,
    "gather": gather_cuda,
    "pad": pad_cuda,
    "range": range__cuda,
    "cumsum": cumsum_cuda,
    "argmax": argmax_cuda,
    "attention": attention_cuda,
    "sizes": sizes_cuda,
    "host": host_cuda,
}

FAMILIES: dict[str, dict[str, ModuleType]] = {"cpu": _CPU, "cuda": _CUDA}
"""Device -> family's name -> module with the functions of `base.Family`."""
