"""Writes docs/operators.md: which ONNX operators are supported, by running ONNX's own test cases.

    python docs/make_operators.py           # takes some minutes; exit code 1 if a case is wrong

Run it after adding an importer, and with a new version of onnx.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnx  # noqa: E402
from bench import onnx_cases  # noqa: E402
from bench.onnx_cases import DIFFERENT, KINDS, Outcome  # noqa: E402

from enginesmith.frontend.importers import IMPORTERS  # noqa: E402

PAGE = ROOT / "docs" / "operators.md"
WORKERS = 2

Outcomes = Mapping[tuple[str, str], Outcome]
"""By kind and case."""

HEAD = """\
# Operators

Written by `python docs/make_operators.py`, which runs ONNX's own test cases through engines; don't
edit it.

Element types: float32 everywhere; float64, float16, int64, int32, int8, uint8 and bool wherever
elements are moved, compared or computed one by one. What isn't served below runs on the host,
through `onnx.reference`, slowly and said aloud, if the shapes of its results don't depend on data
and it has no subgraphs ([host steps](architecture.md#host-steps)); on this page it counts as
refused. The rest is refused with an error that names the node, the reason and, where there is one,
the remedy. `enginesmith check model.onnx` lists both.

Weights, and operands that decide shapes (axes, the target of Reshape), have to be constants of the
model or computed from shapes. Some cases feed them at run time; they are run with constants in
place of all inputs but the first (of the first too where it decides the result's shape).
"""


@dataclass(slots=True)
class Row:
    """What is known of one operator: cases that pass and all, and why the others are refused."""

    passed: int = 0
    total: int = 0
    reasons: set[str] = field(default_factory=set)


def run_case(case: tuple[str, str]) -> Outcome:
    """For worker processes."""
    kind, name = case
    return onnx_cases.run(onnx_cases.cases(kind)[name])


def run_all(workers: int = WORKERS) -> Outcomes:
    """Every case there is."""
    names = [(kind, name) for kind in KINDS for name in onnx_cases.cases(kind)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return dict(zip(names, pool.map(run_case, names, chunksize=16), strict=True))


def rows(outcomes: Outcomes) -> dict[str, Row]:
    """By operator: the node cases about it, and those with its function written out apart."""
    found: defaultdict[str, Row] = defaultdict(Row)
    for (kind, name), outcome in outcomes.items():
        operator = onnx_cases.operator_of(onnx_cases.cases(kind)[name]) if kind == "node" else ""
        if not operator or "_expanded" in name:
            continue
        row = found[operator]
        row.total += 1
        row.passed += outcome.status == "passed" or name in DIFFERENT
        if outcome.status == "unsupported":
            row.reasons |= {short(operator, reason) for reason in outcome.reasons}
    return {**{name: Row() for name in IMPORTERS}, **found}


def short(operator: str, reason: str) -> str:
    """A reason without what the row says anyway."""
    reason = re.sub(r"^(it|the result) has element type ", "element type ", reason)
    reason = re.sub(r" can't be built for [\w:]+: ", ": ", reason)
    reason = re.sub(r"^no importer for operator (\w+)(, which it consists of| of domain .*)?$",
                    r"needs \1", reason)  # fmt: skip
    reason = re.sub(rf"^{operator} | of {operator}\b", "", reason)
    return "" if reason == f"needs {operator}" else reason


def told(reasons: Iterable[str]) -> str:
    """Reasons as one text, element types together."""
    types = sorted({r.removeprefix("element type ") for r in reasons if r.startswith("element")})
    others = sorted(r for r in reasons if r and not r.startswith("element type "))
    return "; ".join([*others, *([f"types: {', '.join(types)}"] if types else [])])


def page(outcomes: Outcomes) -> str:
    """The text of docs/operators.md."""
    table = rows(outcomes)
    works = {n: r for n, r in sorted(table.items()) if r.passed or n in IMPORTERS}
    missing = sorted(name for name in table if name not in works)
    lines = [HEAD, f"## ONNX's cases (onnx {onnx.__version__})\n"]
    lines += ["| kind | cases | right | refused |", "|---|---|---|---|"]
    for kind in KINDS:
        of_kind = [(n, o) for (k, n), o in outcomes.items() if k == kind]
        right = sum(o.status == "passed" or n in DIFFERENT for n, o in of_kind)
        refused = sum(o.status == "unsupported" for _, o in of_kind)
        lines.append(f"| {kind} | {len(of_kind)} | {right} | {refused} |")
    lines.append("\nRight counts these, which differ from ONNX's reference on purpose:\n")
    lines += [f"- `{name}`: {reason}." for name, reason in DIFFERENT.items()]
    lines.append("\n## Supported\n")
    lines.append("Of the cases about each operator: how many are right, and what is refused.\n")
    lines += ["| operator | cases | refused |", "|---|---|---|"]
    for name, row in works.items():
        count = f"{row.passed} of {row.total}" if row.total else "-"
        lines.append(f"| {name} | {count} | {told(row.reasons)} |")
    lines += ["\n## Not supported\n", ", ".join(missing) + "."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run everything, write the page, and list what is wrong."""
    outcomes = run_all()
    wrong = {
        name: outcome.reasons[0]
        for (_, name), outcome in outcomes.items()
        if outcome.status == "failed" and name not in DIFFERENT
    }
    for name, reason in wrong.items():
        print(f"{name}: {reason}", file=sys.stderr)
    PAGE.write_text(page(outcomes), encoding="utf-8")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
