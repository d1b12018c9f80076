"""Evaluates the integer expressions of plans (names, ints, + - * //, max, min); nothing else."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache

from enginesmith.errors import PlanError

Evaluator = Callable[[Mapping[str, int]], int]


def compile_expression(text: int | str) -> Evaluator:
    """A function from symbol values to the expression's value. PlanError on any other syntax."""
    return _parse(text)[0]


def names_of(text: int | str) -> frozenset[str]:
    """The symbols an expression uses. PlanError as `compile_expression`."""
    return _parse(text)[1]


@lru_cache(maxsize=8192)
def _parse(text: int | str) -> tuple[Evaluator, frozenset[str]]:
    if isinstance(text, int):
        constant = text
        return lambda _: constant, frozenset()
    try:
        tree = ast.parse(text, mode="eval").body
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return _compile(tree), frozenset(names - {"max", "min"})
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise PlanError(
            f"the plan holds a damaged size expression {text[:80]!r}; build the model again"
        ) from error


def _compile(node: ast.expr) -> Evaluator:
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int(value)):
            return lambda _: value
        case ast.Name(id=name) if name not in {"max", "min"}:
            return lambda env: env[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _compile(operand)
            return lambda env: -inner(env)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _compile(left), _compile(right)
            if isinstance(op, ast.Add):
                return lambda env: a(env) + b(env)
            if isinstance(op, ast.Sub):
                return lambda env: a(env) - b(env)
            if isinstance(op, ast.Mult):
                return lambda env: a(env) * b(env)
            if isinstance(op, ast.FloorDiv):
                return lambda env: a(env) // b(env)
        case ast.Call(func=ast.Name(id=("max" | "min") as name), args=args, keywords=[]) if args:
            parts = [_compile(a) for a in args]
            choose = max if name == "max" else min
            return lambda env: choose(part(env) for part in parts)
    raise ValueError(ast.dump(node)[:80])
