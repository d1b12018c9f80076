"""Layers raised to float32 by sample inputs: what goes together, what is raised, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import Builder

from enginesmith.errors import FeedError
from enginesmith.ir import dims
from enginesmith.ir.difference import compare_outputs, worst
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.ops import AttentionAttrs, PoolAttrs
from enginesmith.ir.reference import last_reads, run_graph
from enginesmith.passes import raising
from enginesmith.passes.precision import assign_precision, layers
from enginesmith.passes.raising import Evaluation, raise_by_samples
from enginesmith.passes.samples import checked_samples
from enginesmith.plan.plan import SymbolRange

N = dims.symbol("n")


def names(graph: Graph) -> list[set[str]]:
    return [{v.name for v in layer} for layer in layers(graph)]


def held(graph: Graph) -> set[str]:
    return {v.name for v in graph.values() if v.type.layout.held}


def named(value: Value, name: str) -> Value:
    value.name = name
    return value


def reports(calls: list[tuple[int, int, str]]) -> raising.Report:
    return lambda *call: calls.append(call)


# -- what goes together ---------------------------------------------------------------------------


def test_factors_and_what_shares_memory_go_together() -> None:
    b = Builder()
    x = b.call("exp", b.input(N, 6))  # v0
    first, second = named(b.const(6, 8), "first"), named(b.const(8, 8), "second")
    y = b.matmul(x, first)  # v1
    seen = b.reshape(y, N, 2, 4)  # v2
    back = b.reshape(b.transpose(seen, 0, 2, 1), N, 8)  # v3, v4
    total = b.call("add", b.matmul(back, second), y)  # v5, v6
    graph = b.result(b.call("neg", total))
    assign_precision(graph, "float16")
    assert names(graph) == [{"v0", "first"}, {"v1", "v2", "v3", "v4", "second"}, {"v5"}, {"v6"}]


def test_attention_has_one_type_and_depthwise_weights_go_with_the_result() -> None:
    b = Builder()
    q, k, v = (b.call("neg", b.input(N, 2, 4, 8)) for _ in range(3))
    mixed = b.emit("attention", [q, k, v], AttentionAttrs(0.5))
    image = b.call("exp", mixed)
    each = b.conv(image, 2, 3, 1, groups=2)
    each.producer.inputs[1].name = "w"  # type: ignore[union-attr]
    graph = b.result(b.call("neg", each))
    assign_precision(graph, "float16")
    assert names(graph) == [{"v0", "v1", "v2", "v3"}, {"v4"}, {"v5", "w"}]


def test_what_is_multiplied_with_a_weight_that_overflows_stays_too() -> None:
    b = Builder()
    large = constant("large", np.full((4, 4), 7e4, np.float32))
    graph = b.result(b.call("neg", b.matmul(b.call("exp", b.input(N, 4)), large)))
    assert assign_precision(graph, "float16") == [large]
    assert held(graph) == {"v1"}


# -- evaluation -----------------------------------------------------------------------------------


def network(seed: int = 0) -> Graph:
    """A bit of everything, half an image network, half attention."""
    b = Builder(seed)
    a = b.call("max", b.conv(b.input(N, 3, 6, 6), 8, 3, 1), b.const(1))
    c = b.conv(b.conv(a, 8, 3, 1, groups=8), 8)
    d = b.call("add", a, c)
    e = b.emit("pool", [d], PoolAttrs("avg", (2, 2), (2, 2), (0,) * 4), (N, 8, 3, 3))
    f = b.reshape(e, N, 1, 8, 9)
    g = b.emit("attention", [f, f, f], AttentionAttrs(0.1))
    h = b.matmul(b.reshape(g, N, 72), b.const(72, 10, low=-1))
    return b.result(b.call("neg", h), b.reduce("mean", d, 2, 3))


def feeds(*shape: int, seed: int = 1, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"x0": np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)}


def outputs(graph: Graph, fed: dict[str, np.ndarray], rounded: set[int]) -> dict[str, np.ndarray]:
    run = Evaluation(graph, fed, "float16", rounded)
    for node, dead in zip(graph.nodes, last_reads(graph), strict=True):
        run.step(node)
        run.drop(dead)
    return run.outputs()


def test_nothing_rounded_is_the_reference() -> None:
    graph, fed = network(), feeds(2, 3, 6, 6)
    assign_precision(graph, "float16")
    expected = run_graph(graph, fed)
    for name, array in outputs(graph, fed, set()).items():
        np.testing.assert_array_equal(array, expected[name])


def test_layers_judged_alone_are_those_evaluated_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evaluations that share what doesn't differ find the same."""
    graph, fed = network(), feeds(2, 3, 6, 6)
    assign_precision(graph, "float16")
    monkeypatch.setattr(raising, "TOGETHER", 3)
    judge = raising._Judge(graph, "float16", [fed], reports([]))
    judge.run_exactly()
    found = layers(graph)
    errors = judge.alone(found)
    assert len(errors) == len(found) > 6 and min(errors) > 0
    for layer, error in zip(found, errors, strict=True):
        alone = outputs(graph, fed, {id(v) for v in layer})
        assert worst(compare_outputs(alone, judge.exact[0])) == error


