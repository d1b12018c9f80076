"""Runs every candidate kernel of some models on a GPU, compares and times them.

python -m bench.gpu_check --models resnet50,bert_base --batch 8 --precision fp16 --isolate

Each distinct problem's candidates get the same random inputs and are compared with the plainest
one. What is wrong is listed; then, by problem, the time that the fastest right candidate loses to
what arithmetic or memory allows.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from bench import machine, zoo
from bench.compare import RESULTS
from bench.gpu import write
from bench.gpu_trials import Bench, Case, Outcome, describe, emit, failure, options_of
from enginesmith import builder
from enginesmith.cli import display
from enginesmith.errors import DeviceError
from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.knobs import knobs
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cuda
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.tuner.cuda_device import CudaTuningDevice

RETRIES = 12
"""Candidates of a family that may break the GPU before the rest of the family is left out."""

SICK = 3
"""Exit code when the GPU can't be used any more."""


@dataclass
class Findings:
    """culprit: the candidate after which the GPU could not be used, with what the driver said."""

    outcomes: list[Outcome] = field(default_factory=list)
    culprit: str = ""
    reason: str = ""
    unfinished: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """candidates: of a problem at most; seconds: after which no further problem is started; hang:
    seconds after which a candidate counts as hanging; skip: candidates to leave out; only: families
    or FAMILY/TACTIC, all if empty."""

    candidates: int | None = None
    seconds: float | None = None
    hang: float = 20
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--models", default="resnet50", show_default=True, help="Comma-separated names.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--precision", type=click.Choice(["fp16", "bf16", "fp32"]), default="fp16")
@click.option("--only", multiple=True, help="FAMILY or FAMILY/TACTIC, repeatable: conv/wgmma.")
@click.option("--skip", multiple=True, help="A candidate as its failure is listed, repeatable.")
@click.option("--limit-candidates", type=click.IntRange(min=1), help="Of each problem.")
@click.option("--isolate", is_flag=True, help="A process for each family, again after a crash.")
@click.option("--hang", default=20.0, show_default=True, help="Seconds a candidate may take.")
@click.option("--time-limit", type=float, help="Seconds after which no problem is started.")
@click.option("--top", default=40, show_default=True, help="Problems listed by time lost.")
@click.option("--out", default="gpu_check", show_default=True, help="Name of the file of results.")
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), default=RESULTS)
@click.option("--cases", "cases_file", type=click.Path(path_type=Path), hidden=True)
@click.pass_context
def main(
    ctx: click.Context, models: str, batch: int, precision: str, only: tuple[str, ...],
    skip: tuple[str, ...], limit_candidates: int | None, isolate: bool, hang: float,
    time_limit: float | None, top: int, out: str, folder: Path, cases_file: Path | None,
) -> None:  # fmt: skip
    """Check every candidate kernel of the models on this machine's GPU.

    Exit code 1: something is wrong; 2: there is no GPU; 3: a candidate left it unusable (it is
    named).
    """
    console = display.console()
    target = Target("cuda", f"sm_{machine.gpu().arch}")
    limits = Limits(limit_candidates, time_limit, hang, skip, only)
    if cases_file is not None:  # a child of --isolate
        cases: list[Case] = pickle.loads(cases_file.read_bytes())
    else:
        with console.status("reading the models"):
            cases = collect(models.split(","), batch, precision, target)
    chosen = {i: c for i, c in enumerate(cases) if not only or c.family in _families(only)}
    console.print(f"{len(chosen)} problems of {len({c.family for c in chosen.values()})} families")
    file = folder / f"{out}.json"

    def finish(found: Findings) -> int:
        record(file, cases, found)
        if cases_file is None:
            report(console, cases, found, top)
        if found.culprit:
            return SICK
        return int(any(o.problem for o in found.outcomes))

    if isolate:
        found = run_isolated(cases, chosen, limits, console)
    else:
        found = run(chosen, target, limits, console, finish)
    ctx.exit(finish(found))


def _families(only: Iterable[str]) -> set[str]:
    return {text.partition("/")[0] for text in only}


# -- what to check ---------------------------------------------------------------------------------


