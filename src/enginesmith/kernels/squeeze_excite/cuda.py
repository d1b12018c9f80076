"""Squeeze-and-excitation for GPUs, in one launch or in three.

`cluster` (compute capability 9.0 and newer): the s blocks of a cluster share an image. Each sums
its part of the pixels, reads the others' sums through distributed shared memory, computes its share
of the hidden numbers, reads the others', and computes its share of the gates.

`launches`: sums of parts of the pixels, hidden numbers and gates are a kernel each; what they hand
on goes through the workspace.
"""

from __future__ import annotations

from collections.abc import Sequence

from enginesmith.codegen.cuda_expressions import (
    cuda_expression,
    cuda_functions,
    load_value,
    store_value,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Expr
from enginesmith.kernels.base import ITEMSIZE, Operand, Problem, Size, Tactic, mul, same, tactic
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import RUNS, Values, factor, kernel_head
from enginesmith.kernels.ending import FLOATS
from enginesmith.kernels.nest import nothing_packed
from enginesmith.kernels.squeeze_excite.problem import SqueezeExciteProblem
from enginesmith.kernels.squeeze_excite.problem import cost as squeeze_excite_cost
from enginesmith.plan.target import Target

THREADS = 256

AHEAD = 4
"""Pixels whose loads a thread has under way."""

CHANNELS = 8192
"""At most; their sums are in shared memory twice."""


def why_not(problem: Problem, target: Target) -> str | None:
    """See `Family`."""
    if not isinstance(problem, SqueezeExciteProblem):
        return "not a squeeze-and-excitation"
    if any(o.block or o.dtype not in FLOATS for o in problem.operands):
        return "operands must be plain and floating-point"
    if max(problem.channels) > CHANNELS or min(problem.channels) == 0:
        return f"{max(problem.channels)} channels"
    return None


def tactics(problem: Problem, target: Target) -> tuple[Tactic, ...]:
    """See `Family`."""
    assert isinstance(problem, SqueezeExciteProblem)
    n, _, h, w = (problem.typical(s) for s in problem.x.shape)
    parts = [s for s in (8, 4, 2, 1) if s == 1 or (n * s <= 1024 and h * w >= 4 * s)]
    clusters = [tactic("cluster", s=s) for s in (8, 4) if target.arch >= 90 and h * w >= s]
    return (*clusters, *(tactic("launches", s=s) for s in parts[:2]))


def emit(problem: Problem, tactic: Tactic, target: Target) -> CudaSource:
    """See `Family`."""
    assert isinstance(problem, SqueezeExciteProblem)
    functions = RUNS + cuda_functions(problem.inner, problem.outer) + _DOT
    return (_cluster if tactic.name == "cluster" else _launches)(problem, tactic["s"], functions)


_DOT = """
/* The sum of a[i] * b[i] over this lane's share of `count` elements, W at a time. */
template <int W, class A> DEVICE float dot(const A *a, const float *b, int count, int lane) {
  float sum = 0.f;
  for (int i = lane * W; i < count; i += 32 * W) {
    A x[W];
    load_run<W>(x, a + i);
    UNROLL for (int k = 0; k < W; ++k) sum += to_float(x[k]) * b[i + k];
  }
  return sum;
}
DEVICE float over_lanes(float x) {
  UNROLL for (int bit = 16; bit > 0; bit /= 2) x += lane_xor(x, bit);
  return x;
}
"""


def _width(operand: Operand, axis: int) -> int:
    """Elements along `axis` that can be loaded at once."""
    if operand.strides[axis] != 1:
        return 1
    item = ITEMSIZE[operand.dtype]
    width = min(16 // item, 8, max(1, factor(operand.alignment) // item))
    others = [s for k, s in enumerate(operand.strides) if k != axis and operand.shape[k] != 1]
    return min([width, factor(operand.shape[axis], width), *(factor(s, width) for s in others)])


def _sums(problem: SqueezeExciteProblem, values: Values, to: str) -> str:
    """C++: sums of the pixels first <= p < last of image `image` to `to` (a format of a channel).
    rows: shared memory for THREADS * V floats."""
    x = problem.x
    sn, sc, sh, sw = (values.value(s) for s in x.strides)
    v = _width(x, 1)
    flat = same(x.strides[2], mul(x.strides[3], x.shape[3]))
    wide = values.value(x.shape[3])
    place = f"p * {sw}" if flat else f"p / {wide} * {sh} + p % {wide} * {sw}"
    kind = CUDA_TYPES[x.dtype]
    load = f"load_run<{v}>(a[i], from + {place})" if v > 1 else f"a[i][0] = from[{place}]"
    return f"""\
for (int base = 0; base < {problem.channels[0] // v}; base += {THREADS}) {{
  const int width = imin({problem.channels[0] // v} - base, {THREADS}), high = {THREADS} / width;
  const int g = threadIdx.x % width, row = threadIdx.x / width;
  const {kind} *from = p0 + image * {sn} + (base + g) * {v} * {sc};
  float sum[{v}] = {{}};
  if (row < high)
    for (int p0_ = first + row; p0_ < last; p0_ += high * {AHEAD}) {{
      {kind} a[{AHEAD}][{v}];
      UNROLL for (int i = 0; i < {AHEAD}; ++i) {{
        const int p = imin(p0_ + i * high, last - 1);
        {load};
      }}
      UNROLL for (int i = 0; i < {AHEAD}; ++i) if (p0_ + i * high < last)
        UNROLL for (int k = 0; k < {v}; ++k) sum[k] += {load_value(x.dtype, "a[i][k]")};
    }}
  UNROLL for (int k = 0; k < {v}; ++k) rows[threadIdx.x * {v} + k] = sum[k];
  __syncthreads();
  for (int c = threadIdx.x; c < width * {v}; c += {THREADS}) {{
    float total = 0.f;
    for (int r = 0; r < high; ++r) total += rows[r * width * {v} + c];
    {to.format(f"base * {v} + c")} = total;
  }}
  __syncthreads();
}}
"""


def _result(
    problem: SqueezeExciteProblem, expr: Expr, slots: Sequence[int], sum_: str, index: str,
    values: Values,
) -> str:  # fmt: skip
    """C++: `expr` of the product at channel `index`, a float."""
    args, dtypes = [sum_], ["float32"]
    for slot in slots:
        o = problem.operands[slot]
        image = f"image * {values.value(o.strides[0])} + " if o.strides[0] != 0 else ""
        channel = f"({index}) * {values.value(o.strides[1])}" if o.strides[1] != 0 else "0"
        args.append(load_value(o.dtype, f"p{slot}[{image}{channel}]"))
        dtypes.append(o.dtype)
    fast = problem.operands[-1].dtype != "float32"
    return cuda_expression(expr, args, dtypes, fast=fast)


def _hidden(problem: SqueezeExciteProblem, values: Values) -> str:
    """C++: hidden number j, computed by a warp from `pooled`."""
    w1, c = problem.operands[1], problem.channels[0]
    row = f"p1 + j * {values.value(w1.strides[0])}"
    inner = _result(problem, problem.inner, problem.inner_operands, "sum", "j", values)
    return f"""\
const float sum = over_lanes(dot<{_width(w1, 1)}>({row}, pooled, {c}, lane));
const float number = {inner};
"""


def _gate(problem: SqueezeExciteProblem, values: Values) -> str:
    """C++: gate o, computed by a thread from `hidden`."""
    w2, y = problem.operands[2], problem.operands[-1]
    r, width = problem.channels[1], _width(w2, 1)
    last = len(problem.operands) - 1
    outer = _result(problem, problem.outer, problem.outer_operands, "sum", "o", values)
    at = f"image * {values.value(y.strides[0])} + o * {values.value(y.strides[1])}"
    return f"""\
float sum = 0.f;
const {CUDA_TYPES[w2.dtype]} *row = p2 + o * {values.value(w2.strides[0])};
for (int i = 0; i < {r}; i += {width}) {{
  {CUDA_TYPES[w2.dtype]} b[{width}];
  load_run<{width}>(b, row + i);
  UNROLL for (int k = 0; k < {width}; ++k) sum += {load_value(w2.dtype, "b[k]")} * hidden[i + k];
}}
p{last}[{at}] = {store_value(y.dtype, outer)};
"""


LINE = 128
"""Bytes that a prefetch brings."""


def _prefetch(problem: SqueezeExciteProblem, block: str, blocks: int) -> str:
    """C++: the weights on their way to the L2 cache, by the `blocks` blocks of the first image."""
    text = ""
    for slot in (1, 2):
        o = problem.operands[slot]
        rows, columns, *_ = o.shape
        if o.constant and o.strides[:2] == (columns, 1):
            step = LINE // ITEMSIZE[o.dtype]
            first = f"({block} * {THREADS} + threadIdx.x) * {step}"
            text += (
                f"if (image == 0) for (int i = {first}; i < {mul(rows, columns)}; "
                f"i += {blocks * THREADS * step}) prefetch(p{slot} + i);\n"
            )
    return text


def _pixels(problem: SqueezeExciteProblem) -> Size:
    return mul(*problem.x.shape[2:])


def _cluster(problem: SqueezeExciteProblem, s: int, functions: str) -> CudaSource:
    c, r, o = problem.channels
    values, warps = Values(), THREADS // 32
    text = f"""\
grid_launch();
float *const part = (float *)shared_memory(), *const pooled = part + {c};
float *const mine = pooled + {c}, *const hidden = mine + {r}, *const rows = hidden + {r};
const int rank = cluster_rank(), image = blockIdx.y, lane = threadIdx.x % 32;
const int pixels = {values.value(_pixels(problem))};
const int first = rank * pixels / {s}, last = (rank + 1) * pixels / {s};
{_prefetch(problem, "rank", s)}grid_wait();
{_sums(problem, values, "part[{0}]")}\
cluster_sync();
for (int k = threadIdx.x; k < {c}; k += {THREADS}) {{
  float total = 0.f;
  UNROLL for (int b = 0; b < {s}; ++b) total += cluster_load(cluster_address(part + k, b));
  pooled[k] = total / (float)pixels;
}}
__syncthreads();
for (int j = rank * {warps} + threadIdx.x / 32; j < {r}; j += {s * warps}) {{
  {_hidden(problem, values)}
  if (lane == 0) mine[j] = number;
}}
cluster_sync();
for (int j = threadIdx.x; j < {r}; j += {THREADS})
  hidden[j] = cluster_load(cluster_address(mine + j, j / {warps} % {s}));
__syncthreads();
for (int o = rank + {s} * threadIdx.x; o < {o}; o += {s * THREADS}) {{
  {_gate(problem, values)}
}}
cluster_sync();  /* the others have read what is here */
}}
"""
    head = kernel_head(problem, values, THREADS)
    shared = 4 * (2 * c + 2 * r + THREADS * _width(problem.x, 1))
    launch = Launch(
        (s, problem.x.shape[0], 1), THREADS, values.launch, shared=shared, cluster=(s, 1, 1)
    )
    return CudaSource(functions + head + text, (launch,))


def _launches(problem: SqueezeExciteProblem, s: int, functions: str) -> CudaSource:
    c, r, o = problem.channels
    n, warps = problem.x.shape[0], THREADS // 32
    parts = "reinterpret_cast<float *>(workspace)"
    launches, text = [], functions

    def add_kernel(suffix: str, body: str, values: Values, blocks: int, shared: int) -> None:
        nonlocal text
        text += kernel_head(problem, values, THREADS, suffix, workspace=True)
        text += "grid_launch();\nconst int image = blockIdx.y;\n" + body + "}\n"
        launches.append(
            Launch((blocks, n, 1), THREADS, values.launch, suffix, shared=4 * shared)
        )  # fmt: skip

    values = Values()
    body = f"""\
float *const rows = (float *)shared_memory();
const int pixels = {values.value(_pixels(problem))};
const int first = blockIdx.x * pixels / {s}, last = (blockIdx.x + 1) * pixels / {s};
float *const part = {parts} + (image * {s} + blockIdx.x) * {c};
{_prefetch(problem, "blockIdx.x", s)}grid_wait();
{_sums(problem, values, "part[{0}]")}"""
    add_kernel("_sums", body, values, s, THREADS * _width(problem.x, 1))

    values = Values()
    hidden = f"{parts} + {values.value(mul(n, s * c))} + image * {r}"
    body = f"""\
float *const pooled = (float *)shared_memory();
const int lane = threadIdx.x % 32, j = blockIdx.x * {warps} + threadIdx.x / 32;
const float *const part = {parts} + image * {s * c};
float *const to = {hidden};
const float share = 1.f / (float){values.value(_pixels(problem))};
grid_wait();
for (int k = threadIdx.x; k < {c}; k += {THREADS}) {{
  float total = 0.f;
  UNROLL for (int b = 0; b < {s}; ++b) total += part[b * {c} + k];
  pooled[k] = total * share;
}}
__syncthreads();
if (j < {r}) {{
  {_hidden(problem, values)}
  if (lane == 0) to[j] = number;
}}
"""
    add_kernel("_squeeze", body, values, -(-r // warps), c)

    values = Values()
    body = f"""\
const float *const hidden = {parts} + {values.value(mul(n, s * c))} + image * {r};
const int o = blockIdx.x * {THREADS} + threadIdx.x;
grid_wait();
if (o < {o}) {{
  {_gate(problem, values)}
}}
"""
    add_kernel("_excite", body, values, -(-o // THREADS), 0)
    return CudaSource(text, tuple(launches), workspace=mul(n, 4 * (s * c + r)))


pack = nothing_packed
cost = squeeze_excite_cost
