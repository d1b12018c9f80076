# ruff: noqa: C408  (keyword tables read better as calls)
"""Convolution kernels against a float64 reference: every tactic, both instruction sets."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import conv, reference
from harness import run_kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enginesmith.ir.expr import Arg, Expr, call, relu
from enginesmith.kernels.base import dense_strides, tactic, value_of
from enginesmith.kernels.conv import cpu, direct, plain
from enginesmith.kernels.conv.problem import ConvProblem
from enginesmith.plan.target import Target

TARGETS = {isa: Target("cpu", isa) for isa in ("avx2", "avx512")}
LANES = {isa: target.lanes for isa, target in TARGETS.items()}
BIAS = call("add", Arg(0), Arg(1))
HARDSWISH = call(
    "mul", BIAS, call("div", call("min", call("max", call("add", BIAS, 3.0), 0.0), 6.0), 6.0)
)
EPILOGUES: dict[str, tuple[tuple[str, ...], Expr]] = {
    "none": ((), Arg(0)),
    "bias": (("bias",), BIAS),
    "residual": (("bias", "residual"), relu(call("add", BIAS, Arg(2)))),
    "same": (("bias", "same"), relu(call("add", BIAS, Arg(2)))),
    "hardswish": (("bias",), HARDSWISH),
    "gate": (("gate",), call("mul", Arg(0), Arg(1))),
    "sigmoid": (("bias", "scalar"), call("add", call("sigmoid", BIAS), Arg(2))),
}  # fmt: skip


@pytest.fixture(params=sorted(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def inputs_of(problem: ConvProblem, slots: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = [[value_of(s, slots) for s in o.shape] for o in problem.operands[:-1]]
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def bound(problem: ConvProblem, inputs: list[np.ndarray]) -> float:
    """Largest error allowed: rounding of a sum of this many products of this size."""
    x, w = inputs[:2]
    terms = problem.group_in * problem.kernel[0] * problem.kernel[1]
    size = max(1.0, float(np.abs(x).max(initial=0)) * float(np.abs(w).max(initial=0)))
    return 1e-6 * size * max(4.0, terms**0.5)


def check(
    problem: ConvProblem, target: Target, slots: tuple[int, ...] = (), by: tuple[str, ...] = ()
) -> list[str]:
    """Run the first tactic of each algorithm that is offered (apart where the parameters `by`
    differ), and the plain one."""
    inputs = inputs_of(problem, slots)
    expected = reference(problem, inputs, slots)
    kinds = {(t.name, *map(t.get, by)): t for t in cpu.tactics(problem, target)[::-1]}
    for t in (*kinds.values(), *plain.tactics(problem, target)):
        (got,) = run_kernel(cpu, problem, t, target, inputs, slots)
        limit = bound(problem, inputs) * (10 if t.name == "winograd" else 1)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=limit, err_msg=str(t))
    return [t.name for t in kinds.values()]


SHAPES = {
    "3x3": dict(n=2, ic=32, h=9, w=11, oc=48, kernel=3, pads=1),
    "3x3 wide": dict(n=1, ic=16, h=5, w=47, oc=64, kernel=3, pads=1),
    "5x3 dilated": dict(n=1, ic=17, h=13, w=10, oc=9, kernel=(5, 3), dilation=(2, 3),
                        pads=(4, 3, 2, 3)),
    "stride 2": dict(n=1, ic=40, h=14, w=15, oc=24, kernel=3, stride=2, pads=(0, 1, 1, 0)),
    "1x1": dict(n=3, ic=72, h=7, w=7, oc=50, kernel=1),
    "1x1 stride": dict(n=1, ic=33, h=9, w=8, oc=20, kernel=1, stride=(2, 3)),
    "wide pixel": dict(n=1, ic=16, h=4, w=70, oc=24, kernel=1),
    "fully connected": dict(n=5, ic=100, h=1, w=1, oc=300, kernel=1),
    "squeeze": dict(n=1, ic=64, h=1, w=1, oc=10, kernel=1),
    "deep": dict(n=1, ic=320, h=4, w=6, oc=40, kernel=3, pads=1),
    "groups": dict(n=1, ic=64, h=6, w=7, oc=96, kernel=3, pads=1, groups=2),
    "stem": dict(n=2, ic=3, h=23, w=31, oc=32, kernel=7, stride=2, pads=3, plain_x=True),
    "stem no pads": dict(n=1, ic=5, h=12, w=31, oc=16, kernel=3, plain_x=True),
    "depthwise 3x3": dict(n=2, ic=40, h=9, w=17, oc=40, kernel=3, pads=1, groups=40),
    "depthwise 5x5": dict(n=1, ic=24, h=15, w=11, oc=24, kernel=5, stride=2, pads=2, groups=24),
    "depthwise dilated": dict(n=1, ic=16, h=9, w=9, oc=16, kernel=3, dilation=2, pads=2, groups=16),
    "narrow groups": dict(n=1, ic=48, h=6, w=9, oc=48, kernel=3, pads=1, groups=6),
    "misaligned": dict(n=1, ic=30, h=5, w=4, oc=20, kernel=3, pads=1, groups=10),
    "one channel each": dict(n=1, ic=20, h=5, w=4, oc=40, kernel=3, pads=1, groups=20),
    "transposed 2x2": dict(n=2, ic=24, h=5, w=6, oc=20, kernel=2, stride=2, transposed=True),
    "transposed 3x3": dict(n=1, ic=16, h=5, w=6, oc=20, kernel=3, stride=2, pads=(1, 1, 1, 1),
                           output_padding=(1, 1), transposed=True),
    "transposed groups": dict(n=1, ic=32, h=4, w=3, oc=64, kernel=4, stride=(2, 1),
                              pads=(1, 2, 0, 1), groups=2, dilation=(1, 2), transposed=True),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_every_algorithm(name: str, target: Target) -> None:
    """Each shape with one epilogue, the output in a slice of a wider tensor with a halo."""
    kind = list(EPILOGUES)[list(SHAPES).index(name) % len(EPILOGUES)]
    extras, epilogue = EPILOGUES[kind]
    problem = conv(target.lanes, **SHAPES[name], extras=extras, epilogue=epilogue,
                   y_halo=(1, 2, 0, 1), y_more=2)  # fmt: skip
    check(problem, target, by=("m", "fused"))


@pytest.mark.parametrize("kind", EPILOGUES)
def test_epilogues(kind: str, target: Target) -> None:
    """Each epilogue on tiles with tails everywhere; padded lanes stay zero."""
    extras, epilogue = EPILOGUES[kind]
    lanes = target.lanes
    for shape in (
        dict(n=2, ic=lanes + 3, h=5, w=9, oc=2 * lanes + 5, kernel=1),
        dict(n=2, ic=lanes + 3, h=5, w=9, oc=lanes + 5, kernel=3, pads=1),
        dict(n=3, ic=20, h=1, w=1, oc=37, kernel=1),
        dict(n=1, ic=21, h=9, w=9, oc=21, kernel=3, pads=1, groups=21),
    ):
        check(conv(lanes, **shape, extras=extras, epilogue=epilogue), target)


SYMBOLIC = {
    "3x3": dict(n="d0", ic=20, h="d1", w="d2", oc=40, kernel=3, pads=1),
    "stride 2": dict(n="d0", ic=16, h="d1", w="d2", oc=20, kernel=3, stride=2, pads=1),
    "1x1": dict(n="d0", ic=20, h="d1", w="d2", oc=40, kernel=1),
    "depthwise": dict(n="d0", ic=24, h="d1", w="d2", oc=24, kernel=3, pads=1, groups=24),
    "stem": dict(n="d0", ic=3, h="d1", w="d2", oc=24, kernel=3, stride=2, pads=1, plain_x=True),
    "squeeze": dict(n="d0", ic=70, h=1, w=1, oc=40, kernel=1),
    "transposed": dict(n="d0", ic=20, h="d1", w="d2", oc=24, kernel=2, stride=2, transposed=True),
    "narrow groups": dict(n="d0", ic=32, h="d1", w="d2", oc=32, kernel=3, pads=1, groups=4),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_sizes(name: str, target: Target) -> None:
    """One kernel for any batch (also none), height and width."""
    extras, epilogue = EPILOGUES["residual" if name != "squeeze" else "bias"]
    problem = conv(target.lanes, **SYMBOLIC[name], extras=extras, epilogue=epilogue,
                   hint=(1, 24, 30), y_halo=(1, 1, 1, 1))  # fmt: skip
    for slots in ((1, 12, 31), (3, 3, 4), (0, 5, 5), (2, 1, 47)):
        check(problem, target, slots)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_geometry(data: st.DataObject) -> None:
    """Random kernels, strides, dilations, asymmetric pads, channels: the first tactic."""
    draw = data.draw
    target = TARGETS[draw(st.sampled_from(sorted(TARGETS)))]
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    need = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    problem = conv(
        target.lanes, draw(st.integers(1, 2)), draw(st.integers(1, 40)),
        need[0] + draw(st.integers(0, 9)), need[1] + draw(st.integers(0, 20)),
        draw(st.integers(1, 70)), kernel, (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        pads, dilation, extras=["bias"], epilogue=relu(BIAS), plain_x=draw(st.booleans()),
    )  # fmt: skip
    first = cpu.tactics(problem, target)[0]
    inputs = inputs_of(problem, ())
    (got,) = run_kernel(cpu, problem, first, target, inputs)
    np.testing.assert_allclose(
        got, reference(problem, inputs), rtol=1e-5, atol=bound(problem, inputs), err_msg=str(first)
    )


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize("fused", [0, 1])
def test_winograd(m: int, fused: int, target: Target) -> None:
    """All sizes and phases, tails of tiles, blocks, channels; no halo needed; small error."""
    lanes = target.lanes
    problem = conv(lanes, 2, 2 * lanes + 3, 13, 17, 4 * lanes - 9, 3, 1, (1, 0, 2, 1),
                   extras=["bias", "residual"], epilogue=EPILOGUES["residual"][1],
                   x_halo=(1, 0, 1, 0), y_halo=(1, 1, 1, 1))  # fmt: skip
    inputs = inputs_of(problem, ())
    expected = reference(problem, inputs)
    for order in (0, 1):
        half = order if lanes == 16 else 0
        t = tactic("winograd", m=m, t=5, b=2, fused=fused, tiles=1, order=order, half=half)
        (got,) = run_kernel(cpu, problem, t, target, inputs)
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < {2: 1e-6, 4: 2e-6, 6: 5e-6}[m]


@pytest.mark.parametrize("dilation", [(2, 2), (3, 1), (12, 12)])
@pytest.mark.parametrize("size", [(13, 17), (3, 40)])
def test_dilated_winograd(dilation: tuple[int, int], size: tuple[int, int], target: Target) -> None:
    """Every offset below the dilation, also those past the plane's end."""
    lanes = target.lanes
    dh, dw = dilation
    problem = conv(lanes, 2, lanes + 3, *size, 2 * lanes - 5, 3, 1, (dh, dw, dh, dw),
                   dilation=dilation, extras=["bias", "residual"],
                   epilogue=EPILOGUES["residual"][1])  # fmt: skip
    inputs = inputs_of(problem, ())
    expected = reference(problem, inputs)
    for m, fused in ((2, 1), (4, 0), (6, 1)):
        t = tactic("winograd", m=m, t=5, b=2, fused=fused, tiles=1, order=0, half=0)
        (got,) = run_kernel(cpu, problem, t, target, inputs)
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert error < {2: 1e-6, 4: 2e-6, 6: 5e-6}[m]


