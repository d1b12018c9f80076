"""The emulator itself: every primitive in a small kernel, and every mistake it must find."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from tests.cuda_emulator import EmulationError, run_source
from tests.cuda_emulator.compile import HERE

from enginesmith.codegen.cuda_prelude import HOPPER, INSTRUCTIONS
from enginesmith.kernels.base import Operand, Problem, dense_strides
from enginesmith.kernels.cuda import CudaSource, Launch, TensorMap

ONE = (1, 1, 1)


def floats(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def dense(dtype, *shape, **changes):
    return Operand(dtype, shape, changes.pop("strides", dense_strides(shape)), **changes)


def kernel(text, parameters, suffix=""):
    return f'extern "C" __global__ void NAME{suffix}({parameters}) {{\n{text}\n}}\n'


def run(text, operands, inputs, *, parameters=None, grid=ONE, threads=32, order="both", **launch):
    """One kernel whose parameters are x (float), or x and w, and y, if not given."""
    if parameters is None:
        names = ("float *x", "float *w")[: len(inputs)]
        parameters = ", ".join((*names, "float *y"))
    source = CudaSource(kernel(text, parameters), (Launch(grid, threads, **launch),))
    return run_source(source, Problem(tuple(operands)), inputs, order=order)[0]


def one(text, count=32, order="both", **launch):
    """y of float32[count] for x of float32[count], by one block unless said otherwise."""
    x = floats(1, count)
    operands = [dense("float32", count), dense("float32", count)]
    return x, run(text, operands, [x], order=order, **launch)


I = "const int i = blockIdx.x * blockDim.x + threadIdx.x;"  # noqa: E741


def test_all_of_the_prelude_is_emulated():
    names = set(re.findall(r"^.*?DEVICE [\w <>,]+?[ *](\w+)\(", INSTRUCTIONS + HOPPER, re.M))
    text = (HERE / "emulator.h").read_text()
    assert len(names) > 50
    assert {n for n in names if not re.search(rf"DEVICE [^(]*\b{n}\(", text)} == set()


# -- memory -------------------------------------------------------------------------------------


def test_strides_broadcasts_and_runtime_sizes():
    """y = x + w, x a slice of wider rows, w broadcast along rows, y transposed."""
    text = kernel(
        "for (int i = threadIdx.x; i < rows * 5; i += 32) {\n"
        "  const int r = i / 5, c = i % 5;\n"
        "  y[c * rows + r] = from_float(to_float(x[r * 9 + c]) + w[c], Tag<bf16>());\n}",
        "const half *x, const float *w, bf16 *y, int rows",
    )
    x, w = floats(1, 7, 5).astype(np.float16), floats(2, 1, 5)
    operands = (
        Operand("float16", ("d0", 5), (9, 1)),
        Operand("float32", ("d0", 5), (0, 1)),
        Operand("bfloat16", ("d0", 5), (1, "d0")),
    )
    source = CudaSource(text, (Launch(ONE, 32, values=("d0",)),))
    (y,) = run_source(source, Problem(operands, (3,)), [x, w], (7,))
    expected = (x.astype(np.float32) + w).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(y.astype(np.float32), expected.astype(np.float32))
    (empty,) = run_source(source, Problem(operands, (3,)), [x[:0], w], (0,))
    assert empty.shape == (0, 5)


def test_packed_constants_lie_as_they_are():
    operands = (dense("float32", 2, 3, constant=True), dense("float32", 8))
    source = CudaSource(
        kernel("if (threadIdx.x < 8) y[threadIdx.x] = x[threadIdx.x];", "float *x, float *y"),
        (Launch(ONE, 32),),
    )
    packed = {0: floats(1, 4, 2)}
    (y,) = run_source(source, Problem(operands), [floats(2, 2, 3)], packed=packed)
    np.testing.assert_array_equal(y, packed[0].reshape(-1))


MISTAKES = {
    "write past the output": ("y[i] = x[i]; if (i == 0) y[64] = 1;", "wrote outside|access to add"),
    "write before the output": ("y[i] = x[i]; if (i == 0) y[-1] = 1;", "wrote outside of output 0"),
    "write to an input": ("y[i] = x[i]; x[i] = 0;", "write to an input"),
    "read far outside": ("y[i] = x[i + 10000];", "outside of the operands.*operand 0 at"),
    "division by zero": ("y[i] = (int)x[i] / (i / 64);", "division by zero"),
    "misaligned vector": ("store_vec(y, load_vec<float, 2>(x + 1));", "misaligned access"),
    "too wide for the alignment": ("store_vec(y, load_vec<float, 4>(x));", "misaligned access"),
    "shared memory past its end": ("((float *)shared_memory())[25] = 0; y[i] = x[i];", "past the"),
    "shared memory far past": ("y[i] = ((float *)shared_memory())[5000];", "byte 20000 of 100"),
    "shared memory before": ("((float *)shared_memory())[-1] = 0; y[i] = x[i];", "outside of shar"),
    "array bounds": ("__shared__ float s[32]; s[i] = 1; y[i] = x[i];", "out of an array's bounds"),
    "half a warp": ("if (i & 1) __syncthreads(); y[i] = lane_xor(x[i], 1);", "deadlock|diverge"),
    "two barriers": ("if (i < 32) __syncthreads(); else sync_threads(1, 64);", "deadlock: 32 thre"),
    "uninitialised barrier": ("barrier_arrive((Barrier *)shared_memory());", "not initialised"),
    "wait for nothing": (
        "Barrier *b = (Barrier *)shared_memory(); if (i == 0) barrier_init(b, 2); __syncthreads();"
        "if (i == 0) barrier_arrive(b); barrier_wait(b, 0);",
        r"deadlock: 64 threads .*barrier_wait of \+0, parity 0 \(1 arrivals, 0 bytes missing\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found(name):
    text, message = MISTAKES[name]
    operands = [dense("float32", 64, alignment=8) for _ in range(2)]
    with pytest.raises(EmulationError, match=message):
        run(I + text, operands, [floats(1, 64)], threads=64, shared=100)


def test_outputs_must_not_depend_on_what_was_there():
    with pytest.raises(EmulationError, match="differs between two runs"):
        one(f"{I} y[i] += x[i];")
    with pytest.raises(EmulationError, match="differs between two runs"):
        one(f"{I} if (i > 3) y[i] = x[i];")


def test_parameters_are_checked():
    with pytest.raises(EmulationError, match="takes parameters 'pp', the launch gives 'ppi'"):
        one(f"{I} y[i] = x[i];", values=(3,))


def test_workspace_is_cleared_once():
    """The last block to finish sums up what all wrote and resets the counter; forgetting that is
    found."""
    text = (
        f"{I} float *sums = (float *)(workspace + 128); int *counter = (int *)workspace;"
        "__shared__ int last;"
        "if (threadIdx.x == 0) { sums[blockIdx.x] = x[blockIdx.x]; fence();"
        "  last = atomic_add(counter, 1) == gridDim.x - 1; }"
        "__syncthreads();"
        "if (last && threadIdx.x == 0) {"
        "  float s = 0; for (int k = 0; k < (int)gridDim.x; k++) s += sums[k]; y[0] = s; RESET }"
    )
    operands = (dense("float32", 4), dense("float32", 1))
    x = floats(1, 4)
    for reset, fails in (("*counter = 0;", False), ("", True)):
        source = CudaSource(
            kernel(text.replace("RESET", reset), "float *x, float *y, char *workspace"),
            (Launch((4, 1, 1), 32),),
            workspace=256,
            cleared=128,
        )
        if fails:
            with pytest.raises(EmulationError, match="cleared bytes other than zero"):
                run_source(source, Problem(operands), [x])
        else:
            (y,) = run_source(source, Problem(operands), [x])
            np.testing.assert_allclose(y, x.sum(keepdims=True), rtol=1e-6)


def test_launches_run_in_order():
    text = kernel(f"{I} w[i] = 2 * x[i];", "float *x, float *y, float *w", "_a") + kernel(
        f"{I} y[i] = w[31 - i] + n;", "float *x, float *y, float *w, int n", "_b"
    )
    launches = (
        Launch(ONE, 32, suffix="_a"),
        Launch((0, 1, 1), 32, suffix="_b", values=(9,)),  # empty: left out
        Launch(ONE, 32, suffix="_b", values=(3,)),
    )
    x = floats(1, 32)
    operands = (dense("float32", 32), dense("float32", 32))
    (y,) = run_source(CudaSource(text, launches, workspace=128), Problem(operands), [x])
    np.testing.assert_array_equal(y, 2 * x[::-1] + 3)


# -- threads ------------------------------------------------------------------------------------


def test_blocks_and_barriers():
    """Each block reverses its part through shared memory, of both kinds."""
    for memory in ("__shared__ float s[64];", "float *s = (float *)shared_memory();"):
        x, y = one(
            f"{I} {memory} s[threadIdx.x] = x[i]; __syncthreads(); y[i] = s[63 - threadIdx.x];",
            256, grid=(4, 1, 1), threads=64, shared=256,
        )  # fmt: skip
        np.testing.assert_array_equal(y, x.reshape(4, 64)[:, ::-1].reshape(-1))


@pytest.mark.parametrize(("read", "order"), [("63 - i", "forward"), ("(i + 32) % 64", "reversed")])
def test_a_missing_barrier_is_found(read, order):
    """Some thread reads what no thread has written yet."""
    _, y = one(f"{I} __shared__ float s[64]; s[i] = x[i]; y[i] = s[{read}];", 64, order, threads=64)
    assert np.isnan(y).any()


def test_a_missing_barrier_shows_in_both_orders_only():
    """Warp 1 reads what warp 0 wrote: right in rising order, by chance."""
    text = f"{I} __shared__ float s[64]; s[i] = x[i]; y[i] = s[i & 31];"
    x, y = one(text, 64, "forward", threads=64)
    np.testing.assert_array_equal(y, x[np.arange(64) & 31])
    with pytest.raises(EmulationError, match="differs between two runs"):
        one(text, 64, "both", threads=64)


def test_named_barriers():
    """The upper half of the block waits for itself; the lower half has left."""
    x, y = one(
        f"{I} __shared__ float s[128]; if (i < 64) {{ y[i] = x[i]; return; }}"
        "s[i] = x[i]; sync_threads(1, 64); y[i] = s[191 - i];",
        128, threads=128,
    )  # fmt: skip
    np.testing.assert_array_equal(y, np.concatenate([x[:64], x[64:][::-1]]))


def test_barriers_that_count():
    x, y = one(
        f"{I} const int n = __syncthreads_count(x[i] > 0);"
        "y[i] = n + 100 * __syncthreads_or(i == 5) + 200 * __syncthreads_and(i != 5);",
        64, threads=64,
    )  # fmt: skip
    np.testing.assert_array_equal(y, np.full(64, (x > 0).sum() + 100))


def test_lanes():
    x, y = one(
        f"{I} float s = x[i]; UNROLL for (int m = 16; m; m /= 2) s += lane_xor(s, m);"
        "const float first = lane_get(x[i], 3), before = lane_up(x[i], 2);"
        "sync_warp(); y[i] = s + 10 * first + 100 * before;"
    )
    before = np.concatenate([x[:2], x[:-2]])
    np.testing.assert_allclose(y, x.sum() + 10 * x[3] + 100 * before, rtol=1e-4, atol=1e-4)


def test_a_cluster_adds_up():
    """Four blocks; each reads the others' shared memory."""
    text = (
        f"{I} float *s = (float *)shared_memory(); s[threadIdx.x] = x[i]; cluster_sync();"
        "float sum = 0; for (int r = 0; r < 4; r++)"
        "  sum += cluster_load(cluster_address(s + threadIdx.x, r));"
        "const int next = (cluster_rank() + 1) % 4;"
        "const Vec<float, 4> four = cluster_load4(cluster_address(s, next));"
        "SYNC y[i] = sum + four.v[2];"
    )
    launch = {"grid": (8, 1, 1), "threads": 32, "shared": 128, "cluster": (4, 1, 1)}
    x, y = one(text.replace("SYNC", "cluster_arrive(); cluster_wait();"), 256, **launch)
    blocks = x.reshape(2, 4, 32)
    expected = blocks.sum(1, keepdims=True) + np.roll(blocks[:, :, 2:3], -1, 1)
    np.testing.assert_allclose(y, expected.reshape(-1), rtol=1e-4, atol=1e-5)


