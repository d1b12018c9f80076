"""`enginesmith check`: whether a model can be built, and whether its engine is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from enginesmith.cli import display
from enginesmith.cli.load import load_engine, random_feeds, symbols_of_shapes
from enginesmith.cli.options import build_options, example, host_option, merge_shapes
from enginesmith.errors import Problem

TOLERANCES = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 4e-2}
"""Norm-relative error that passes, by precision."""


@click.command(
    short_help="List every node that can't be built; compare with a reference.",
    epilog=example("enginesmith check model.onnx --accuracy"),
)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@build_options
@host_option
@click.option(
    "--accuracy", is_flag=True,
    help="Build it too, untuned, and compare its outputs with ONNX Runtime or onnx.reference.",
)  # fmt: skip
@click.pass_context
def check(
    ctx: click.Context,
    model: Path,
    target: str,
    precision: str,
    shapes: Any,
    profiles: Any,
    host_steps: bool,
    accuracy: bool,
) -> None:
    """List every node of MODEL that can't be built, all at once, those that would run on the host,
    and its symbolic shapes.

    Exit code 1 if there is any.
    """
    from enginesmith import check_model

    merged = merge_shapes(shapes, profiles)
    problems = check_model(model, merged, target, precision, host_steps)
    out = display.console()
    if problems:
        print_problems(out, problems)
        ctx.exit(1)
    print_tensors(out, model, merged, host_steps)
    if accuracy and not accurate(out, model, target, precision, merged):
        ctx.exit(1)


def print_problems(out: Console, problems: tuple[Problem, ...]) -> None:
    """A row for each problem."""
    many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    rows = display.table("~where", "~problem", "~remedy", title=many)
    for problem in problems:
        rows.add_row(problem.where, problem.reason, problem.remedy)
    out.print(rows)


def print_tensors(
    out: Console, model: Path, shapes: Mapping[str, Any], host_steps: bool = True
) -> None:
    """What runs on the host, the inputs and outputs with their shapes, the range of each symbol."""
    from enginesmith.builder import Profile, symbol_ranges
    from enginesmith.frontend import host_notes, import_model

    fixed = {name: s.fixed() if isinstance(s, Profile) else s for name, s in shapes.items()}
    graph = import_model(model, fixed, host_steps)
    rows = display.table("tensor", "name", "dtype", "shape")
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            dims = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
            rows.add_row(kind, value.name, value.type.dtype, display.shape_text(dims))
    hosted = host_notes(graph)
    tail = f", {len(hosted)} of them on the host" if hosted else ""
    out.print(f"{model}: every node can be built{tail}", soft_wrap=True)
    for note in hosted:
        out.print(f"  {note}", soft_wrap=True)
    out.print(rows)
    for symbol in symbol_ranges(graph, shapes):
        out.print(f"symbol {symbol.name}: {display.range_text(symbol)}")


def accurate(
    out: Console, model: Path, target: str, precision: str, shapes: Mapping[str, Any]
) -> bool:
    """Build and compare at the tuned shapes; whether every output is within the precision's
    tolerance."""
    from enginesmith.verify.compare import compare, reference

    engine = load_engine(model, target=target, precision=precision, shapes=shapes, tuning=False)
    feeds = random_feeds(engine.plan, symbols_of_shapes(engine.plan, {}))
    name, run = reference(model)
    found = compare(engine, run, feeds)
    tolerance = TOLERANCES[precision]
    rows = display.table("output", ">relative error", ">largest", "~", title=f"against {name}")
    for item in found:
        verdict = item.problem or ("ok" if item.relative <= tolerance else f"over {tolerance:.0e}")
        rows.add_row(item.output, f"{item.relative:.1e}", f"{item.largest:.1e}", verdict)
    out.print(rows)
    return all(item.relative <= tolerance for item in found)