@pytest.mark.parametrize(("r", "t", "b"), [(1, 6, 2), (3, 3, 1), (1, 3, 3), (2, 1, 4)])
def test_register_tiles(r: int, t: int, b: int, target: Target) -> None:
    """Tiles of every form, with tails in rows, columns and blocks, also a half block."""
    lanes = target.lanes
    problem = conv(lanes, 2, lanes + 3, 7, 11, 5 * lanes + 3, 3, 1, 1, extras=["bias"],
                   epilogue=relu(BIAS))  # fmt: skip
    inputs = inputs_of(problem, ())
    half = int(lanes == 16)
    t_ = tactic("direct", r=r, t=t, b=b, chunk=0, rows=2 * r, tiles=1, order=0, flat=0, half=half)
    (got,) = run_kernel(cpu, problem, t_, target, inputs)
    np.testing.assert_allclose(
        got, reference(problem, inputs), rtol=1e-5, atol=bound(problem, inputs)
    )


@pytest.mark.parametrize("target_name", ["avx2", "avx512"])
@pytest.mark.parametrize("ic", [3, 16, 200, 512])
@pytest.mark.parametrize("size", [1, 7, 14, 56, 200])
@pytest.mark.parametrize("kernel", [1, 3])
def test_candidates(target_name: str, ic: int, size: int, kernel: int) -> None:
    """A few different candidates for every problem; all can be written."""
    target = TARGETS[target_name]
    problem = conv(target.lanes, 1, ic, size, size, 88, kernel, 1, kernel // 2, plain_x=ic == 3)
    found = cpu.tactics(problem, target)
    assert 1 <= len(found) <= 16
    assert len(set(found)) == len(found)
    for t in found:
        assert cpu.emit(problem, t, target).phases


@pytest.mark.parametrize("n", [3, "d0"])
def test_prologue(n: int | str, target: Target) -> None:
    """Batch normalization and ReLU, or a gate, applied to what a 1x1 convolution reads."""
    lanes = target.lanes
    normalize = relu(call("add", call("mul", Arg(0), Arg(1)), Arg(2)))
    gated = call("mul", Arg(0), Arg(1))
    for shape in (
        dict(ic=3 * lanes + 5, h=9, w=7, oc=2 * lanes + 1, kernel=1),
        dict(ic=2 * lanes, h=9, w=7, oc=40, kernel=1, stride=2),
        dict(ic=2 * lanes, h=1, w=1, oc=40, kernel=1),
    ):
        for extras, prologue in ((["scale", "scale", "bias"], normalize),
                                 (["input gate", "scalar", "bias"], gated)):  # fmt: skip
            problem = conv(lanes, n, **shape, extras=extras, prologue=prologue,
                           epilogue=relu(call("add", Arg(0), Arg(3))),
                           hint=(3,) if n == "d0" else ())  # fmt: skip
            inputs = inputs_of(problem, (3,))
            for t in (cpu.tactics(problem, target)[0], cpu.tactics(problem, target)[-1]):
                (got,) = run_kernel(cpu, problem, t, target, inputs, (3,) if n == "d0" else ())
                np.testing.assert_allclose(
                    got, reference(problem, inputs), rtol=1e-5, atol=bound(problem, inputs) * 3
                )


@pytest.mark.parametrize("n", [2, "d0"])
def test_few_channels(n: int | str, target: Target) -> None:
    """A plain output of a few channels; also transposed."""
    h, w = ("d1", "d2") if n == "d0" else (7, 37)
    for shape in (
        dict(ic=24, oc=1, kernel=2, stride=2, transposed=True),
        dict(ic=37, oc=3, kernel=(2, 3), stride=(2, 3), transposed=True),
        dict(ic=40, oc=2, kernel=3, pads=1),
        dict(ic=20, oc=4, kernel=(1, 3), stride=2, dilation=2, pads=(0, 2, 0, 1)),
    ):
        problem = conv(target.lanes, n, h=h, w=w, **shape, extras=["bias", "scalar"],
                       epilogue=EPILOGUES["sigmoid"][1], plain_y=True,
                       hint=(2, 7, 37) if n == "d0" else ())  # fmt: skip
        inputs = inputs_of(problem, (2, 7, 37))
        (few,) = cpu.tactics(problem, target)
        assert few.name == "few"
        (got,) = run_kernel(cpu, problem, few, target, inputs, (2, 7, 37) if n == "d0" else ())
        np.testing.assert_allclose(
            got, reference(problem, inputs, (2, 7, 37)), rtol=1e-5, atol=bound(problem, inputs)
        )
    many = conv(target.lanes, 1, 32, 8, 8, 32, 3, 1, 1, plain_y=True)
    assert "plain output" in str(cpu.why_not(many, target))


def test_prologue_why_not(target: Target) -> None:
    """Only 1x1 convolutions without pads take one."""
    problem = conv(target.lanes, 1, 32, 8, 8, 32, 3, 1, 1, prologue=relu(Arg(0)))
    assert "1x1" in str(cpu.why_not(problem, target))


def test_chunks_of_input_channels(target: Target) -> None:
    """Partial sums over pieces of the input channels, with a tail, and both loop orders."""
    lanes = target.lanes
    problem = conv(lanes, 2, 5 * lanes + 3, 6, 9, 3 * lanes, 3, 1, 1, extras=["bias"],
                   epilogue=relu(BIAS))  # fmt: skip
    inputs = inputs_of(problem, ())
    expected = reference(problem, inputs)
    for order in (0, 1):
        t = tactic("direct", r=2, t=4, b=2, chunk=2, rows=4, tiles=2, order=order, flat=0)
        (got,) = run_kernel(cpu, problem, t, target, inputs)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=bound(problem, inputs))


def test_why_not(target: Target) -> None:
    """Reasons name what is missing."""
    lanes = target.lanes
    assert "blocks of" in str(cpu.why_not(conv(24 - lanes, 1, 8, 4, 4, 8, 1), target))
    little = conv(lanes, 1, 16, 8, 8, 16, 3, 1, 1, x_halo=(0, 0, 0, 0))
    assert "halo" in str(direct.why_not(little, target))
    assert "direct" not in [t.name for t in cpu.tactics(little, target)]
    check(little, target)


def test_cost() -> None:
    """The direct algorithm's count; symbolic sizes stay symbolic."""
    problem = conv(16, "d0", 32, 10, 12, 48, 3, 1, 1, hint=(1,))
    cost = cpu.cost(problem)
    assert value_of(cost.flops, (2,)) == 2 * 2 * 48 * 32 * 9 * 10 * 12
    assert value_of(cost.bytes, (2,)) == 4 * (2 * 32 * 120 + 48 * 32 * 9 + 2 * 48 * 120)
    assert problem.w.strides == dense_strides((48, 32, 3, 3))