def collect(names: Sequence[str], batch: int, precision: str, target: Target) -> list[Case]:
    """The distinct problems of the models at this batch, with the constants of the first step."""
    groups: dict[tuple[str, Problem], Case] = {}
    for name in names:
        model = zoo.load(name)
        shapes = {key: array.shape for key, array in zoo.feeds(name, model, batch).items()}
        graph, ranges = builder._read(model, shapes, lambda _: None)
        builder._optimize(graph, target, precision, lambda _: None)
        steps, _ = builder._lower(graph, target, {r.name: r.opt for r in ranges})
        for step in steps:
            key = (step.family, step.problem)
            known = groups.get(key)
            constants = {i: p for i, p in enumerate(step.places) if isinstance(p, np.ndarray)}
            groups[key] = Case(
                step.family,
                step.problem,
                known.constants if known else constants,
                known.count + 1 if known else 1,
                known.nodes if known else f"{Path(name).stem}: {', '.join(step.sources)}",
            )
    return list(groups.values())


# -- running ---------------------------------------------------------------------------------------


class Watchdog:
    """Calls `act(what)` in a thread of its own when something takes too long."""

    def __init__(self, seconds: float, act: Callable[[str], None]) -> None:
        self.seconds, self.act = seconds, act
        self.what, self.until = "", float("inf")
        self.stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def expect(self, what: str) -> None:
        """`what` begins, and what was before has ended."""
        self.what, self.until = what, time.monotonic() + self.seconds

    def rest(self) -> None:
        """Nothing is under way."""
        self.until = float("inf")

    def _watch(self) -> None:
        while not self.stopped.wait(0.1):
            if time.monotonic() > self.until:
                self.act(self.what)
                return


def label(number: int, case: Case, tactic: Tactic) -> str:
    """How a candidate is called in lists and by --skip."""
    return f"{case.family}#{number}/{tactic}"


def _wanted(number: int, case: Case, tactic: Tactic, limits: Limits) -> bool:
    if label(number, case, tactic) in limits.skip:
        return False
    asked = [o.partition("/")[2] for o in limits.only if o.partition("/")[0] == case.family]
    return not asked or any(tactic.name.startswith(name) for name in asked)


def run(
    cases: Mapping[int, Case], target: Target, limits: Limits, console: Console,
    finish: Callable[[Findings], int],
) -> Findings:  # fmt: skip
    """Check all cases in this process. If a candidate hangs, the process ends with `finish`."""
    found = Findings()
    owner = CudaTuningDevice(cuda.cuda_device(), target, ArtifactCache(knobs().cache))

    def hung(what: str) -> None:
        found.culprit, found.reason = what, f"no answer in {limits.hang:g} s"
        console.print(f"{what} hangs", style="red")
        code = finish(found)
        sys.stdout.flush()
        os._exit(code)  # this thread can't end the others

    watchdog = Watchdog(limits.hang, hung)
    start = time.monotonic()
    plans = {i: options_of(case, target, limits.candidates) for i, case in cases.items()}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = _Compilation(pool, owner)
        for i, case in cases.items():
            for tactic in dict.fromkeys([plans[i][0], *plans[i][1]]):
                if _wanted(i, case, tactic, limits) or tactic == plans[i][0]:
                    jobs.add(i, case, tactic, target)
        for done, (i, case) in enumerate(cases.items()):
            if limits.seconds is not None and time.monotonic() - start > limits.seconds:
                found.unfinished = len(cases) - done
                break
            try:
                check(i, case, *plans[i], owner, jobs, limits, watchdog, found)
            except DeviceError as error:
                found.reason = str(error)
                found.culprit = watchdog.what
                console.print(f"{found.culprit}: {error}", style="red")
                break
            finally:
                watchdog.rest()
        pool.shutdown(wait=False, cancel_futures=True)
    watchdog.stopped.set()
    owner.close()
    return found


class _Compilation:
    """Texts being compiled ahead, each once."""

    def __init__(self, pool: ThreadPoolExecutor, owner: CudaTuningDevice) -> None:
        self.pool, self.owner = pool, owner
        self.sources: dict[tuple[int, Tactic], CudaSource | Exception] = {}
        self.binaries: dict[str, Future[bytes]] = {}

    def add(self, number: int, case: Case, tactic: Tactic, target: Target) -> None:
        try:
            source = emit(case, tactic, target)
        except Exception as error:  # the report's matter
            self.sources[number, tactic] = error
            return
        self.sources[number, tactic] = source
        if source.name not in self.binaries:
            self.binaries[source.name] = self.pool.submit(self.owner.compile, source)

    def get(self, number: int, tactic: Tactic) -> tuple[CudaSource, bytes]:
        """The text and its machine code, when it is there."""
        source = self.sources[number, tactic]
        if isinstance(source, Exception):
            raise source
        return source, self.binaries[source.name].result()


