"""A plan as text a person reads: what was fused, chosen and timed, and what fell back."""

from __future__ import annotations

from collections.abc import Sequence

from enginesmith.plan.expression import compile_expression
from enginesmith.plan.plan import Plan, Step, TensorSpec
from enginesmith.runtime.binding import show_shape


def report_text(plan: Plan, here: Sequence[str] = ()) -> str:
    """The report of a plan; times and work at the shapes it was tuned for. here: notes about the
    plan on this machine."""
    opt = {symbol.name: symbol.opt for symbol in plan.symbols}
    lines = [f"{plan.name}: {plan.target}, {plan.precision}, {len(plan.steps)} steps"]
    lines += [_tensor("input", spec) for spec in plan.inputs]
    lines += [_tensor("output", spec) for spec in plan.outputs]
    for symbol in plan.symbols:
        limit = "any" if symbol.max is None else symbol.max
        lines.append(f"  {symbol.name}: {symbol.min} to {limit}, tuned for {symbol.opt}")
    lines += [f"weights: {len(plan.weights) / 1e6:.1f} MB, code: {len(plan.code) / 1e3:.0f} kB"]
    if notes := (*plan.notes, *here):
        lines += ["notes:", *(f"  - {note}" for note in notes)]
    rows: list[tuple[str, ...]] = [("step", "what", "tactic", "ms", "GFLOP/s", "nodes")]
    rows += [_row(i, step, opt) for i, step in enumerate(plan.steps)]
    total = sum(step.timings[0][1] for step in plan.steps if step.timings)
    lines += ["steps:", *_table(rows), f"total of the timed steps: {total * 1e3:.3f} ms"]
    return "\n".join(lines)


def _tensor(role: str, spec: TensorSpec) -> str:
    return f"{role} {spec.name}: {spec.dtype} {show_shape(spec.shape)}"


def _row(index: int, step: Step, opt: dict[str, int]) -> tuple[str, ...]:
    seconds = step.timings[0][1] if step.timings else 0.0
    flops = compile_expression(step.flops)(opt)
    return (
        str(index),
        f"{step.op} {step.problem}",
        step.tactic,
        f"{seconds * 1e3:.3f}" if seconds else "untimed",
        f"{flops / seconds / 1e9:.0f}" if seconds and flops else "-",
        ", ".join(step.nodes),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [min(60, max(map(len, column))) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(_cell(c, w) for c, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cell(text: str, width: int) -> str:
    return (text if len(text) <= width else text[: width - 3] + "...").ljust(width)
