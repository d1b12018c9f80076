"""The inverse of the printer: text -> Graph; printing the result gives the same text again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from enginesmith.ir import dims
from enginesmith.ir.expr import DTYPES, Arg, Call, Cast, Const, Expr
from enginesmith.ir.expr import OPS as EXPRESSIONS
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import OPS, Attrs
from enginesmith.ir.printer import constant_hash
from enginesmith.ir.types import Layout, TensorType

_NAME = re.compile(r'%("(?:[^"\\]|\\.)*"|[A-Za-z0-9_.:/\-]+(?<!:))')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_WORD = re.compile(r"[A-Za-z_]\w*")
_NUMBER = re.compile(r"-?(?:inf|nan|\d+(?:\.\d*)?(?:e[+-]?\d+)?)")
_HASH = re.compile(r"#([0-9a-f]{12})")
_TYPE = re.compile(r"(\w+)\[([^\[\]]*)\](?:@(?:c(\d+)(?:\+([\d,]+))?|(nhwc)|plain)(?::(\w+))?)?")
_DIM = re.compile(r"<([^<>]*)>")


def parse_graph(text: str, constants: Mapping[str, np.ndarray[Any, Any]] | None = None) -> Graph:
    """Read `print_graph`'s text. `constants`: arrays of the constants printed as hashes, by printed
    name (without %) or by hash. ValueError names the line and what is wrong with it."""
    reader = _GraphReader(constants or {})
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            reader.line(_Cursor(line.strip()))
        except (ValueError, TypeError, SyntaxError) as error:
            raise ValueError(f"line {number}: {error}: {line.strip()}") from error
    if reader.graph is None:
        raise ValueError("no graph in the text")
    return reader.graph


class _Cursor:
    """A position in one line."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def find(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Step over what `pattern` matches here, if it does."""
        match = pattern.match(self.text, self.at)
        if match is not None:
            self._advance(match.end())
        return match

    def need(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        match = self.find(pattern)
        if match is None:
            raise ValueError(f"{what} is missing at {self.text[self.at :][:20]!r}")
        return match

    def skip(self, sign: str) -> bool:
        if not self.text.startswith(sign, self.at):
            return False
        self._advance(self.at + len(sign))
        return True

    def sign(self, sign: str) -> None:
        if not self.skip(sign):
            raise ValueError(f"{sign!r} is missing at {self.text[self.at :][:20]!r}")

    def end(self) -> None:
        if self.at < len(self.text):
            raise ValueError(f"{self.text[self.at :]!r} is too much")

    def _advance(self, position: int) -> None:
        while position < len(self.text) and self.text[position] == " ":
            position += 1
        self.at = position

    def string(self) -> str:
        return str(json.loads(self.need(_STRING, "a string").group()))

    def name(self) -> str:
        text = self.need(_NAME, "a name").group(1)
        return str(json.loads(text)) if text.startswith('"') else text

    def type(self) -> TensorType:
        dtype, shape, block, halo, last, held = self.need(_TYPE, "a type").groups()
        if dtype not in DTYPES:
            raise ValueError(f"unknown element type {dtype}")
        top, left, bottom, right = map(int, halo.split(",")) if halo else (0, 0, 0, 0)
        layout = Layout(int(block or 0), (top, left, bottom, right), bool(last), held or "")
        return TensorType(dtype, tuple(dims.parse(d) for d in _split(shape)), layout)

    def sources(self) -> tuple[str, ...]:
        """`from "a", "b"`, or nothing."""
        names = []
        if self.skip("from"):
            names.append(self.string())
            while self.skip(","):
                names.append(self.string())
        return tuple(names)

    def typed_name(self) -> tuple[str, TensorType]:
        name = self.name()
        self.sign(":")
        return name, self.type()


def _split(text: str) -> list[str]:
    """Pieces between the commas outside parentheses."""
    pieces, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            pieces.append(text[start:i].strip())
            start = i + 1
    return [*pieces, text[start:].strip()] if text.strip() else []


class _GraphReader:
    def __init__(self, constants: Mapping[str, np.ndarray[Any, Any]]) -> None:
        self.constants = constants
        self.graph: Graph | None = None
        self.values: dict[str, Value] = {}

    def line(self, cursor: _Cursor) -> None:
        if self.graph is None:
            cursor.sign("graph")
            self.graph = Graph(cursor.string())
            cursor.sign("{")
        elif cursor.text.startswith("%"):
            self._node(self.graph, cursor)
        elif not cursor.skip("}"):
            self._declaration(self.graph, cursor)
        cursor.end()

    def _declaration(self, graph: Graph, cursor: _Cursor) -> None:
        kind = cursor.need(_WORD, "a word").group()
        if kind == "meta":
            key = cursor.string()
            cursor.sign("=")
            graph.metadata[key] = cursor.string()
        elif kind == "note":
            graph.notes.append(cursor.string())
        elif kind == "assume":
            left = cursor.need(_DIM, "a size").group(1)
            cursor.sign("=")
            right = cursor.need(_DIM, "a size").group(1)
            graph.assumptions.append((dims.parse(left), dims.parse(right), cursor.sources()))
        elif kind == "input":
            graph.inputs.append(self._define(*cursor.typed_name()))
        elif kind == "const":
            self._constant(cursor)
        elif kind == "output":
            graph.outputs.append(self._value(cursor))
        else:
            raise ValueError(f"unknown word {kind}")

    def _define(self, name: str, type_: TensorType) -> Value:
        if name in self.values:
            raise ValueError(f"%{name} is defined twice")
        self.values[name] = Value(name, type_)
        return self.values[name]

    def _value(self, cursor: _Cursor) -> Value:
        name = cursor.name()
        if name not in self.values:
            raise ValueError(f"%{name} isn't defined")
        return self.values[name]

    def _constant(self, cursor: _Cursor) -> None:
        value = self._define(*cursor.typed_name())
        printed = cursor.find(_HASH)
        if printed is None:
            cursor.sign("=")
            value.data = np.array(_attribute(cursor), value.dtype).reshape(value.shape)
            return
        digest = printed.group(1)
        data = self.constants.get(value.name, self.constants.get(digest))
        if data is None:
            raise ValueError(f"no data for the constant %{value.name}")
        if constant_hash(data) != digest:
            raise ValueError(f"the data for %{value.name} isn't what was printed")
        value.data = data

    def _node(self, graph: Graph, cursor: _Cursor) -> None:
        outputs = [self._define(*cursor.typed_name())]
        while cursor.skip(","):
            outputs.append(self._define(*cursor.typed_name()))
        cursor.sign("=")
        op = cursor.need(_WORD, "an operator").group()
        if op not in OPS:
            raise ValueError(f"unknown operator {op}")
        inputs = []
        cursor.sign("(")
        while not cursor.skip(")"):
            inputs.append(self._value(cursor))
            cursor.skip(",")
        given: dict[str, Any] = {}
        if cursor.skip("{"):
            while not cursor.skip("}"):
                key = cursor.need(_WORD, "an attribute").group()
                cursor.sign("=")
                given[key] = _attribute(cursor)
                cursor.skip(",")
        graph.nodes.append(Node(op, inputs, outputs, _attrs(op, given), cursor.sources()))


def _attrs(op: str, given: dict[str, Any]) -> Attrs:
    kind = OPS[op].attrs
    unknown = sorted(set(given) - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"{op} has no attribute {', '.join(unknown)}")
    return kind(**given)  # type: ignore[no-any-return]


def _attribute(cursor: _Cursor) -> Any:
    if cursor.skip("["):
        items = []
        while not cursor.skip("]"):
            items.append(_attribute(cursor))
            cursor.skip(",")
        return tuple(items)
    if cursor.skip("`"):
        tree = _expression(cursor)
        cursor.sign("`")
        return tree
    dim = cursor.find(_DIM)
    if dim is not None:
        return dims.parse(dim.group(1))
    if cursor.text.startswith('"', cursor.at):
        return cursor.string()
    return _scalar(cursor)


def _scalar(cursor: _Cursor) -> Any:
    """A number, True, False or None."""
    for word, value in (("True", True), ("False", False), ("None", None)):
        if cursor.skip(word):
            return value
    text = cursor.need(_NUMBER, "a value").group()
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _expression(cursor: _Cursor) -> Expr:
    if cursor.skip("$"):
        return Arg(int(_scalar(cursor)))
    word = _WORD.match(cursor.text, cursor.at)
    if word is None or word.group() in ("True", "False", "inf", "nan"):
        value = _scalar(cursor)
        if cursor.skip(":"):
            return Const(value, cursor.need(_WORD, "a type").group())
        return Const(value)
    name = cursor.need(_WORD, "an operator").group()
    cursor.sign("(")
    operands = []
    while not cursor.skip(")"):
        operands.append(_expression(cursor))
        cursor.skip(",")
    if name in DTYPES:
        (operand,) = operands
        return Cast(name, operand)
    if name not in EXPRESSIONS or len(operands) != EXPRESSIONS[name].arity:
        raise ValueError(f"no operator {name} of {len(operands)} operands")
    return Call(name, tuple(operands))
