"""Matrix products of any element type, one output at a time."""

from __future__ import annotations

from enginesmith.codegen.expressions import C_TYPES, scalar_expression, vmath
from enginesmith.ir.expr import args_of
from enginesmith.kernels.base import KernelSource, Phase, c_size
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.nest import (
    axes_of,
    indices,
    offset,
    pointer,
    product,
    rows_text,
    signature,
    split,
)


def scalar_source(problem: MatMulProblem) -> KernelSource:
    """A row of y is a row of the nest; products are summed in the operands' own type."""
    a, b, *_, y = problem.operands
    axes = axes_of(y.shape, [y])
    outer, columns = axes[:-1], axes[-1]
    names = indices(outer)
    kind = C_TYPES[a.dtype] if a.dtype != "float16" else "float"
    depth = a.shape[-1]
    body = pointer("a", 0, a.dtype, offset(names, a.strides[:-1]))
    body += pointer("b", 1, b.dtype, offset(names[:-1], b.strides[:-2]))
    body += pointer("y", len(problem.operands) - 1, y.dtype, offset(names, y.strides[:-1]),
                    const=False)  # fmt: skip
    args, types = [f"({C_TYPES[a.dtype]})sum"], [a.dtype]
    for k, extra in enumerate(problem.operands[2:-1], 2):
        types.append(extra.dtype)
        if k - 1 not in args_of(problem.epilogue):
            args.append("0")
            continue
        body += pointer(f"e{k}", k, extra.dtype, offset(names, extra.strides[:-1]))
        args.append(f"e{k}[j * {c_size(extra.strides[-1])}]")
    body += f"""for (int64_t j = j0; j < j1; ++j) {{
{kind} sum = 0;
for (int64_t k = 0; k < {c_size(depth)}; ++k)
  sum += a[k * {c_size(a.strides[-1])}] * b[{offset(["k", "j"], b.strides[-2:])}];
y[j * {c_size(columns.strides[0])}] = {scalar_expression(problem.epilogue, args, types)};
}}
"""
    chunk = max(16, 65536 // max(1, problem.typical(depth)))
    cut = split(problem, product([x.size for x in outer]), columns.size, chunk)
    text = vmath(problem.epilogue) + signature("NAME", problem)
    text += rows_text(outer, cut, body, columns.size) + "}\n"
    return KernelSource(text, (Phase(cut.tasks),))
