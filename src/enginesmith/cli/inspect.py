"""`enginesmith inspect`: what a plan holds. Reads the file alone: any machine's plan will do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Group
from rich.table import Table

from enginesmith.cli import display
from enginesmith.cli.load import evaluate, optimal_symbols
from enginesmith.cli.options import example
from enginesmith.errors import PlanError
from enginesmith.plan import file
from enginesmith.plan.arena import assign
from enginesmith.plan.plan import Buffer, Plan, Step


@click.command(
    short_help="Show what a plan holds.",
    epilog=example(
        "enginesmith inspect model.plan",
        "enginesmith inspect model.plan --source 12        # the C of step 12",
    ),
)
@click.argument("plan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--source", metavar="KERNEL",
    help="Print the C text of a kernel, named by the steps table or by a step's number.",
)  # fmt: skip
@click.option("--timings", is_flag=True, help="Show the tactics that lost, with their times.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(plan: Path, source: str | None, timings: bool, as_json: bool) -> None:
    """Show what PLAN holds: inputs, memory, steps, tactics and the ONNX nodes they came from."""
    loaded = file.load(plan)
    if source is not None:
        click.echo(kernel_source(loaded, source))
    elif as_json:
        display.emit_json(as_data(loaded, plan))
    else:
        display.console().print(
            Group(
                header_table(loaded, plan), tensor_table(loaded), memory_table(loaded),
                steps_table(loaded, timings), *notes(loaded),
            )
        )  # fmt: skip


def kernel_source(plan: Plan, kernel: str) -> str:
    """The C text of a kernel by name, a unique beginning of it, or a step's number. PlanError."""
    if kernel.isdecimal() and int(kernel) < len(plan.steps):
        kernel = plan.steps[int(kernel)].kernel
    matches = [name for name in plan.sources if name.startswith(kernel)]
    if kernel in plan.sources or len(matches) == 1:
        return plan.sources[kernel if kernel in plan.sources else matches[0]]
    what = "several kernels" if matches else "no kernel"
    raise PlanError(
        f"the plan has {what} {kernel!r}; give a name from the steps table or a step's number, "
        f"0 to {len(plan.steps) - 1}"
    )


def arena_bytes(plan: Plan) -> int:
    """The arena's size at the tuned shapes."""
    symbols = optimal_symbols(plan)
    buffers = [buffer for buffer in plan.buffers if buffer.kind == "arena"]
    sizes = [evaluate(buffer.size, symbols) for buffer in buffers]
    slack = max((buffer.slack for buffer in buffers), default=0)
    return assign(sizes, [(b.first, b.last) for b in buffers], slack)[1]


def as_data(plan: Plan, path: Path) -> dict[str, Any]:
    """The plan as JSON writes it: all but the bytes of code and weights, whose sizes it gives."""
    small = {
        "file": str(path),
        "file_bytes": path.stat().st_size,
        "code_bytes": len(plan.code),
        "weights_bytes": len(plan.weights),
        "ptx_bytes": len(plan.ptx),
        "graph_bytes": len(plan.graph),
        "arena_bytes": arena_bytes(plan),
    }
    fields = ("name", "target", "precision", "producer", "scratch", "notes", "metadata", "exprs")
    lists = ("symbols", "inputs", "outputs", "buffers", "steps")
    return (
        small
        | {name: getattr(plan, name) for name in fields}
        | {name: [asdict(item) for item in getattr(plan, name)] for name in lists}
        | {"sources": plan.sources}
    )


def header_table(plan: Plan, path: Path) -> Table:
    """Name, target, producer, symbols, metadata."""
    rows = display.table("plan", "~")
    rows.add_row("name", plan.name)
    rows.add_row("file", f"{path}, {display.size(path.stat().st_size)}")
    rows.add_row("target", f"{plan.target} {plan.precision}")
    if len(plan.graph):
        rows.add_row("tuning", f"incomplete, see the notes; `enginesmith tune {path}` completes it")
    rows.add_row("producer", plan.producer or "-")
    for symbol in plan.symbols:
        rows.add_row(f"symbol {symbol.name}", display.range_text(symbol))
    for key, value in plan.metadata:
        rows.add_row(key, value if len(value) <= 80 else f"{value[:77]!r}...")
    return rows


def tensor_table(plan: Plan) -> Table:
    """Inputs and outputs."""
    rows = display.table("tensor", "name", "dtype", "shape")
    for kind, specs in (("input", plan.inputs), ("output", plan.outputs)):
        for spec in specs:
            rows.add_row(kind, spec.name, spec.dtype, display.shape_text(spec.shape))
    return rows


def memory_table(plan: Plan) -> Table:
    """Where the bytes go, at the tuned shapes."""
    symbols = optimal_symbols(plan)
    rows = display.table("memory", ">size")
    rows.add_row("weights (mapped from the file)", display.size(len(plan.weights)))
    rows.add_row("code", display.size(len(plan.code)))
    if len(plan.ptx):
        rows.add_row("PTX for newer GPUs", display.size(len(plan.ptx)))
    if len(plan.graph):
        rows.add_row("graph, to tune from", display.size(len(plan.graph)))
    activations = _total(plan.buffers, symbols)
    rows.add_row("activations, if none shared storage", display.size(activations))
    rows.add_row("arena, per context", display.size(arena_bytes(plan)))
    rows.add_row("scratch, per thread", display.size(evaluate(plan.scratch, symbols)))
    return rows


def _total(buffers: tuple[Buffer, ...], symbols: Mapping[str, int]) -> int:
    return sum(evaluate(b.size, symbols) for b in buffers if b.kind == "arena")


def steps_table(plan: Plan, timings: bool) -> Table:
    """One row per step; with `timings`, one more for each tactic that lost."""
    symbols = optimal_symbols(plan)
    rows = display.table(
        ">#", "op", "~problem", "~tactic", ">time", ">MFLOP", "kernel", "~ONNX nodes"
    )
    for index, step in enumerate(plan.steps):
        rows.add_row(
            str(index),
            step.op,
            step.problem,
            step.tactic,
            display.seconds(step.timings[0][1]) if step.timings else "-",
            f"{evaluate(step.flops, symbols) / 1e6:.4g}",
            step.kernel,
            ", ".join(step.nodes),
        )
        for tactic, seconds in losers(step) if timings else ():
            rows.add_row("", "", "", f"  {tactic}", display.seconds(seconds), "", "", "")
    return rows


def losers(step: Step) -> tuple[tuple[str, float], ...]:
    """The tactics that were timed and not chosen."""
    return step.timings[1:]


def notes(plan: Plan) -> list[str]:
    """What the plan's user should know, as lines."""
    return [f"note: {note}" for note in plan.notes]
