"""`enginesmith tune`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from enginesmith.cli import display
from enginesmith.cli.options import Duration, example, sources_option, threads_option


@click.command(
    short_help="Tune a plan on the machine it was built for.",
    epilog=example(
        "enginesmith tune model.plan",
        "enginesmith tune model.plan -o tuned.plan --budget 60s",
    ),
)
@click.argument("plan", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="PLAN",
    help="Where to save the tuned plan; in place of PLAN if absent.",
)  # fmt: skip
@click.option("--budget", type=Duration(), help="Time for tuning: 60s, 2m. No limit if absent.")
@sources_option
@threads_option
@click.option("-v", "--verbose", is_flag=True, help="Print the whole report.")
def tune(
    plan: Path, output: Path | None, budget: float | None, tactic_sources: tuple[str, ...] | None,
    threads: int | None, verbose: bool,
) -> None:  # fmt: skip
    """Time the candidates of PLAN on this machine and save it with the winners.

    PLAN was built elsewhere (say, for a GPU without one), with --no-tune, or its budget was over.
    The result is the plan that a build on this machine would have given.
    """
    import enginesmith as es

    output = output or plan
    start = time.perf_counter()
    with display.progress_bars(verbose=verbose) as listener:
        engine = es.tune(
            plan, budget=budget, threads=threads, progress=listener, tactic_sources=tactic_sources
        )
    engine.save(output)
    out = display.console()
    took = display.seconds(time.perf_counter() - start)
    steps = engine.plan.steps
    timed = sum(bool(step.timings) for step in steps)
    out.print(
        f"{output}: {timed} of {len(steps)} steps timed for {engine.plan.target}, tuned in {took}",
        soft_wrap=True,
    )
    if verbose:
        out.print(engine.report, soft_wrap=True)
    else:
        for note in engine.plan.notes:
            out.print(f"  {note}", soft_wrap=True)
