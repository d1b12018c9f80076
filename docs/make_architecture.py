"""Writes the worked example of docs/architecture.md: what each stage makes of a small model.

    python docs/make_architecture.py            # rewrites the blocks in place
    python docs/make_architecture.py --check    # exit code 1 if a block is out of date

A block of the page stands between `<!-- example: NAME -->` and the end of the fence after it.
Nothing here depends on the machine: the target is fixed, nothing is timed, kernels go by their
family's name instead of their hash.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import parser
from rich.console import Console

from enginesmith.builder import symbol_ranges
from enginesmith.cli import inspect
from enginesmith.frontend import import_model
from enginesmith.ir import dims, expr
from enginesmith.ir.graph import Graph, Node
from enginesmith.ir.printer import print_graph
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.base import Operand, Problem
from enginesmith.knobs import knobs
from enginesmith.passes.layout import assign_layouts
from enginesmith.passes.pipeline import run_pipeline
from enginesmith.plan.target import Target
from enginesmith.planner.assemble import Assembly, assemble, program_of
from enginesmith.planner.lower import Lowered, lower
from enginesmith.planner.storage import ClearHalo, Move, StoragePlan, place
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.tune import Choice, candidates

PAGE = Path(__file__).with_name("architecture.md")
TARGET = Target("cpu", "avx512")
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
tail (float[n, 24, h, w] x) => (float[n, 30] y) {
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, filters)
  b = BatchNormalization (c, scale, shift, mean, variance)
  r = Relu (b)
  p = ReduceMean <axes = [2, 3], keepdims = 0> (r)
  y = Gemm <transB = 1> (p, classes, bias)
}"""
NAMES = ("conv", "norm", "relu", "pool", "classify")
WEIGHTS = {
    "filters": (40, 24, 3, 3), "scale": (40,), "shift": (40,), "mean": (40,), "variance": (40,),
    "classes": (30, 40), "bias": (30,),
}  # fmt: skip


def model() -> onnx.ModelProto:
    """The example with weights and node names."""
    result = parser.parse_model(MODEL)
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        values = random.uniform(0.5, 1.5, shape).astype(np.float32)
        result.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for node, name in zip(result.graph.node, NAMES, strict=True):
        node.name = name
    return result


def blocks() -> dict[str, str]:
    """Every block of the page by name, as the builder would make it."""
    found = {"model": MODEL.partition("\n")[2]}
    graph = import_model(model(), {})
    found["imported"] = print_graph(graph)
    changes: list[str] = []
    run_pipeline(graph, after_pass=lambda name, _: changes.append(name))
    found["passes"] = f"changed by: {', '.join(changes)}\n\n{print_graph(graph)}"
    assign_layouts(graph, TARGET.lanes)
    found["layouts"] = print_graph(graph)
    storage = place(graph)
    found["storage"] = storage_text(graph, storage)
    ranges = symbol_ranges(graph, {})
    typical = {r.name: r.opt for r in ranges}
    steps = [lower(step, storage, TARGET.lanes, typical) for step in storage.steps]
    found["problems"] = "\n".join(problem_text(step) for step in steps)
    options = [candidates(step.family, step.problem, TARGET) for step in steps]
    found["tactics"] = "\n".join(
        f"{step.family + ':':8}" + "\n        ".join(f"{option}  ... us" for option in tactics)
        for step, tactics in zip(steps, options, strict=True)
    )
    choices = {i: Choice(tactics[0], ()) for i, tactics in enumerate(options)}
    parts = Assembly(graph, steps, choices, storage.storages, ranges, TARGET, "fp32")
    cache = ArtifactCache(knobs().cache)
    readable = kernel_names(steps, choices)
    program = program_of(parts, cache)
    found["program"] = readable(program[program.index("int64_t es_run") :], 0)
    plan = assemble(parts, cache)
    tables = [inspect.tensor_table(plan), inspect.steps_table(plan, timings=False)]
    tensors, launches = map(table_text, tables)
    parts_of_plan = (tensors, sizes_text(plan.exprs), readable(launches, 18))
    found["plan"] = "\n\n".join(parts_of_plan)
    return {name: re.sub(r" +$", "", text.strip("\n"), flags=re.M) for name, text in found.items()}