# -- numbers ------------------------------------------------------------------------------------


def test_conversions():
    x = np.concatenate([floats(1, 58) * 100, [0, -0.0, np.inf, np.nan, 65519.99, 1e-7]])
    x = x.astype(np.float32)
    for dtype, name in ((np.float16, "half"), (ml_dtypes.bfloat16, "bf16")):
        y = run(
            f"{I} const uint32_t p = pack2(x[i], -x[i], Tag<{name}>());"
            f"const {name} low = from_float(x[i], Tag<{name}>());"
            f"y[i] = to_float(low) + 2 * (low.bits == (p & 65535)) + (p >> 31 ^ p >> 15 & 1);",
            [dense("float32", 64), dense("float32", 64)], [x], threads=64,
        )  # fmt: skip
        finite = ~np.isnan(x)
        rounded = x.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(y[finite], (rounded + 3)[finite])


# -- asynchronous copies --------------------------------------------------------------------------

COPY = (
    f"{I} float *s = (float *)shared_memory();"
    "if (i < 16) cp_async16(s + 4 * i, x + 4 * i, i != 3); cp_async_commit();"
    "cp_async4(s + 64 + i, x + i, true); cp_async_commit();"
    "FIRST if (i < 32) y[i] = s[4 * (i / 4) + i % 4]; SECOND if (i >= 32) y[i] = s[64 + i];"
)