def test_values_are_freed_after_their_last_reader() -> None:
    graph, fed = network(), feeds(1, 3, 6, 6)
    run = Evaluation(graph, fed, "float16", set())
    most = 0
    for node, dead in zip(graph.nodes, last_reads(graph), strict=True):
        run.step(node)
        run.drop(dead)
        most = max(most, len(run.arrays))
    assert set(run.arrays) == {id(v) for v in (*graph.inputs, *graph.outputs)}
    assert most < len(graph.nodes) - 3


def test_rounding_is_to_nearest_and_overflows_to_infinity() -> None:
    graph, fed = network(), feeds(1, 3, 6, 6)
    array = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1e5, 2**-24, 2**-26])
    for kind, expected in (
        ("float16", [1 + 2**-8, 1 + 3 * 2**-8, np.inf, 2**-24, 0]),
        ("bfloat16", [1, 1 + 2**-6, 99840, 2**-24, 2**-26]),
    ):
        rounded = Evaluation(graph, fed, kind, set()).round(array)
        np.testing.assert_array_equal(rounded, np.float32(expected), strict=True)


# -- what is raised -------------------------------------------------------------------------------


def cancelling(offset: float) -> Graph:
    """(x + offset) - offset: half precision rounds away what is left. Other layers do no harm."""
    b = Builder()
    shift = constant("s", np.float32(offset))
    raised = b.call("add", b.input(N, 8), shift)  # v0
    x = b.call("sub", raised, shift)  # v1
    y = b.matmul(x, named(b.const(8, 8), "w"))  # v2
    graph = b.result(b.call("neg", y))
    assign_precision(graph, "float16")
    return graph


def test_the_harmful_layer_is_raised_and_no_other() -> None:
    graph, calls = cancelling(1000.0), []
    lines = raise_by_samples(graph, "float16", [feeds(4, 8)], 5e-3, reports(calls))
    assert held(graph) == {"v1", "w", "v2"}
    summary, cause = lines
    before, after = (float(part.split()[0]) for part in summary.split("error ")[1].split("; "))
    assert before > 5e-3 > after > 0
    assert "float16 on 1 sample: error" in summary and "with 1 of 3 layers raised" in summary
    assert "(tolerance 5.0e-03)" in summary
    assert cause.startswith("n0: float32, since alone in float16 it errs by ")
    done = [call[0] for call in calls]
    assert done == list(range(1, len(calls) + 1)) and all(d <= t for d, t, _ in calls)


def test_nothing_is_raised_below_the_tolerance() -> None:
    graph = cancelling(1000.0)
    (line,) = raise_by_samples(graph, "float16", [feeds(4, 8)], 0.9, reports([]))
    assert held(graph) == {"v0", "v1", "w", "v2"}
    assert "raised" not in line


def test_values_near_the_largest_stay_with_what_is_multiplied() -> None:
    """A factor of two is left for other inputs."""
    for scale, stays in ((15_000.0, False), (18_000.0, True)):
        b = Builder()
        x = b.call("mul", b.input(N, 8), constant("s", np.float32(scale)))  # v0
        weight = constant("w", np.full((8, 8), 0.01, np.float32))
        graph = b.result(b.call("neg", b.matmul(x, weight)))
        assign_precision(graph, "float16")
        fed = {"x0": np.full((1, 8), 2, np.float32)}
        lines = raise_by_samples(graph, "float16", [fed], 1.0, reports([]))
        assert ("v0" not in held(graph)) == ("w" not in held(graph)) == stays
        reached = [line for line in lines if "limit" in line]
        assert len(reached) == stays
        if stays:
            assert "n0: float32, since values reach 3.6e+04" in reached[0]
            assert "65504, 32752 with head-room" in reached[0]


