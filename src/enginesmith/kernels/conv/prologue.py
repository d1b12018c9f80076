"""What a 1x1 convolution applies to its input: a copy of a task's pixels, made in scratch."""

from __future__ import annotations

from enginesmith.codegen.expressions import vector_expression, vmath
from enginesmith.ir.expr import args_of
from enginesmith.kernels.base import Operand, Size, c_size, declare_sizes, mul
from enginesmith.kernels.conv.epilogue import offset_of, strides_of
from enginesmith.kernels.conv.problem import ConvProblem


def why_not(problem: ConvProblem) -> str | None:
    """None if the problem has no prologue or one that can be applied while copying."""
    if problem.prologue is None:
        return None
    if problem.kernel != (1, 1) or any(problem.pads) or problem.transposed:
        return "a prologue needs a 1x1 convolution without pads"
    if problem.groups != 1 or not problem.x.block:
        return "a prologue needs a blocked input and one group"
    extras = [problem.operands[1 + k] for k in args_of(problem.prologue) - {0}]
    if any(s != 0 for o in extras for s in strides_of(o)[2:]):
        return "an operand of the prologue differs from pixel to pixel"
    return None


def copy_function(problem: ConvProblem, name: str, batch_row: bool, plane: Size) -> str:
    """C of NAME(p, d, to, n, h0, h1, c0, c1): the inputs of output pixels h0..h1-1 x c0..c1-1 of
    image n, or with `batch_row` those of images c0..c1-1, as [block][pixel][lanes] with `plane`
    floats between blocks."""
    assert problem.prologue is not None
    used = sorted(args_of(problem.prologue) - {0})
    names = [f"a{i}" for i in range(len(problem.operands) - 1)]
    xn, xc, xh, xw = problem.x.strides
    blocks = -(-problem.in_channels // problem.x.block)
    image = "c" if batch_row else "n"
    column = c_size(xn if batch_row else mul(problem.strides[1], xw))
    row = c_size(mul(problem.strides[0], xh))
    values = " ".join(f"const vf a{k} = {_load(problem.operands[1 + k], k, image)};" for k in used)
    fixed, moving = ("", values) if batch_row else (values, "")
    arguments = ", ".join([f"load(x + h*{row} + c*{column})", *(f"a{k}" for k in used)])
    start = "0" if batch_row else f"n*{c_size(xn)}"
    return f"""\
{vmath(problem.prologue)}
INLINE vf prologue({", ".join(f"vf {names[i]}" for i in (0, *used))}) {{
  return {vector_expression(problem.prologue, names)};
}}
static __attribute__((noinline)) void {name}(char *const *p, const int64_t *d, float *to,
    int64_t n, int64_t h0, int64_t h1, int64_t c0, int64_t c1) {{
  {declare_sizes(problem.slots)}
  for (int64_t b = 0; b < {blocks}; b++) {{
    const float *x = (const float *)p[0] + {start} + b*{c_size(xc)};
    float *y = to + b*{c_size(plane)};
    {fixed}
    for (int64_t h = h0; h < h1; h++) for (int64_t c = c0; c < c1; c++, y += LANES) {{
      {moving}
      store(y, prologue({arguments}));
    }}
  }}
}}"""


def _load(operand: Operand, k: int, image: str) -> str:
    where = f"(const float *)p[{1 + k}] + {offset_of(operand, image, 'b', '0', '0')}"
    return f"load({where})" if operand.block else f"splat(*({where}))"