def test_copies():
    text = COPY.replace("FIRST", "cp_async_wait<1>(); __syncthreads();").replace(
        "SECOND", "cp_async_wait<0>();"
    )
    x, y = one(text, 64, threads=64, shared=512)
    x[12:16] = 0
    np.testing.assert_array_equal(y, x)


def test_a_missing_wait_is_found():
    for first, second in (("", ""), ("cp_async_wait<1>(); __syncthreads();", "")):
        text = COPY.replace("FIRST", first).replace("SECOND", second)
        _, y = one(text, 64, "forward", threads=64, shared=512)
        assert np.isnan(y[32:]).all() and (first != "" or np.isnan(y[:32]).all())


def test_copies_need_alignment():
    with pytest.raises(EmulationError, match=r"cp_async: source .* not aligned to 16 bytes"):
        one(f"{I} cp_async16(shared_memory(), x + 1, true); y[i] = 0;", shared=512)


def test_a_pipeline_with_barriers():
    """One thread loads, the others wait; two stages, reused."""
    text = (
        f"{I} float *s = (float *)shared_memory(); Barrier *full = (Barrier *)(s + 64);"
        "Barrier *empty = full + 2;"
        "if (i == 0) { UNROLL for (int k = 0; k < 2; k++) {"
        "  barrier_init(full + k, 32); barrier_init(empty + k, 32); } barrier_fence(); }"
        "__syncthreads();"
        "if (i < 32) for (int k = 0; k < 6; k++) {"
        "  const int stage = k % 2, round = k / 2;"
        "  if (round) barrier_wait(empty + stage, (round - 1) & 1);"
        "  cp_async4(s + stage * 32 + i, x + k * 32 + i, true); barrier_cp_async(full + stage);"
        "} else for (int k = 0; k < 6; k++) {"
        "  const int stage = k % 2, round = k / 2;"
        "  barrier_wait(full + stage, round & 1);"
        "  y[k * 32 + i - 32] = s[stage * 32 + 63 - i]; barrier_arrive(empty + stage);"
        "}"
    )
    operands = [dense("float32", 192), dense("float32", 192)]
    x = floats(1, 192)
    y = run(text, operands, [x], threads=64, shared=512)
    np.testing.assert_array_equal(y, x.reshape(6, 32)[:, ::-1].reshape(-1))


