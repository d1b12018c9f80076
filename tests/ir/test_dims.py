"""Dimensions as text: what a plan evaluates is what was meant."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.plan.expression import compile_expression

VALUES = {"a": 7, "b": 3, "c": 11}


def grow(child: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    two = st.tuples(child, child)
    return st.one_of(
        two.map(lambda p: dims.simplify(p[0] + p[1])),
        two.map(lambda p: dims.simplify(p[0] - p[1])),
        two.map(lambda p: dims.simplify(p[0] * p[1])),
        two.map(lambda p: dims.floordiv(p[0], dims.simplify(p[1] * p[1] + 1))),
        st.tuples(child, st.sampled_from("abc"), st.integers(1, 3)).map(
            lambda p: dims.floordiv(p[0], dims.simplify(p[2] * dims.symbol(p[1])))
        ),
        st.tuples(child, st.sampled_from("abc")).map(
            lambda p: dims.floordiv(p[0], dims.product([dims.symbol(p[1]), dims.symbol("b")]))
        ),
        two.map(lambda p: dims.dim_max(*p)),
        two.map(lambda p: dims.dim_min(*p)),
    )


DIMS = st.recursive(
    st.one_of(st.sampled_from("abc").map(dims.symbol), st.integers(-3, 9)), grow, max_leaves=5
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(DIMS)
def test_text_means_what_the_dimension_means(dim: Dim) -> None:
    text = dims.to_text(dim)
    expected = dims.evaluate(dim, VALUES)
    assert compile_expression(text)(VALUES) == expected
    assert dims.evaluate(dims.parse(text), VALUES) == expected


def test_a_divisor_that_is_a_product_keeps_its_parentheses() -> None:
    a, b, c = map(dims.symbol, "abc")
    assert dims.to_text(dims.floordiv(a, 3 * b)) == "(a//(3*b))"
    assert dims.to_text(dims.floordiv(a * c, b * b)) == "(a*c//(b*b))"
