"""Convolutions by cuDNN against float64: by the library's stand-in on the emulated GPU, and marked
`cuda` by the library itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.cuda_emulator.cudnn import FakeCudnn
from tests.cuda_emulator.device import EmulatedDevice
from tests.kernels.cuda.library_cases import check, last

from enginesmith.ir.expr import Arg, Const, Expr, call, relu
from enginesmith.kernels.base import Operand, Size, add, ceildiv, mul
from enginesmith.kernels.conv import cuda as conv_cuda
from enginesmith.kernels.conv import cudnn as conv_cudnn
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.kernels.cuda import LibrarySource
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cuda, cudnn
from enginesmith.toolchain.libraries import choose_algorithm

BIAS = call("add", Arg(0), Arg(1))
RESIDUAL = call("add", BIAS, Arg(2))
X = (2, 16, 9, 7)


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A GPU with the library."""
    if request.param == "emulated":
        device = EmulatedDevice()
        library = FakeCudnn(device)
        monkeypatch.setattr(cuda, "cuda_device", lambda ordinal=0: device)
        monkeypatch.setattr(cudnn, "library", lambda: library)
    elif (reason := cudnn.why_missing()) is not None:
        pytest.skip(reason)
    return Target("cuda", f"sm_{cuda.cuda_device().arch}")


def conv(
    x: Sequence[Size] = X, channels: int = 24, kernel: tuple[int, int] = (3, 3),
    dtype: str = "float16", *, strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1), dilations: tuple[int, int] = (1, 1),
    groups: int = 1, extras: str = "bias", wider: int = 0, epilogue: Expr | None = None,
    y_dtype: str = "", hint: tuple[int, ...] = (), **facts: Any,
) -> ConvProblem:  # fmt: skip
    """extras: of "bias", "residual", "gate" (one per image and channel), with spaces between.
    wider: channels of which x and the residual are slices."""
    n, c, h, w = x
    assert isinstance(c, int)
    down, right = (
        ceildiv(add(size, pads[k] + pads[k + 2] - dilations[k] * (kernel[k] - 1)), strides[k])
        for k, size in enumerate((h, w))
    )
    y = (n, channels, down, right)
    kinds = {
        "bias": Operand("float32", (1, channels, 1, 1), (0, 1, 0, 0), constant=True),
        "residual": Operand(dtype, y, last(y, wider), alignment=16),
        "gate": Operand(dtype, y, (channels, 1, 0, 0), alignment=16),
    }
    shape = (channels, c // groups, *kernel)
    weights = Operand(dtype, shape, (mul(*shape[1:]), mul(*kernel), kernel[1], 1), constant=True)
    chosen = [kinds[name] for name in extras.split()]
    return ConvProblem(
        (Operand(dtype, tuple(x), last(x, wider), alignment=16), weights, *chosen,
         Operand(y_dtype or dtype, y, last(y), alignment=16)),
        hint, strides=strides, pads=pads, dilations=dilations, groups=groups,
        epilogue=epilogue if epilogue is not None else (relu(BIAS) if chosen else Arg(0)), **facts,
    )  # fmt: skip


def gelu(x: Expr, bell: Expr) -> Expr:
    return call("mul", call("mul", Const(0.5), x), call("add", bell, 1.0))


CONVS = {
    "bias, relu": conv(),
    "plain": conv(extras=""),
    "bfloat16": conv(dtype="bfloat16"),
    "float32": conv(dtype="float32"),
    "float16 to float32": conv(y_dtype="float32"),
    "one pixel": conv(kernel=(1, 1), pads=(0, 0, 0, 0)),
    "stride": conv(strides=(2, 2)),
    "dilation": conv(pads=(2, 2, 2, 2), dilations=(2, 2)),
    "uneven": conv((1, 8, 11, 8), 16, (5, 2), pads=(2, 0, 1, 1), strides=(2, 3)),
    "groups": conv(groups=4, channels=32),
    "depthwise": conv(groups=16, channels=32),
    "residual": conv(extras="bias residual", epilogue=relu(RESIDUAL)),
    "slices": conv(extras="bias residual", epilogue=relu(RESIDUAL), wider=8),
    "one addend per image": conv(extras="bias gate", epilogue=relu(RESIDUAL)),
    "swish": conv(epilogue=call("mul", BIAS, call("sigmoid", BIAS))),
    "sigmoid": conv(epilogue=call("sigmoid", BIAS)),
    "gelu": conv(epilogue=gelu(BIAS, call("erf", call("mul", BIAS, Const(math.sqrt(0.5)))))),
    "few channels": conv((2, 12, 6, 5), 10),
    "one image, one column": conv((1, 16, 5, 1)),
    "symbolic": conv(("d0", 16, "d1", "d2"), hint=(2, 7, 6)),
}  # fmt: skip


@pytest.mark.parametrize("problem", CONVS.values(), ids=CONVS)
def test_results(problem: ConvProblem, target: Target) -> None:
    assert conv_cudnn.why_not(problem, target) is None
    check(conv_cudnn, problem, target, problem.hint)


@pytest.mark.parametrize("slots", [(1, 3, 3), (3, 1, 9)])
def test_other_sizes(slots: tuple[int, ...], target: Target) -> None:
    check(conv_cudnn, CONVS["symbolic"], target, slots)


X16 = conv().x


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (conv(transposed=True), "transposed"),
        (conv(prologue=relu(Arg(0))), "prologue"),
        (replace(conv(), operands=(replace(X16, strides=(1008, 63, 7, 1)), *conv().operands[1:])),
         "not neighbours"),
        (replace(conv(), operands=(replace(X16, strides=(0, 1, 112, 16)), *conv().operands[1:])),
         "repeats"),
        (conv(y_dtype="bfloat16"), "a result of bfloat16"),
        (conv(epilogue=call("sin", BIAS)), "epilogue is none"),
        (conv(epilogue=call("add", call("mul", Arg(0), Const(2.0)), Arg(1))), "scaled"),
        (conv(dtype="float32", epilogue=call("sigmoid", BIAS)), "less precisely"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_refused(problem: ConvProblem, reason: str) -> None:
    assert reason in (conv_cudnn.why_not(problem, Target("cuda", "sm_90")) or "")


def test_it_needs_a_gpu_like_the_target(target: Target) -> None:
    other = Target("cuda", "sm_80" if target.isa != "sm_80" else "sm_90")
    assert "no GPU of" in (conv_cudnn.why_not(conv(), other) or "")


def test_only_precise_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that rounds factors and multiplies by FFT; with TF32 allowed neither."""
    device = EmulatedDevice()
    monkeypatch.setattr(cudnn, "library", lambda: FakeCudnn(device))
    for problem in (conv(), conv(dtype="float32", tf32=True)):
        found = []
        for chosen in conv_cudnn.tactics(problem, Target("cuda", "sm_90")):
            source = conv_cuda.emit(problem, chosen, Target("cuda", "sm_90"))
            assert isinstance(source, LibrarySource)
            found.append(choose_algorithm(source, device)[8:].decode())  # type: ignore[arg-type]
        assert found == ["7:2=1,9=0", "3:", "5:4=2", "", ""]


def test_its_text_says_what_it_computes(target: Target) -> None:
    source = conv_cuda.emit(CONVS["residual"], conv_cudnn.tactics(conv(), target)[1], target)
    for part in ("cudnnBackendExecute, algorithm 1 ", "y = relu(conv(x, w) + added[0] + added[1])",
                 "added[0]: float32, 1x24x1x1", "x: float16, 2x16x9x7"):  # fmt: skip
        assert part in source.code
