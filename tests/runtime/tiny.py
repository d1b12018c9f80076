"""Hand-made plans: small C programs with the real thread pool, for tests of the runtime alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from enginesmith.codegen.pool import POOL
from enginesmith.plan.plan import Buffer, Plan, Step, SymbolRange, TensorSpec
from enginesmith.plan.target import parse_target
from enginesmith.runtime.devices.host import host_isas
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compile_object, link_shared

TARGET = parse_target("cpu", next(iter(host_isas()), None))
CACHE = ArtifactCache(Path(os.environ["ENGINESMITH_CACHE"]))
COLUMNS = 37


def shared(text: str) -> bytes:
    """A shared object of the pool and `text`."""
    return link_shared([compile_object(POOL + text, TARGET, CACHE)], TARGET, CACHE)


# hidden = x * w (in the arena, a row is a task); y = hidden + x; sum = the rows' sums of hidden.
# The first step waits d[2] nanoseconds per row, to be slow on purpose.
PROGRAM = f"""
#define C {COLUMNS}
static void pause_ns(int64_t ns) {{
  if (ns) for (int64_t t = es_now(); es_now() - t < ns;) ;
}}
void k_scale(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  const float *x = (const float *)p[0], *w = (const float *)p[1];
  float *hidden = (float *)p[2], *mine = (float *)scratch;
  for (int64_t i = begin; i < end; i++) {{
    for (int64_t j = 0; j < C; j++) mine[j] = x[i * C + j] * w[j];
    pause_ns(d[1]);
    for (int64_t j = 0; j < C; j++) hidden[i * C + j] = mine[j];
  }}
}}
void k_add(char *const *p, const int64_t *d, int64_t begin, int64_t end, char *scratch) {{
  const float *x = (const float *)p[0], *hidden = (const float *)p[1];
  float *y = (float *)p[2], *sum = (float *)p[3];
  for (int64_t i = begin; i < end; i++) {{
    float s = 0;
    for (int64_t j = 0; j < C; j++) {{
      y[i * C + j] = hidden[i * C + j] + x[i * C + j];
      s += hidden[i * C + j];
    }}
    sum[i] = s;
  }}
}}
int64_t es_run(void *pool, char *const *base, const int64_t *D, int64_t *stamps) {{
  es_begin(pool);
  if (stamps) stamps[0] = es_now();
  char *const p[] = {{base[0], base[1], base[2] + D[1]}};
  es_parallel(pool, k_scale, p, (int64_t[]){{D[0], D[2]}}, D[0]);
  if (stamps) stamps[1] = es_now();
  char *const q[] = {{base[0], base[2] + D[1], base[3], base[4]}};
  es_parallel(pool, k_add, q, D, D[0]);
  if (stamps) stamps[2] = es_now();
  es_end(pool);
  return 0;
}}
"""


def weights() -> np.ndarray:
    """The factors of PROGRAM, float32 (37,)."""
    return (np.arange(COLUMNS, dtype=np.float32) - 11) / 7


def plan(slack: int = 0, min_batch: int = 0, max_batch: int | None = None, pause: int = 0) -> Plan:
    """x float32 (batch, 37) -> y = x * w + x, sum = (x * w).sum(1). pause: nanoseconds per row."""
    rows = f"batch*{4 * COLUMNS}"
    step = Step("scale", "x*w", "rows(threads=1)", "k_scale", ("Mul_0",), f"batch*{COLUMNS}", rows)
    return Plan(
        name="tiny",
        target=str(TARGET),
        precision="fp32",
        symbols=(SymbolRange("batch", min_batch, max(1, min_batch), max_batch),),
        inputs=(TensorSpec("x", "float32", ("batch", COLUMNS)),),
        outputs=(
            TensorSpec("y", "float32", ("batch", COLUMNS)),
            TensorSpec("sum", "float32", ("batch",)),
        ),
        exprs=("batch", 64, pause),
        buffers=(
            Buffer("input", rows, 0, slack=slack),
            Buffer("weights", 4 * COLUMNS),
            Buffer("arena", f"{rows} + 64", first=0, last=1, slack=slack),
            Buffer("output", rows, 0, slack=slack),
            Buffer("output", "batch*4", 1),
        ),
        steps=(
            replace(step, timings=(("rows(threads=1)", 2e-6), ("rows(threads=2)", 3e-6))),
            Step("add", "x+h, sum(h)", "rows()", "k_add", ("Add_1", "ReduceSum_2"), 0, rows),
        ),
        scratch=4 * COLUMNS,
        notes=("Mul_0: fused nothing",),
        producer="tests",
        metadata=(("author", "nobody"),),
        sources={"k_scale": PROGRAM, "k_add": PROGRAM},
        code=shared(PROGRAM),
        weights=weights().tobytes(),
    )


def expected(x: np.ndarray) -> dict[str, np.ndarray]:
    """What `plan()` computes, by numpy."""
    hidden = x * weights()
    return {"y": hidden + x, "sum": hidden.sum(1)}


def sample(batch: int, seed: int = 0) -> np.ndarray:
    """A feed of `plan()`."""
    return np.random.default_rng(seed).standard_normal((batch, COLUMNS), np.float32)


def check(outputs: dict[str, np.ndarray], x: np.ndarray) -> None:
    """AssertionError unless `outputs` are what `plan()` makes of x."""
    wanted = expected(x)
    assert list(outputs) == list(wanted)
    for name, value in wanted.items():
        assert outputs[name].dtype == value.dtype
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)
