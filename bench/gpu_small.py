"""Small models that pose problems to every kernel family for GPUs and to each of its tactics.

They are made to be run with kernels that are slow to run: by compute-sanitizer, on the emulator.
Inputs of a graph whose names begin with `w` are weights, with made-up values.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser

from bench.gpu_trials import Case
from enginesmith import builder
from enginesmith.kernels.base import Operand, Tactic
from enginesmith.kernels.normalization.problem import NormalizationProblem
from enginesmith.kernels.sources import OWN, candidates
from enginesmith.plan.target import Target

HEAD = '<ir_version: 8, opset_import: ["" : 18]>\n'

GRAPHS = """
block (float[2, 32, 14, 13] x, float[40, 32, 3, 3] w1, float[40] w2, float[32, 40, 1, 1] w3)
    => (float[2, 32, 14, 13] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, w2)
  b = Relu (a)
  c = Conv (b, w3)
  d = Add (c, x)
  y = Sigmoid (d)
}
odd (float[1, 7, 11, 9] x, float[13, 7, 3, 3] w1, float[5, 13, 3, 2] w2) => (float[1, 5, k, l] y) {
  a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1)
  y = Conv <dilations = [2, 1], pads = [2, 1, 2, 0]> (a, w2)
}
large (float[2, 128, 14, 14] x, float[128, 128, 3, 3] w1, float[128] w2, float[256, 128, 1, 1] w3)
    => (float[2, 256, 7, 7] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, w2)
  b = Relu (a)
  y = Conv <strides = [2, 2]> (b, w3)
}
narrow (float[1, 32, 92, 90] x, float[8, 32, 3, 3] w1) => (float[1, 8, 92, 90] y) {
  y = Conv <pads = [1, 1, 1, 1]> (x, w1)
}
stem (float[1, 3, 32, 30] x, float[16, 3, 7, 7] w1, float[16] w2) => (float[1, 16, 8, 8] y) {
  a = Conv <pads = [3, 3, 3, 3], strides = [2, 2]> (x, w1, w2)
  b = Relu (a)
  y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (b)
}
depthwise (float[1, 24, 12, 11] x, float[48, 24, 1, 1] w1, float[48, 1, 5, 5] w2,
    float[12, 48, 1, 1] w3, float[48, 12, 1, 1] w4, float[24, 48, 1, 1] w5)
    => (float[1, 24, k, l] y) {
  a = Conv (x, w1)
  b = HardSwish (a)
  c = Conv <group = 48, pads = [2, 2, 2, 2], strides = [2, 2]> (b, w2)
  p = GlobalAveragePool (c)
  s = Conv (p, w3)
  t = Relu (s)
  u = Conv (t, w4)
  v = HardSigmoid (u)
  g = Mul (c, v)
  y = Conv (g, w5)
}
separable (float[2, 20, 9, 9] x, float[20, 1, 3, 3] w1) => (float[2, 20, 9, 9] y) {
  y = Conv <group = 20, pads = [1, 1, 1, 1]> (x, w1)
}
large_kernel (float[3, 24, 9, 9] x, float[24, 24, 1, 1] w1, float[24, 1, 7, 7] w2)
    => (float[3, 24, 9, 9] y) {
  a = Conv (x, w1)
  y = Conv <group = 24, pads = [3, 3, 3, 3]> (a, w2)
}
grouped (float[1, 128, 9, 10] x, float[64, 64, 3, 3] w1, float[64, 8, 3, 3] w2)
    => (float[1, 64, k, l] y) {
  a = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w1)
  y = Conv <group = 8, pads = [1, 1, 1, 1], strides = [2, 2]> (a, w2)
}
transposed (float[1, 32, 6, 7] x, float[32, 24, 2, 2] w1, float[24, 9, 3, 3] w2)
    => (float[1, 9, k, l] y) {
  a = ConvTranspose <strides = [2, 2]> (x, w1)
  y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]> (a, w2)
}
pixel (float[1, 512, 1, 1] x, float[40, 512, 1, 1] w1) => (float[1, 40, 1, 1] y) {
  y = Conv (x, w1)
}
dense (float[1, 64, 7, 6] x, float[64] w1, float[64] w2, float[32, 64, 1, 1] w3)
    => (float[1, 96, 7, 6] y) {
  shape = Constant <value_ints = [1, 64, 1, 1]> ()
  f = Reshape (w1, shape)
  g = Reshape (w2, shape)
  a = Mul (x, f)
  b = Add (a, g)
  c = Relu (b)
  d = Conv (c, w3)
  y = Concat <axis = 1> (x, d)
}
linear (float[70, 96] x, float[96, 200] w1, float[200] w2, float[200, 50] w3)
    => (float[70, 50] y) {
  s = Sigmoid (x)
  a = MatMul (s, w1)
  b = Add (a, w2)
  c = Tanh (b)
  y = MatMul (c, w3)
}
wide (float[400, 256] x, float[256, 264] w1, float[264] w2, float[264, 256] w3)
    => (float[400, 256] y) {
  s = Sigmoid (x)
  a = MatMul (s, w1)
  b = Add (a, w2)
  c = Relu (b)
  d = MatMul (c, w3)
  y = Add (d, x)
}
row (float[1, 1500] x, float[1500, 37] w1, float[37] w2) => (float[1, 37] y) {
  s = Sigmoid (x)
  a = MatMul (s, w1)
  y = Add (a, w2)
}
products (float[3, 20, 24] a, float[3, 24, 33] b, float[3, 9, 24] c)
    => (float[3, 20, 33] y, float[3, 20, 9] z) {
  l = Tanh (a)
  r = Sigmoid (b)
  y = MatMul (l, r)
  t = Transpose <perm = [0, 2, 1]> (c)
  z = MatMul (l, t)
}
attention (float[2, 70, 128] x, float[128, 384] w1, float[2, 1, 1, 70] m)
    => (float[2, 70, 128] y) {
  p = MatMul (x, w1)
  shape = Constant <value_ints = [2, 70, 3, 2, 64]> ()
  r = Reshape (p, shape)
  t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
  i = Constant <value_int = 0> ()
  j = Constant <value_int = 1> ()
  k = Constant <value_int = 2> ()
  q = Gather <axis = 0> (t, i)
  l = Gather <axis = 0> (t, j)
  v = Gather <axis = 0> (t, k)
  u = Transpose <perm = [0, 1, 3, 2]> (l)
  s = MatMul (q, u)
  f = Constant <value_float = 0.125> ()
  a = Mul (s, f)
  b = Add (a, m)
  c = Softmax (b)
  d = MatMul (c, v)
  e = Transpose <perm = [0, 2, 1, 3]> (d)
  back = Constant <value_ints = [2, 70, 128]> ()
  g = Reshape (e, back)
  y = Tanh (g)
}
heads (float[33, 2, 130, 64] a, float[33, 2, 130, 64] b, float[33, 2, 130, 64] c)
    => (float[33, 2, 130, 64] y) {
  q = Tanh (a)
  k = Sigmoid (b)
  v = Softsign (c)
  t = Transpose <perm = [0, 1, 3, 2]> (k)
  s = MatMul (q, t)
  p = Softmax (s)
  r = MatMul (p, v)
  y = Tanh (r)
}
windows (float[64, 4, 49, 32] a, float[64, 4, 49, 32] b, float[64, 4, 49, 32] c,
    float[1, 4, 49, 49] w1) => (float[64, 4, 49, 32] y) {
  q = Tanh (a)
  k = Sigmoid (b)
  v = Softsign (c)
  t = Transpose <perm = [0, 1, 3, 2]> (k)
  s = MatMul (q, t)
  m = Add (s, w1)
  p = Softmax (m)
  r = MatMul (p, v)
  y = Tanh (r)
}
narrow (float[1, 2, 20, 6] q, float[1, 2, 30, 6] k, float[1, 2, 30, 7] v)
    => (float[1, 2, 20, 7] y) {
  t = Transpose <perm = [0, 1, 3, 2]> (k)
  s = MatMul (q, t)
  p = Softmax (s)
  y = MatMul (p, v)
}
norms (float[37, 96] x, float[96] w1, float[96] w2, float[1, 16, 19, 18] i, float[24] w3,
    float[24] w4, float[24, 16, 1, 1] w5, float[2, 9000] l, float[9000] w6)
    => (float[37, 96] y, float[1, 24, 19, 18] z, float[2, 9000] u) {
  y = LayerNormalization (x, w1, w2)
  a = Conv (i, w5)
  z = InstanceNormalization (a, w3, w4)
  u = LayerNormalization (l, w6)
}
softmaxes (float[9, 197] x, float[2, 5000] l, float[1, 19, 6, 8] i)
    => (float[9, 197] a, float[2, 5000] b, float[1, 19, 6, 8] c) {
  a = Softmax (x)
  b = LogSoftmax (l)
  c = Softmax <axis = 1> (i)
}
reductions (float[1, 48, 14, 15] x, float[5, 700] r, float[3, 20000] l)
    => (float[1, 48, 1, 1] a, float[5] b, float[3] c, int64[5] d, int64[1, 14, 15] e) {
  a = GlobalAveragePool (x)
  axes = Constant <value_ints = [1]> ()
  b = ReduceMax <keepdims = 0> (r, axes)
  c = ReduceSum <keepdims = 0> (l, axes)
  d = ArgMax <axis = 1, keepdims = 0> (r)
  e = ArgMin <axis = 1, keepdims = 0> (x)
}
images (float[1, 24, 9, 11] x) => (float[1, 24, a, b] y, float[1, 24, 18, 22] z,
    float[1, 24, 13, 15] u, float[1, 24, c, d] v) {
  y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x)
  scales = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
  z = Resize <mode = "nearest"> (x, , scales)
  sizes = Constant <value_ints = [1, 24, 13, 15]> ()
  u = Resize <mode = "linear"> (x, , , sizes)
  pads = Constant <value_ints = [0, 0, 1, 2, 0, 0, 3, 0]> ()
  v = Pad <mode = "reflect"> (x, pads)
}
tables (float[50, 24] w1, int64[2, 9] i, float[6, 20] x, int64[6, 20] j, float[6, 20] u,
    int64[3, 2] p, float[3] r)
    => (float[2, 9, 24] a, float[6, 20] b, float[6, 20] c, float[6, 20] d, float[3] e) {
  a = Gather (w1, i)
  b = GatherElements <axis = 0> (x, j)
  c = ScatterElements <axis = 0, reduction = "add"> (x, j, u)
  d = ScatterND (x, p, r)
  e = GatherND (x, p)
}
moves (float[2, 3, 8, 12] x, float[3, 40, 33] m, float[2, 5, 3, 16] h)
    => (float[2, 8, 12, 3] a, float[3, 33, 40] b, float[2, 3, 5, 16] c, float[2, 3, 16, 12] d) {
  s = Exp (x)
  a = Transpose <perm = [0, 2, 3, 1]> (s)
  b = Transpose <perm = [0, 2, 1]> (m)
  c = Transpose <perm = [0, 2, 1, 3]> (h)
  d = Concat <axis = 2> (s, x)
}
lines (float[5, 300] x, float[30, 4] t) => (float[5, 300] y, float[30, 4] z, float[5, 300] e) {
  one = Constant <value_int = 1> ()
  nil = Constant <value_int = 0> ()
  y = CumSum (x, one)
  z = CumSum (t, nil)
  e = Erf (x)
}
counted (float[n, 6] x) => (int64[2] s, int64[n] r) {
  s = Shape (x)
  i = Constant <value_int = 0> ()
  n0 = Gather (s, i)
  one = Constant <value_int = 1> ()
  r = Range (i, n0, one)
}
"""
"""ONNX's textual form, a graph after the other."""

