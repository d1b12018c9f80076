"""`enginesmith build`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from enginesmith.cli import display
from enginesmith.cli.load import read_samples
from enginesmith.cli.options import (
    Duration,
    build_options,
    example,
    host_option,
    merge_shapes,
    sources_option,
    threads_option,
)


@click.command(
    short_help="Build an ONNX model into a plan.",
    epilog=example(
        "enginesmith build model.onnx -o model.plan --budget 60s",
        "enginesmith build ocr.onnx --profile x=1x3x48x32:1x3x48x320:8x3x48x960",
        "enginesmith build ocr.onnx --target cuda --precision fp16 --samples lines/",
    ),
)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="PLAN",
    help="Where to save the plan; MODEL's name with .plan in this folder if absent.",
)  # fmt: skip
@build_options
@click.option("--budget", type=Duration(), help="Time for tuning: 60s, 2m. No limit if absent.")
@click.option("--no-tune", is_flag=True, help="Take each kernel's most promising tactic untimed.")
@click.option(
    "--tf32",
    is_flag=True,
    help="For fp32 on GPUs: round what convolutions and matmuls multiply to TF32. Faster, with "
    "errors of some 1e-4.",
)
@click.option(
    "--samples", type=click.Path(exists=True, path_type=Path), multiple=True, metavar="FILE.npz",
    help="For fp16 and bf16: typical inputs, an array for each by its name. Layers that half "
         "precision doesn't suit on them stay float32. Or a folder of such files. May be repeated.",
)  # fmt: skip
@click.option(
    "--tolerance", type=click.FloatRange(min=0, min_open=True),
    help="Error of an output on the samples to stay below: 5e-3 in fp16, 3e-2 in bf16 if absent.",
)  # fmt: skip
@host_option
@sources_option
@threads_option
@click.option("-v", "--verbose", is_flag=True, help="Print the whole build report.")
def build(
    model: Path,
    output: Path | None,
    target: str,
    precision: str,
    shapes: Any,
    profiles: Any,
    budget: float | None,
    no_tune: bool,
    tf32: bool,
    samples: tuple[Path, ...],
    tolerance: float | None,
    host_steps: bool,
    tactic_sources: tuple[str, ...] | None,
    threads: int | None,
    verbose: bool,
) -> None:
    """Build MODEL (an ONNX file) into a plan for one machine."""
    import enginesmith as es

    if no_tune and budget is not None:
        raise click.UsageError("--no-tune and --budget exclude each other")
    output = output or Path(model.stem + ".plan")
    start = time.perf_counter()
    with display.progress_bars(verbose=verbose) as listener:
        engine = es.build(
            model,
            target=target,
            precision=precision,
            shapes=merge_shapes(shapes, profiles),
            budget=budget,
            tuning=not no_tune,
            tf32=tf32,
            samples=read_samples(samples) if samples else None,
            tolerance=tolerance,
            host_steps=host_steps,
            tactic_sources=tactic_sources,
            threads=threads,
            progress=listener,
        )
    engine.save(output)
    out = display.console()
    took = display.seconds(time.perf_counter() - start)
    plan = engine.plan
    out.print(
        f"{output}: {len(plan.steps)} steps for {plan.target} {plan.precision}, "
        f"{display.size(output.stat().st_size)}, built in {took}",
        soft_wrap=True,
    )
    if verbose:
        out.print(engine.report, soft_wrap=True)
    else:
        for note in plan.notes:
            out.print(f"  {note}", soft_wrap=True)