# -- the copy engine -------------------------------------------------------------------------------

TMA = (
    "float *s = (float *)shared_memory(); Barrier *b = (Barrier *)(s + 512);"
    "if (threadIdx.x == 0) { barrier_init(b, 1); barrier_fence(); tma_prefetch(&m); }"
    "__syncthreads();"
    "if (threadIdx.x == 0) { barrier_expect(b, BYTES); tma_load2(s, &m, b, column, row); }"
    "WAIT for (int i = threadIdx.x; i < 16 * 32; i += 32) y[i] = s[i];"
)


def load_box(column, row, swizzle=128, wait="barrier_wait(b, 0);", bytes_=2048):
    """A box of 16 rows and 32 columns of x (float32[20, 36]), as it lies in shared memory."""
    x = floats(1, 20, 36)
    text = TMA.replace("WAIT", wait).replace("BYTES", str(bytes_))
    source = CudaSource(
        kernel(text, "float *x, float *y, int column, int row, const TensorMap m"),
        (
            Launch(
                ONE, 32, (column, row), shared=2048 + 8,
                maps=(TensorMap(0, "float32", (36, 20), (36,), (32, 16), swizzle),),
            ),
        ),
    )  # fmt: skip
    problem = Problem((dense("float32", 20, 36), dense("float32", 16, 32)))
    return x, run_source(source, problem, [x])[0]