PRECISIONS = ("fp16", "bf16", "fp32")


def models() -> Iterator[onnx.ModelProto]:
    """All of them, weights filled in."""
    for text in GRAPHS.strip().split("\n}\n"):
        yield filled(onnx.parser.parse_model(HEAD + text.removesuffix("\n}") + "\n}"))


def filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with constants for the inputs whose names begin with `w`: small numbers, the same
    every time."""
    graph = model.graph
    for value in [v for v in graph.input if v.name.startswith("w")]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        seed = zlib.crc32(f"{graph.name}.{value.name}".encode())
        numbers = np.random.default_rng(seed).standard_normal(shape, np.float32)
        numbers /= max(1.0, np.sqrt(np.prod(shape[1:])))
        graph.initializer.append(onnx.numpy_helper.from_array(numbers, value.name))
        graph.input.remove(value)
    return model


def cases(target: Target, precisions: Sequence[str] = PRECISIONS) -> list[Case]:
    """The distinct problems of all models, and one that no model here poses."""
    found: dict[tuple[str, object], Case] = {}
    for precision in precisions:
        for model in models():
            for case in cases_of(model, {}, precision, target):
                found.setdefault((case.family, case.problem), case)
    return [*found.values(), _normalized_image()]


def cases_of(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], precision: str, target: Target
) -> list[Case]:  # fmt: skip
    """What each step of a model poses. Dims that `shapes` doesn't fix stay symbols."""
    graph, ranges = builder._read(model, shapes, lambda _: None)
    builder._optimize(graph, target, precision, lambda _: None)
    steps, _ = builder._lower(graph, target, {r.name: r.opt for r in ranges})
    return [
        Case(
            step.family, step.problem,
            {i: p for i, p in enumerate(step.places) if isinstance(p, np.ndarray)}, 1,
            f"{model.graph.name}: {', '.join(step.sources)}",
        )
        for step in steps
    ]  # fmt: skip


def _normalized_image() -> Case:
    """Each channel of a channels-last image normalized for itself, in one step."""
    image = Operand("float16", (1, 24, 19, 18), (24 * 19 * 18, 1, 24 * 18, 24))
    problem = NormalizationProblem((image, image), axes=(2, 3), eps=1e-5)
    return Case("normalization", problem, {}, 1, "image")


@dataclass(frozen=True)
class Pick:
    """A case and the tactics of it that are to run."""

    case: Case
    tactics: tuple[Tactic, ...]


def chosen(
    every: Sequence[Case], target: Target, sources: Sequence[str] = (OWN,)
) -> list[Pick]:  # fmt: skip
    """Of each problem's candidates as few as show something new: together they take every value of
    every integer of every tactic, and each tactic with each type of result."""
    seen: set[object] = set()
    picks = []
    for case in every:
        taken = []
        for tactic in candidates(case.family, case.problem, target, sources):
            kind = (case.family, tactic.name)
            facts: set[object] = {(*kind, *pair) for pair in tactic.params}
            facts.add((*kind, case.problem.operands[-1].dtype))
            if not facts <= seen:
                seen |= facts
                taken.append(tactic)
        if taken:
            picks.append(Pick(case, tuple(taken)))
    return picks