def check(
    number: int, case: Case, reference: Tactic, options: Sequence[Tactic], owner: CudaTuningDevice,
    jobs: _Compilation, limits: Limits, watchdog: Watchdog, found: Findings,
) -> None:  # fmt: skip
    """Run the candidates of one case; DeviceError if the GPU can't be used afterwards."""

    def attempt(tactic: Tactic, as_reference: bool) -> bool:
        outcome = Outcome(case.family, number, str(tactic))
        try:
            source, binary = jobs.get(number, tactic)
            watchdog.expect(label(number, case, tactic))
            outcome = bench.run(tactic, source, binary, as_reference)
            outcome.case = number
        except DeviceError as error:
            if not error.usable:
                raise
            outcome.problem = failure(error)
        except Exception as error:  # a fault of this candidate alone
            outcome.problem = failure(error)
        finally:
            watchdog.rest()
        if str(tactic) in candidates or outcome.problem:
            found.outcomes.append(outcome)
        return not outcome.problem

    wanted = [t for t in options if _wanted(number, case, t, limits)]
    candidates = {str(tactic) for tactic in wanted}
    if not wanted:
        return
    watchdog.expect(f"{case.family}#{number}")
    bench = Bench(owner, case)
    skipped = label(number, case, reference) in limits.skip
    trusted = None
    for tactic in dict.fromkeys([*([] if skipped else [reference]), *wanted]):
        if attempt(tactic, as_reference=True):
            trusted = tactic
            break
    for tactic in wanted:
        tried = any(o.case == number and o.tactic == str(tactic) for o in found.outcomes)
        if tactic != trusted and not tried:
            attempt(tactic, as_reference=False)


def run_isolated(
    cases: Sequence[Case], chosen: Mapping[int, Case], limits: Limits, console: Console
) -> Findings:
    """A process for each family; after a crash again, without the candidate that caused it."""
    total = Findings()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="enginesmith-check-") as folder:
        stored = Path(folder, "cases")
        stored.write_bytes(pickle.dumps(list(cases)))
        for family in dict.fromkeys(case.family for case in chosen.values()):
            skip, culprits = list(limits.skip), list[tuple[str, str]]()
            while len(culprits) < RETRIES:
                left = None if limits.seconds is None else limits.seconds - time.monotonic() + start
                if left is not None and left < 0:
                    total.unfinished += sum(c.family == family for c in chosen.values())
                    break
                found = _child(family, stored, Path(folder), limits, skip, left)
                if not found.culprit:
                    break
                console.print(f"{found.culprit}: {found.reason}", style="red")
                culprits.append((found.culprit, found.reason))
                skip.append(found.culprit)
            else:
                console.print(f"{family}: too many crashes, the rest is left out", style="red")
            if left is None or left >= 0:
                total.outcomes += found.outcomes
                total.unfinished += found.unfinished
            total.outcomes += [_crashed(family, *culprit) for culprit in culprits]
    return total


def _child(
    family: str, stored: Path, folder: Path, limits: Limits, skip: Sequence[str],
    seconds: float | None,
) -> Findings:  # fmt: skip
    only = [text for text in limits.only if text.partition("/")[0] == family] or [family]
    command = [sys.executable, "-m", "bench.gpu_check", "--cases", str(stored)]
    command += ["--folder", str(folder), "--out", "found", "--hang", str(limits.hang)]
    command += [part for text in only for part in ("--only", text)]
    command += [part for text in skip for part in ("--skip", text)]
    if limits.candidates is not None:
        command += ["--limit-candidates", str(limits.candidates)]
    if seconds is not None:
        command += ["--time-limit", f"{seconds:.0f}"]
    file = folder / "found.json"
    file.unlink(missing_ok=True)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          check=False)  # fmt: skip
    if not file.exists():
        reason = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        return Findings([Outcome(family, -1, "", problem=f"the process failed: {reason}")])
    data = json.loads(file.read_text())
    outcomes = [Outcome(**entry) for entry in data["outcomes"]]
    return Findings(outcomes, data["culprit"], data["reason"], data["unfinished"])


def _crashed(family: str, culprit: str, reason: str) -> Outcome:
    place, _, tactic = culprit.partition("/")
    number = int(place.partition("#")[2])
    return Outcome(family, number, tactic, problem=f"crashed: {reason}")


# -- the report ------------------------------------------------------------------------------------


