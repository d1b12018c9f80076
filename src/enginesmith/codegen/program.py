"""The plan's program: one C function that runs every step.

    int64_t es_run(void *pool, char *const *base, const int64_t *D, int64_t *stamps)

base[b]: buffer b; D[i]: the plan's expression i; stamps: NULL, or room for steps + 1 time stamps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_POOL = """
void es_begin(void *pool);
void es_end(void *pool);
int64_t es_now(void);
typedef void (*es_fn)(char *const *, const int64_t *, int64_t, int64_t, char *);
void es_parallel(void *pool, es_fn fn, char *const *p, const int64_t *d, int64_t tasks);
"""
"""What the program calls (see codegen/pool.py)."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """Buffer number and byte offset (an int, or the index of an expression as `D[i]` text)."""

    buffer: int
    offset: int | str


@dataclass(frozen=True, slots=True)
class Launch:
    """One step: its kernel's phases as (C function, tasks expression over d0, d1, ...), operand
    pointers, and the runtime sizes as C expressions."""

    phases: tuple[tuple[str, int | str], ...]
    pointers: tuple[Pointer, ...]
    sizes: tuple[str, ...]
    comment: str


def program_text(launches: Sequence[Launch]) -> str:
    """The C of `es_run` for these steps (the prelude and the pool are put before it)."""
    names = dict.fromkeys(name for launch in launches for name, _ in launch.phases)
    declared = "".join(
        f"void {n}(char *const *, const int64_t *, int64_t, int64_t, char *);\n" for n in names
    )
    steps = "".join(_launch(i, launch) for i, launch in enumerate(launches))
    return f"""{_POOL}{declared}
int64_t es_run(void *pool, char *const *base, const int64_t *D, int64_t *stamps) {{
  es_begin(pool);
  if (stamps) stamps[0] = es_now();
{steps}  es_end(pool);
  return 0;
}}
"""


def _launch(index: int, launch: Launch) -> str:
    pointers = ", ".join(f"base[{p.buffer}] + {p.offset}" for p in launch.pointers)
    sizes = ", ".join(launch.sizes) or "0"
    lines = [
        f"  {{ // {index}: {launch.comment}",
        f"    char *const p[] = {{{pointers}}};",
        f"    const int64_t d[] = {{{sizes}}};",
    ]
    for name, tasks in launch.phases:
        count = re.sub(r"\bd(\d+)\b", r"d[\1]", str(tasks)).replace("//", "/")
        lines.append(f"    es_parallel(pool, {name}, p, d, {count});")
    lines.append(f"    if (stamps) stamps[{index + 1}] = es_now();")
    return "\n".join([*lines, "  }", ""])