def test_infinities_are_no_overflow() -> None:
    b = Builder()
    x = b.call("log", b.input(N, 8))
    graph = b.result(b.call("exp", x))
    assign_precision(graph, "float16")
    raise_by_samples(graph, "float16", [{"x0": np.zeros((1, 8), np.float32)}], 1.0, reports([]))
    assert held(graph) == {"v0"}


def test_every_sample_counts() -> None:
    """The second sample alone is hard."""
    graph = cancelling(1000.0)
    easy = {"x0": np.full((1, 8), 512, np.float32)}
    raise_by_samples(graph, "float16", [easy], 5e-3, reports([]))
    assert "v0" in held(graph)
    raise_by_samples(graph, "float16", [easy, feeds(4, 8), easy], 5e-3, reports([]))
    assert "v0" not in held(graph)


def test_layers_are_judged_on_the_worst_sample() -> None:
    """On the first one, none does harm."""
    graph = cancelling(1000.0)
    easy = {"x0": np.full((1, 8), 512, np.float32)}
    lines = raise_by_samples(graph, "float16", [easy, feeds(4, 8)], 5e-3, reports([]))
    assert len(lines) == 2 and lines[1].startswith("n0: ")


@pytest.mark.parametrize("alone", [3, 64])
@pytest.mark.parametrize("tolerance", [4e-4, 1e-4, 1e-9])
def test_the_error_after_is_below_the_tolerance(
    monkeypatch: pytest.MonkeyPatch, alone: int, tolerance: float
) -> None:
    """Also where layers are judged by threes, and where all must go."""
    monkeypatch.setattr(raising, "ALONE", alone)
    graph = network()
    assign_precision(graph, "float16")
    samples = [feeds(2, 3, 6, 6, seed=s) for s in range(3)]
    raise_by_samples(graph, "float16", samples, tolerance, reports([]))
    rounded = {id(v) for v in graph.values() if v.type.layout.held}
    for fed in samples:
        found = worst(compare_outputs(outputs(graph, fed, rounded), run_graph(graph, fed)))
        assert found <= tolerance
    assert (tolerance > 1e-9) == bool(rounded)


# -- samples --------------------------------------------------------------------------------------


def two_inputs() -> tuple[Graph, list[SymbolRange]]:
    b = Builder()
    x, y = b.input(N, 4), b.input(N, dtype="int64")
    graph = b.result(b.call("neg", x), b.call("neg", y))
    return graph, [SymbolRange("n", 1, 2, 8)]


def test_all_problems_of_all_samples_at_once() -> None:
    graph, ranges = two_inputs()
    good: dict[str, Any] = {"x0": np.ones((2, 4), np.float32), "x1": np.ones(2, np.int64)}
    bad = [
        good,
        {"x0": np.ones((2, 4), np.float64)},
        {"x0": np.ones((9, 4), np.float32), "x1": np.ones(9, np.int64), "x2": 1},
        {"x0": np.ones((2, 5), np.float32), "x1": np.ones(3, np.int64)},
        good | {"x0": np.full((2, 4), np.nan, np.float32)},
    ]
    with pytest.raises(FeedError) as caught:
        checked_samples(graph, ranges, bad)
    message = str(caught.value)
    for part in (
        "sample 2: input 'x1' is missing", "sample 2: input 'x0' is float64",
        "sample 3: there is no input 'x2'", "built for 1 to 8",
        "sample 4: input 'x0', axis 1 is 5", "makes it 2", "sample 5: input 'x0' holds NaN",
    ):  # fmt: skip
        assert part in message
    assert "sample 1" not in message
    assert len(checked_samples(graph, ranges, [good, good])) == 2


def test_no_samples_are_refused() -> None:
    graph, ranges = two_inputs()
    with pytest.raises(FeedError, match="pass at least one"):
        checked_samples(graph, ranges, [])


def test_shapes_that_the_model_assumes_equal() -> None:
    graph, ranges = two_inputs()
    graph.assumptions.append((N, dims.parse("2*((n + 1)//2)"), ("up",)))
    odd = {"x0": np.ones((3, 4), np.float32), "x1": np.ones(3, np.int64)}
    with pytest.raises(FeedError, match=r"node up needs n and .* to be equal"):
        checked_samples(graph, ranges, [odd])