@pytest.mark.parametrize(("column", "row"), [(0, 0), (-3, 7), (20, -5), (40, 0)])
@pytest.mark.parametrize("swizzle", [128, 0])
def test_boxes_and_their_swizzle(column, row, swizzle):
    x, y = load_box(column, row, swizzle)
    padded = np.pad(x, ((5, 16), (3, 40)))
    expected = padded[row + 5 : row + 21, column + 3 : column + 35]
    for r in range(16 if swizzle else 0):  # 16-byte pieces of row r: piece k lies at k ^ r % 8
        y[r] = y[r].reshape(8, 4)[np.arange(8) ^ r % 8].reshape(-1)
    np.testing.assert_array_equal(y, expected)


def test_loads_need_the_barrier():
    with pytest.raises(EmulationError, match="ended before its loads"):
        load_box(0, 0, wait="")
    with pytest.raises(EmulationError, match=r"deadlock.*\(0 arrivals, 4 bytes missing\)"):
        load_box(0, 0, bytes_=2052)


def test_maps_are_checked():
    with pytest.raises(EmulationError, match="the tensor map's swizzle"):
        load_box(0, 0, swizzle=64)


def test_stores_and_steps():
    """x's even columns' rows 0, 2, 4, ... go to the middle of y."""
    text = (
        "char *s = shared_memory(); Barrier *b = (Barrier *)(s + 1024);"
        "if (threadIdx.x == 0) { barrier_init(b, 1); barrier_fence();"
        "barrier_expect(b, 4 * 8 * 2); tma_load3(s, &m0, b, 0, 0, 1);"
        "barrier_wait(b, 0); proxy_fence(); tma_store2(&m1, s, 0, 3); tma_commit();"
        "tma_wait_read<0>(); }"
    )
    maps = (
        TensorMap(0, "float16", (8, 8, 2), (8, 64), (8, 8, 1), 0, (1, 2, 1)),
        TensorMap(1, "float16", (8, 6), (8,), (8, 4), 0),
    )
    parameters = (
        "half *x, half *y, const __grid_constant__ TensorMap m0,"
        "const __grid_constant__ TensorMap m1"
    )
    clear = kernel("for (int i = threadIdx.x; i < 48; i += 32) y[i].bits = 0;", "half *x, half *y")
    clear = clear.replace("NAME", "NAME_clear")
    source = CudaSource(
        clear + kernel(text, parameters),
        (Launch(ONE, 32, suffix="_clear"), Launch(ONE, 32, shared=1032, maps=maps)),
    )
    x = floats(1, 2, 8, 8).astype(np.float16)
    problem = Problem((dense("float16", 2, 8, 8), dense("float16", 6, 8)))
    (y,) = run_source(source, problem, [x])
    np.testing.assert_array_equal(y[3:], x[1, 0:6:2])
    assert not y[:3].any()


