"""Size expressions: as Python computes them, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginesmith.errors import PlanError
from enginesmith.plan.expression import compile_expression, names_of

leaves = st.one_of(st.integers(0, 50).map(str), st.sampled_from(["h", "w"]))
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, st.integers(1, 9)).map(lambda t: f"({t[0]})//{t[1]}"),
        st.tuples(st.sampled_from(["max", "min"]), inner, inner).map(
            lambda t: f"{t[0]}({t[1]}, {t[2]})"
        ),
        inner.map(lambda t: f"-({t})"),
    ),
    max_leaves=8,
)


@given(expressions, st.integers(0, 99), st.integers(0, 99))
def test_equals_python(text: str, h: int, w: int) -> None:
    """Every expression the grammar allows."""
    env = {"h": h, "w": w}
    assert compile_expression(text)(env) == eval(text, {"max": max, "min": min}, env)
    assert names_of(text) == {name for name in env if name in text}


def test_ints() -> None:
    """A size known at build time is an int."""
    assert compile_expression(7)({}) == 7
    assert names_of(7) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "", "h +", "h / 2", "h ** 9", "2.5", "True", "'a'", "f(h)", "max()", "max(h, key=h)", "h.x",
        "h[0]", "__import__('os')", "lambda: 0", "h if w else 0", "(h := 3)", "[1]", "max", "1 < 2",
        "h\x00", "(" * 500 + "h" + ")" * 500, "-" * 100_000 + "h",
    ],
)  # fmt: skip
def test_everything_else_is_refused(text: str) -> None:
    """Whatever a damaged or hostile plan says, it isn't executed."""
    with pytest.raises(PlanError, match="damaged size expression"):
        compile_expression(text)
