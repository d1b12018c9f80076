"""`enginesmith diff`: what differs between two plans."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from enginesmith.cli import display
from enginesmith.cli.inspect import arena_bytes
from enginesmith.cli.options import example
from enginesmith.plan import file
from enginesmith.plan.plan import Plan, Step, TensorSpec


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: what, and how it is in either plan (`-`: absent)."""

    what: str
    a: str
    b: str


@click.command(
    short_help="Compare two plans.", epilog=example("enginesmith diff before.plan after.plan")
)
@click.argument("a", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("b", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_context
def diff(ctx: click.Context, a: Path, b: Path) -> None:
    """Compare the plans A and B: steps, tactics, timings, memory. Exit code 1 if they differ."""
    changes = list(differences(file.load(a), file.load(b)))
    out = display.console()
    if not changes:
        out.print("the plans are the same")
        return
    rows = display.table("", f"~{a}", f"~{b}")
    for change in changes:
        rows.add_row(change.what, change.a, change.b)
    out.print(rows)
    ctx.exit(1)


def differences(a: Plan, b: Plan) -> Iterator[Change]:
    """Every difference, the general ones first."""
    yield from _fields(_headlines(a), _headlines(b))
    yield from _steps(a, b)
    kernels = {s.kernel for s in a.steps} & {s.kernel for s in b.steps}
    changed = sum(a.sources.get(name) != b.sources.get(name) for name in kernels)
    if changed:
        yield Change("source", f"{changed} kernels of the same name differ in their text", "")
    for what, left_bytes, right_bytes in (
        ("code", a.code, b.code),
        ("weights", a.weights, b.weights),
    ):
        if left_bytes != right_bytes and len(left_bytes) == len(right_bytes):
            yield Change(what, "same size", "other bytes")


def _fields(a: dict[str, str], b: dict[str, str]) -> Iterator[Change]:
    for name in [*a, *(n for n in b if n not in a)]:
        left, right = a.get(name, "-"), b.get(name, "-")
        if left != right:
            yield Change(name, left, right)


def _headlines(plan: Plan) -> dict[str, str]:
    """Everything but the steps, as short texts by name."""
    lines = {
        "name": plan.name,
        "target": plan.target,
        "precision": plan.precision,
        "producer": plan.producer,
        "steps": str(len(plan.steps)),
        "weights": f"{len(plan.weights)} bytes",
        "code": f"{len(plan.code)} bytes",
        "arena": f"{arena_bytes(plan)} bytes",
        "scratch": str(plan.scratch),
        "tuned time": display.seconds(tuned_seconds(plan)),
    }
    lines |= {f"symbol {s.name}": display.range_text(s) for s in plan.symbols}
    lines |= {f"input {t.name}": _tensor(t) for t in plan.inputs}
    lines |= {f"output {t.name}": _tensor(t) for t in plan.outputs}
    lines |= {f"metadata {key}": value for key, value in plan.metadata}
    lines |= {f"note {i}": note for i, note in enumerate(plan.notes)}
    return lines


def tuned_seconds(plan: Plan) -> float:
    """The sum of the winners' times; steps that weren't timed count nothing."""
    return sum(step.timings[0][1] for step in plan.steps if step.timings)


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.dtype} {display.shape_text(spec.shape)}"


def _steps(a: Plan, b: Plan) -> Iterator[Change]:
    """Steps matched by what they compute; those of one plan alone, and those served otherwise."""
    left, right = ([(s.op, s.problem, s.nodes) for s in plan.steps] for plan in (a, b))
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    for tag, i0, i1, j0, j1 in matcher.get_opcodes():
        if tag == "equal":
            for i, j in zip(range(i0, i1), range(j0, j1), strict=True):
                yield from _step(i, a.steps[i], j, b.steps[j])
        else:
            for i in range(i0, i1):
                yield Change(f"step {i}", _describe(a.steps[i]), "-")
            for j in range(j0, j1):
                yield Change(f"step {j}", "-", _describe(b.steps[j]))


def _step(i: int, a: Step, j: int, b: Step) -> Iterator[Change]:
    if a == b:
        return
    where = f"step {i}" if i == j else f"step {i} / {j}"
    what = f"{where} {a.op}"
    if (a.tactic, a.kernel, a.timings) != (b.tactic, b.kernel, b.timings):
        yield Change(what, _served(a, b), _served(b, a))
    if (a.flops, a.bytes) != (b.flops, b.bytes):
        yield Change(what, f"{a.flops} flops, {a.bytes} bytes", f"{b.flops} flops, {b.bytes} bytes")


def _served(step: Step, other: Step) -> str:
    """The tactic, its time, and the kernel if that alone tells the two apart."""
    time = f", {display.seconds(step.timings[0][1])}" if step.timings else ""
    kernel = (
        f", {step.kernel}" if step.tactic == other.tactic and step.kernel != other.kernel else ""
    )
    return f"{step.tactic}{time}{kernel}"


def _describe(step: Step) -> str:
    return f"{step.op} {step.problem}: {step.tactic} [{', '.join(step.nodes)}]"