def storage_text(graph: Graph, plan: StoragePlan) -> str:
    """Storages, the values in them, and the steps that remain."""
    numbers = {id(s): i for i, s in enumerate(plan.storages)}
    lines = []
    for storage in plan.storages:
        if storage.last < 0:
            continue
        halo = f", halo {storage.halo}" if any(storage.halo) else ""
        lines.append(
            f"storage {numbers[id(storage)]}: {storage.kind}, {dims.to_text(storage.size())} bytes,"
            f" steps {storage.first} to {storage.last}{halo}"
        )
        for value in graph.values():
            view = plan.views.get(id(value))
            if view is not None and view.storage is storage:
                strides = ", ".join(dims.to_text(dims.product(s)) for s in view.strides)
                lines.append(
                    f"  %{value.name}: {value.type}\n"
                    f"    from element {dims.to_text(view.offset)}, strides ({strides})"
                )
    lines.append("steps:")
    for i, step in enumerate(plan.steps):
        match step:
            case Node():
                text = f"{step.op} -> %{step.outputs[0].name}"
            case Move():
                text = f"copy %{step.source.name} -> %{step.target.name}"
            case ClearHalo():
                text = f"clear the halo of storage {numbers[id(step.storage)]}"
        lines.append(f"  {i}: {text}")
    return "\n".join(lines)


def problem_text(step: Lowered) -> str:
    """One lowered step."""
    problem = step.problem
    known = {f.name for f in fields(Problem)}
    extra = [
        f"{f.name}={value_text(getattr(problem, f.name))}"
        for f in fields(problem)
        if f.name not in known and getattr(problem, f.name) != f.default
    ]
    sizes = ", ".join(f"d{i} = {dims.to_text(d)}" for i, d in enumerate(step.sizes))
    lines = [f"{type(problem).__name__}  {' '.join(extra)}".rstrip(), f"    {sizes or 'no sizes'}"]
    first_output = len(problem.operands) - problem.outputs
    for i, operand in enumerate(problem.operands):
        lines.append(f"    {'in ' if i < first_output else 'out'} {operand_text(operand)}")
    return "\n".join(lines)


def operand_text(operand: Operand) -> str:
    shape, strides = (", ".join(map(str, s)) for s in (operand.shape, operand.strides))
    layout = f" c{operand.block}" if operand.block else ""
    halo = f" halo {operand.halo}" if any(operand.halo) else ""
    constant = " constant" if operand.constant else ""
    return f"{operand.dtype} ({shape}) strides ({strides}){layout}{halo}{constant}"


def value_text(value: Any) -> str:
    if isinstance(value, expr.Arg | expr.Const | expr.Call | expr.Cast):
        return f"`{value}`"
    return str(value).replace(" ", "")


def kernel_names(steps: list[Lowered], choices: Mapping[int, Choice]) -> Callable[[str, int], str]:
    """A function that replaces kernels' names, which are hashes of their text, by their families'
    and pads those to a width."""
    names = {
        FAMILIES["cpu"][s.family].emit(s.problem, choices[i].tactic, TARGET).name: f"k_{s.family}"
        for i, s in enumerate(steps)
    }
    pattern = re.compile("|".join(names))
    return lambda text, width: pattern.sub(lambda found: names[found[0]].ljust(width), text)


def sizes_text(exprs: tuple[int | str, ...]) -> str:
    """The plan's table of runtime sizes and offsets."""
    return "sizes\n" + "\n".join(f"D[{i}]  {text}" for i, text in enumerate(exprs))


def table_text(table: Any) -> str:
    """A rich table as plain text."""
    file = io.StringIO()
    Console(file=file, width=140, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip("\n")


def page(text: str, found: Mapping[str, str]) -> str:
    """The page with every block replaced."""

    def block(match: re.Match[str]) -> str:
        return f"{match[1]}{found[match[2]]}\n```"

    pattern = r"(<!-- example: (\w+) -->\n```\w*\n).*?^```$"
    written = re.findall(r"<!-- example: (\w+) -->", text)
    missing = set(found) ^ set(written)
    assert not missing, f"blocks and markers differ: {missing}"
    return re.sub(pattern, block, text, flags=re.DOTALL | re.MULTILINE)


def main() -> int:
    """Rewrite or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    fresh = page(text, blocks())
    if "--check" in sys.argv:
        return int(fresh != text)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