def report(console: Console, cases: Sequence[Case], found: Findings, top: int) -> None:
    """Failures, the summary by tactic, and where time is lost."""
    failures(console, cases, found.outcomes)
    console.print(tactics_table(found.outcomes))
    console.print(times_table(cases, found.outcomes, top))
    if found.unfinished:
        console.print(f"{found.unfinished} problems were left for lack of time", style="yellow")
    if found.culprit:
        console.print(f"the GPU can't be used after {found.culprit}: {found.reason}", style="red")


def failures(console: Console, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> None:
    """A line for each candidate that is wrong, under its problem."""
    wrong = defaultdict(list)
    for outcome in outcomes:
        if outcome.problem:
            wrong[outcome.case].append(outcome)
    for number, bad in wrong.items():
        tried = sum(o.case == number for o in outcomes)
        text = f"{describe(cases[number].problem)} ({cases[number].nodes})" if number >= 0 else ""
        doubt = "; perhaps the reference is" if 1 < tried <= len(bad) + 1 else ""
        console.print(f"{bad[0].family}#{number} {text}: {len(bad)} of {tried} wrong{doubt}",
                      style="red")  # fmt: skip
        for o in bad:
            counts = f"NaN {o.strange}, left out {o.unwritten}, outside {o.stray}"
            console.print(
                f"  {o.tactic}: {o.problem} (error {o.relative:.1e}, largest {o.largest:.1e}, "
                f"{counts})"
            )


def tactics_table(outcomes: Sequence[Outcome]) -> Table:
    """How the tactics of each name did."""
    rows = display.table("family", "tactic", ">checked", ">wrong", ">fastest", ">worst error",
                         title=f"{len(outcomes)} candidates")  # fmt: skip
    groups = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.family, outcome.tactic.partition("(")[0]].append(outcome)
    winners = {id(best) for best in fastest(outcomes).values()}
    for (family, name), members in sorted(groups.items()):
        wrong = sum(bool(o.problem) for o in members)
        errors = [o.relative for o in members if not o.problem]
        rows.add_row(family, name, str(len(members)), str(wrong),
                     str(sum(id(o) in winners for o in members)),
                     f"{max(errors, default=0):.0e}", style="red" if wrong else "")  # fmt: skip
    return rows


def fastest(outcomes: Sequence[Outcome]) -> dict[int, Outcome]:
    """The fastest right candidate of each case."""
    best: dict[int, Outcome] = {}
    for outcome in outcomes:
        if outcome.seconds is None or outcome.problem:
            continue
        known = best.get(outcome.case)
        if known is None or outcome.seconds < (known.seconds or 0):
            best[outcome.case] = outcome
    return best


def times_table(cases: Sequence[Case], outcomes: Sequence[Outcome], top: int) -> Table:
    """The problems at which most time is lost to the floor, in all their steps together."""
    best = fastest(outcomes)
    lost = {i: cases[i].count * ((o.seconds or 0) - cases[i].floor) for i, o in best.items()}
    total = sum(cases[i].count * (o.seconds or 0) for i, o in best.items())
    floor = sum(cases[i].count * cases[i].floor for i in best)
    rows = display.table(
        ">lost us", ">steps", ">us", ">floor", ">of floor", "~problem", "~fastest, then others",
        title=f"Fastest candidates: {total * 1e6:.1f} us in all, floor {floor * 1e6:.1f} us",
    )  # fmt: skip
    for i in sorted(lost, key=lambda i: -lost[i])[:top]:
        case, seconds = cases[i], best[i].seconds or 0
        others = sorted(
            (o for o in outcomes if o.case == i and o.seconds and not o.problem and o != best[i]),
            key=lambda o: o.seconds or 0,
        )
        rows.add_row(
            f"{lost[i] * 1e6:.1f}",
            str(case.count),
            f"{seconds * 1e6:.2f}",
            f"{case.floor * 1e6:.2f}",
            f"{case.floor / seconds:.0%}" if seconds else "-",
            f"{case.family}#{i} {describe(case.problem)}",
            "; ".join([
                best[i].tactic, *(f"{o.tactic} {(o.seconds or 0) * 1e6:.2f}" for o in others[:2])
            ]),
        )  # fmt: skip
    return rows


def record(path: Path, cases: Sequence[Case], found: Findings) -> None:
    """All outcomes as JSON."""
    about = [
        {"family": c.family, "problem": describe(c.problem), "count": c.count, "nodes": c.nodes,
         "floor": c.floor} for c in cases
    ]  # fmt: skip
    write(path, asdict(found) | {"cases": about})


if __name__ == "__main__":
    main(prog_name="python -m bench.gpu_check")