# -- matrices --------------------------------------------------------------------------------------

GEMM = r"""
template <class T> DEVICE void product(const T *a, const T *b, float *c) {
  T *s = (T *)shared_memory(), *sa = s, *sb = s + 64 * 72;  // rows of 72: no bank conflicts
  for (int i = threadIdx.x; i < 512; i += 128) {
    cp_async16(sa + i / 8 * 72 + i % 8 * 8, a + i * 8, true);
    cp_async16(sb + i / 8 * 72 + i % 8 * 8, b + i * 8, true);
  }
  cp_async_commit(); cp_async_wait<0>(); __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float acc[8][4] = {};
  for (int k = 0; k < 64; k += 16) {
    uint32_t ra[4];
    ldmatrix_x4(ra, sa + (warp * 16 + lane % 16) * 72 + k + lane / 16 * 8);
    UNROLL for (int n = 0; n < 8; n += 2) {
      uint32_t rb[4];
      ldmatrix_x4_trans(rb, sb + (k + lane % 16) * 72 + n * 8 + lane / 16 * 8);
      const uint32_t b0[2] = {rb[0], rb[1]}, b1[2] = {rb[2], rb[3]};
      mma(acc[n], ra, b0, Tag<T>()); mma(acc[n + 1], ra, b1, Tag<T>());
    }
  }
  UNROLL for (int n = 0; n < 8; n++)
    UNROLL for (int r = 0; r < 2; r++) {
      const Vec<float, 2> pair = {{acc[n][2 * r], acc[n][2 * r + 1]}};
      store_vec(c + (warp * 16 + lane / 4 + 8 * r) * 64 + n * 8 + lane % 4 * 2, pair);
    }
}
"""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_matrix_product(dtype):
    name = {"float16": "half", "bfloat16": "bf16"}[dtype]
    a, b = (floats(k, 64, 64).astype(dtype) for k in (1, 2))
    source = CudaSource(
        GEMM + kernel("product(a, b, c);", f"{name} *a, {name} *b, float *c"),
        (Launch(ONE, 128, shared=2 * 64 * 72 * 2),),
    )
    problem = Problem((dense(dtype, 64, 64), dense(dtype, 64, 64), dense("float32", 64, 64)))
    (c,) = run_source(source, problem, [a, b])
    np.testing.assert_allclose(c, a.astype(np.float32) @ b.astype(np.float32), atol=1e-4)


def test_matrices_of_pairs_and_tf32():
    """ldmatrix_x2 for b stored by columns, and floats whose low bits don't count."""
    text = (
        "float *s = (float *)shared_memory(); const int l = threadIdx.x;"
        "for (int i = l; i < 64; i += 32) s[i] = w[i]; __syncthreads();"
        "float c[4] = {}; uint32_t a[4], b[2];"
        "for (int r = 0; r < 4; r++)"
        "  a[r] = __float_as_uint(to_tf32(x[(l / 4 + r % 2 * 8) * 8 + l % 4 + r / 2 * 4]));"
        "ldmatrix_x2(b, s + l % 8 * 8 + l / 8 % 2 * 4);"
        "mma(c, a, b, Tag<float>());"
        "for (int r = 0; r < 4; r++) y[(l / 4 + r / 2 * 8) * 8 + l % 4 * 2 + r % 2] = c[r];"
    )
    x, w = floats(1, 16, 8), floats(2, 8, 8)
    operands = [dense("float32", 16, 8), dense("float32", 8, 8), dense("float32", 16, 8)]
    y = run(text, operands, [x, w], shared=256)
    np.testing.assert_allclose(y, x @ w.T, atol=1e-2)
    assert np.abs(y - x @ w.T).max() > 1e-5
