"""`enginesmith run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from enginesmith.cli import display
from enginesmith.cli.load import (
    check_names,
    load_engine,
    random_feeds,
    read_array,
    symbols_of_shapes,
)
from enginesmith.cli.options import Named, NamedShape, example, target_options, threads_option


@click.command(
    short_help="Run a plan or model once.",
    epilog=example(
        "enginesmith run model.plan --input x=image.npy --output-dir results",
        "enginesmith run model.onnx --input x=random --target cuda --precision fp16",
    ),
)
@click.argument("plan_or_model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--input", "inputs", type=Named(), multiple=True,
    help="NAME=FILE.npy or NAME=random. Inputs not named are random.",
)  # fmt: skip
@click.option(
    "--shape", "shapes", type=NamedShape(), multiple=True,
    help="The shape of a random input: x=1x3x224x224.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of the random inputs.")
@click.option(
    "--output-dir", type=click.Path(file_okay=False, path_type=Path),
    help="Write each output there as OUTPUT.npy.",
)  # fmt: skip
@target_options
@threads_option
def run(
    plan_or_model: Path,
    inputs: tuple[tuple[str, str], ...],
    shapes: Any,
    seed: int,
    output_dir: Path | None,
    target: str,
    precision: str,
    threads: int | None,
) -> None:
    """Run PLAN_OR_MODEL once; print a summary of each output.

    --target and --precision are for a model, which is built first; a plan has its own.
    """
    arrays = {name: read_array(Path(file)) for name, file in inputs if file != "random"}
    engine = load_engine(plan_or_model, threads, target=target, precision=precision)
    given = {name: array.shape for name, array in arrays.items()} | dict(shapes)
    check_names(engine.plan, [name for name, _ in inputs])
    symbols = symbols_of_shapes(engine.plan, given)
    outputs = engine(random_feeds(engine.plan, symbols, seed) | arrays)
    rows = display.table("output", "dtype", "shape", ">min", ">mean", ">max")
    for name, array in outputs.items():
        rows.add_row(name, str(array.dtype), display.shape_text(array.shape), *_summary(array))
    display.console().print(rows)
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
        for name, array in outputs.items():
            np.save(output_dir / f"{_file_name(name)}.npy", array)
        display.console().print(f"saved in {output_dir}")


def _summary(array: np.ndarray) -> tuple[str, str, str]:
    if array.size == 0 or array.dtype.kind not in "fiub":
        return "-", "-", "-"
    return f"{array.min():.5g}", f"{array.mean():.5g}", f"{array.max():.5g}"


def _file_name(output: str) -> str:
    """An output's name without what file systems dislike."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in output)
