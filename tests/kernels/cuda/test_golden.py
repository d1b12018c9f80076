"""The text of representative kernels, exactly, so that a change of codegen shows what it changes.

After a change that is meant, look at the difference of the files that this writes:

    python -m pytest tests/kernels/cuda/test_golden.py --update-golden; git diff tests/kernels
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.kernels.cuda import (
    test_attention,
    test_conv_plain,
    test_gather,
    test_layout,
    test_matmul_plain,
    test_mma,
    test_normalization,
    test_pointwise,
    test_reduce,
    test_softmax,
    test_triton,
    test_wgmma,
)

from enginesmith.kernels.base import Problem, Tactic, tactic
from enginesmith.kernels.cuda import CudaSource
from enginesmith.plan.target import Target

FOLDER = Path(__file__).parent / "golden"
TARGET = Target("cuda", "sm_90")

Made = tuple[Any, Problem, Tactic]


def first(family: Any, problem: Problem) -> Made:
    """With the tactic that an untuned build takes."""
    return family, problem, family.tactics(problem, TARGET)[0]


def of_case(case: Any) -> Made:
    return first(case.family, case.problem)


def attention(chosen: Tactic) -> Made:
    problem, _ = test_attention.problem_of((2, 3, 70, 70, 64, 64), "float16", "float16", True)
    return test_attention.cuda, problem, chosen


KERNELS: dict[str, Callable[[], Made]] = {
    "conv_mma": lambda: (
        test_mma.conv_mma, test_mma.CONVS["residual"], test_mma.SHAPES[1].tactic),
    "conv_wgmma": lambda: (
        test_wgmma.conv, test_wgmma.conv_problem(test_wgmma.CONVS[1]),
        test_wgmma.tile(128, 64, groups=2).tactic),
    "matmul_wgmma": lambda: (
        test_wgmma.matmul, test_wgmma.product(128, 3072, 768, test_wgmma.RESIDUAL),
        test_wgmma.parts(64, 96, 8).tactic),
    "conv_depthwise": lambda: first(
        test_conv_plain.depthwise_cuda, test_conv_plain.conv(1, 48, 9, 9, 48, 5, 2, 2, 1, 48)),
    "conv_banded": lambda: first(
        test_conv_plain.banded_cuda, test_conv_plain.conv(1, 48, 9, 9, 48, 5, 1, 2, 1, 48)),
    "conv_grouped": lambda: first(
        test_conv_plain.grouped_cuda, test_conv_plain.conv(1, 48, 9, 9, 48, 3, 2, 1, 1, 6)),
    "conv_stem": lambda: first(
        test_conv_plain.stem_cuda, test_conv_plain.conv(1, 3, 32, 32, 16, 7, 2, 3)),
    "matmul_mma": lambda: (
        test_mma.matmul_mma, test_mma.PRODUCTS["scores"], test_mma.SHAPES[0].tactic),
    "matmul_gemv": lambda: first(test_matmul_plain.gemv, test_matmul_plain.VECTORS[0]),
    "matmul_simple": lambda: first(test_matmul_plain.simple, test_matmul_plain.PRODUCTS[8]),
    "matmul_triton": lambda: (
        test_triton.matmul, test_triton.PRODUCTS["weights"], test_triton.SHAPES[0].tactic),
    "conv_triton": lambda: (
        test_triton.convolution, test_triton.CONVS["residual"], test_triton.SHAPES[1].tactic),
    "attention_triton": lambda: attention(tactic("triton", m=64, n=32, warps=4, stages=3)),
    "attention_mma": lambda: attention(test_attention.mma(1, 1, 2, 32)),
    "normalization": lambda: of_case(
        test_normalization.layer_norm((37, 768), "float16", residual=True)),
    "softmax": lambda: of_case(test_softmax.case((70, 197), 1, "float16")),
    "reduce": lambda: of_case(test_reduce.global_pool((2, 72, 7, 7), "float16")),
    "pointwise": lambda: of_case(test_pointwise.CASES["half"]),
    "layout": lambda: of_case(test_layout.CASES["odd channels"]),
    "gather": lambda: of_case(test_gather.GATHERS["table"]),
    "scatter": lambda: of_case(test_gather.scatter_nd("add")),
}  # fmt: skip


def text_of(name: str) -> tuple[str, str]:
    """(the launches as comments, then the kernels; the name of a file for it)."""
    family, problem, chosen = KERNELS[name]()
    source: CudaSource = family.emit(problem, chosen, TARGET)
    facts = [f"{chosen}", *map(str, source.launches)]
    comment, suffix = "//", "cu"
    if source.triton is not None:
        comment, suffix = "#", "triton"
        facts.append(f"{source.triton}")
    if source.workspace != 0:
        facts.append(f"workspace {source.workspace} bytes, {source.cleared} of them cleared")
    text = "".join(f"{comment} {fact}\n" for fact in facts) + source.text.rstrip("\n") + "\n"
    return text, f"{name}.{suffix}"


@pytest.mark.parametrize("name", KERNELS)
def test_text(name: str, pytestconfig: pytest.Config) -> None:
    text, place = text_of(name)
    file = FOLDER / place
    if pytestconfig.getoption("--update-golden"):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text)
        return
    assert text == file.read_text(), (
        f"{place} isn't what codegen writes now; if that is meant, run this with --update-golden"
    )


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in FOLDER.iterdir()} == set(KERNELS)
