"""The kernels of every model compile for every generation of GPUs, without a GPU: NVRTC's, and
Triton's if it is installed.

Of each distinct problem: the candidate that an untuned build takes, and one of every other
algorithm. A plain run compiles some of a few models' kernels; `--slow`, all of all models' (7,500
texts, about six minutes on two cores with a cold cache, and some twenty for Triton's).
"""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bench import zoo
from bench.gpu_small import cases_of

from enginesmith.errors import BuildError
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.cuda import CudaSource
from enginesmith.kernels.sources import OWN, candidates, why_missing
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin
from enginesmith.toolchain.triton_aot import compile_triton

SOURCES = [source for source in (OWN, "triton") if why_missing(source) is None]
TARGETS = [Target("cuda", isa) for isa in ("sm_80", "sm_90", "sm_100")]

LARGE = 16
"""A batch at which work, not latency, decides which kernels are candidates."""

SYMBOLIC = 0
"""In the place of a batch: all dims stay symbols."""

LIGHT = [
    ("mobilenet_v3_large", 1, "fp16"), ("swin_t", 1, "fp16"), ("unet", LARGE, "bf16"),
    ("dlrm", 1, "fp32"), ("resnet50", LARGE, "fp16"), ("ppocr_cls", SYMBOLIC, "fp16"),
]  # fmt: skip
CASES = [
    (name, batch, precision)
    for name in (*zoo.names(), *zoo.PACKAGE_MODELS)
    for batch, precision in (
        (1, "fp16"),
        (LARGE, "fp16"),
        (SYMBOLIC, "fp16"),
        (1, "bf16"),
        (1, "fp32"),
    )
]


Kernels = dict[tuple[Target, str], CudaSource]
"""By target and name."""


def kernels_of(name: str, batch: int, precision: str) -> Kernels:
    """The kernels of a model, each once."""
    if name in zoo.PACKAGE_MODELS:
        try:
            zoo.find(name)
        except LookupError as error:
            pytest.skip(str(error))
    model = zoo.load(name)
    shapes = {}
    if batch != SYMBOLIC:
        shapes = {key: array.shape for key, array in zoo.feeds(name, model, batch).items()}
    # The problems are the same for all targets.
    cases = {(c.family, c.problem): c for c in cases_of(model, shapes, precision, TARGETS[0])}
    kernels: Kernels = {}
    for case in cases.values():
        for target in TARGETS:
            options = candidates(case.family, case.problem, target, SOURCES)
            assert options, f"no candidate for {case.problem}"
            for tactic in {option.name: option for option in reversed(options)}.values():
                source = FAMILIES["cuda"][case.family].emit(case.problem, tactic, target)
                kernels[target, source.name] = source
    return kernels


def compile_all(kernels: Kernels, folder: Path) -> None:
    cache = ArtifactCache(folder)

    def compiled(job: tuple[Target, str]) -> str:
        (target, _), source = job, kernels[job]
        try:
            if source.triton is None:
                compile_cubin(source.code, target, cache)
            else:
                compile_triton(source, target, cache)
        except BuildError as error:
            return f"{target}: {error}"
        return ""

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        problems = list(filter(None, pool.map(compiled, kernels)))
    assert problems == []


@pytest.mark.parametrize(("name", "batch", "precision"), LIGHT)
def test_some_kernels_compile(
    name: str, batch: int, precision: str, artifact_cache: Path
) -> None:  # fmt: skip
    every = kernels_of(name, batch, precision)
    some = {job: s for job, s in every.items() if zlib.crc32(s.code.encode()) % 8 == 0}
    assert some
    compile_all(some, artifact_cache)


@pytest.mark.slow(sampled=False)
@pytest.mark.parametrize(("name", "batch", "precision"), CASES)
def test_all_kernels_compile(
    name: str, batch: int, precision: str, artifact_cache: Path
) -> None:  # fmt: skip
    compile_all(kernels_of(name, batch, precision), artifact_cache)
