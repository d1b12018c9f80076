"""The C text every kernel file starts with: types, vectors and loads, for one target."""

from __future__ import annotations

from enginesmith.plan.target import Target

FLAGS = {
    "avx2": ("-march=x86_64_v3",),
    "avx512": ("-march=x86_64_v4", "-mprefer-vector-width=512"),
}
"""Compiler flags per ISA."""


def prelude(target: Target) -> str:
    """vf: a vector of LANES floats that may lie at any 4-byte address; vi: the same of int32."""
    n = target.lanes
    return f"""\
typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned uint32_t;
typedef long long int64_t; typedef unsigned long long uint64_t;
#define LANES {n}
typedef float vf __attribute__((vector_size({4 * n}), aligned(4)));
typedef int32_t vi __attribute__((vector_size({4 * n}), aligned(4)));
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")
INLINE vf splat(float x) {{ return x - (vf){{0}}; }}
INLINE vf load(const float *p) {{ return *(const vf *)p; }}
INLINE void store(float *p, vf x) {{ *(vf *)p = x; }}
INLINE vf vmax(vf a, vf b) {{ return __builtin_elementwise_max(a, b); }}
INLINE vf vmin(vf a, vf b) {{ return __builtin_elementwise_min(a, b); }}
INLINE vf vblend(vi mask, vf a, vf b) {{ return (vf)((mask & (vi)a) | (~mask & (vi)b)); }}
INLINE int64_t imin(int64_t a, int64_t b) {{ return a < b ? a : b; }}
INLINE int64_t imax(int64_t a, int64_t b) {{ return a > b ? a : b; }}
"""
