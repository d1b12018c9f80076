"""Hopper's matrix instruction `wgmma.mma_async` as functions of CUDA C++.

    wgmma(c, a, b, add, Tag<half>())       a, b: descriptors of shared memory (see `wgmma_tile`)
    wgmma(c, a, b, add, Tag<half>())       a: uint32_t[4], fragments in registers as those of `mma`
    wgmma_mn(c, a, b, add, Tag<half>())    the same with rows of B along K, N consecutive
                                           (`wgmma_tile_mn`)

c (64 x N, float[N / 2]) = a (64 x 16) * b (16 x N), plus c if `add`. The 128 threads of a warp
group call them together. Thread t holds in c[4 * j + 2 * h + e] row t / 32 * 16 + h * 8 +
t % 32 / 4, column 8 * j + 2 * (t % 4) + e. The calls only begin the work: put `wgmma_fence()`
before the first, `wgmma_commit()` after the last, and touch c (and fragments) only after
`wgmma_wait` and `wgmma_hold(c)`, which keeps the compiler from reading c before.

Each text is of one type and N, since a kernel needs few. See "Asynchronous warpgroup level matrix
instructions" in the PTX manual. Needs the target sm_90a.
"""

from __future__ import annotations

from collections.abc import Iterable

_PTX_TYPES = {"float16": ("f16", "half"), "bfloat16": ("bf16", "bf16")}

_HOLD = """\
#ifndef ES_WGMMA_HOLD
#define ES_WGMMA_HOLD
template <int R> DEVICE void wgmma_hold(float (&c)[R]) {
  UNROLL for (int i = 0; i < R; i++) asm volatile("" : "+f"(c[i]) :: "memory");
}
#endif
"""


def wgmma_functions(
    dtype: str, columns: Iterable[int], *, from_registers: bool = False, mn_major: bool = False
) -> str:
    """The functions for products of `dtype` ("float16" or "bfloat16") with N in `columns`
    (multiples of 8 up to 256). from_registers: A in registers; mn_major: `wgmma_mn`. Call it once
    per kernel, or put the texts of several calls one after the other."""
    text = "".join(
        _function(dtype, n, from_registers, mn_major) for n in sorted(dict.fromkeys(columns))
    )
    # Where there is no CUDA compiler (an emulation), these are functions of the emulation.
    return f"#ifdef __CUDACC__\n{_HOLD}{text}#endif\n"


def _function(dtype: str, n: int, from_registers: bool, mn_major: bool) -> str:
    ptx, name = _PTX_TYPES[dtype]
    count = n // 2
    accumulators = ", ".join(f"%{i}" for i in range(count))
    if from_registers:
        parameter = "const uint32_t (&a)[4]"
        inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
        operand = "{" + ", ".join(f"%{count + i}" for i in range(4)) + "}"
        b, transposed = count + 4, f"{int(mn_major)}"
    else:
        parameter, inputs, operand = "uint64_t a", '"l"(a)', f"%{count}"
        b, transposed = count + 1, f"0, {int(mn_major)}"
    outputs = ", ".join(f'"+f"(c[{i}])' for i in range(count))
    suffix = "_mn" if mn_major else ""
    return f"""\
DEVICE void wgmma{suffix}(float (&c)[{count}], {parameter}, uint64_t b, bool add, Tag<{name}>) {{
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{b + 1}, 0;\\n"
    "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{ptx}.{ptx} {{{accumulators}}}, "
    "{operand}, %{b}, p, 1, 1, {transposed};\\n}}"
    : {outputs}
    : {inputs}, "l"(b), "r"((int)add));
}}
"""
