"""Frozen dataclasses <-> JSON values, checked against the type annotations.

Serves int, float, str, bool, None, unions of these, tuples, dict[str, X], dataclasses of them, and
unions of dataclasses, which their fields' names tell apart.
What JSON holds is never trusted: every mismatch is a PlanError that says where.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from enginesmith.errors import PlanError

Decoder = Callable[[Any, str], Any]


def encode(value: Any) -> Any:
    """A value JSON can write: dataclasses become objects, tuples become lists."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """`value`, as json.loads gave it, as a `kind`. `where` names it if it misfits: PlanError."""
    return decoder(kind)(value, where)


@lru_cache(maxsize=256)
def decoder(kind: Any) -> Decoder:
    """The function that checks and converts JSON values to `kind`."""
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _object(kind)
    if origin is tuple:
        return _list(args[0]) if args[-1] is Ellipsis else _tuple(args)
    if origin is dict:
        return _dict(args[1])
    choices = args if origin in {Union, types.UnionType} else (kind,)
    if all(is_dataclass(choice) for choice in choices):
        return _one_of(choices)
    return _scalar(tuple(choices))


def _scalar(kinds: tuple[type, ...]) -> Decoder:
    name = " or ".join("null" if k is types.NoneType else k.__name__ for k in kinds)
    accepted = frozenset(kinds)

    def check(value: Any, where: str) -> Any:
        if type(value) in accepted:
            return value
        if float in accepted and type(value) is int:
            return float(value)
        raise _misfit(where, name, value)

    return check


def _list(kind: Any) -> Decoder:
    item = decoder(kind)

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list):
            raise _misfit(where, "list", value)
        return tuple(item(part, where) for part in value)

    return check


def _tuple(kinds: tuple[Any, ...]) -> Decoder:
    items = [decoder(k) for k in kinds]

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list) or len(value) != len(items):
            raise _misfit(where, f"list of {len(items)}", value)
        return tuple(item(part, where) for item, part in zip(items, value, strict=True))

    return check


def _dict(kind: Any) -> Decoder:
    item = decoder(kind)

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _misfit(where, "object", value)
        return {key: item(part, f"{where}[{key!r}]") for key, part in value.items()}

    return check


def _object(kind: type) -> Decoder:
    hints = get_type_hints(kind)
    parts = {f.name: decoder(hints[f.name]) for f in fields(kind)}

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, dict):
            raise _misfit(where, "object", value)
        if value.keys() != parts.keys():
            odd = sorted(value.keys() ^ parts.keys())
            raise PlanError(
                f"the plan is damaged: {where} lacks or can't have {odd}; build the model again"
            )
        return kind(**{key: part(value[key], f"{where}.{key}") for key, part in parts.items()})

    return check


def _one_of(kinds: tuple[Any, ...]) -> Decoder:
    by_fields = {frozenset(f.name for f in fields(kind)): decoder(kind) for kind in kinds}

    def check(value: Any, where: str) -> Any:
        names = frozenset(value) if isinstance(value, dict) else frozenset()
        found = by_fields.get(names)
        if found is None:
            raise _misfit(where, " or ".join(kind.__name__ for kind in kinds), value)
        return found(value, where)

    return check


def _misfit(where: str, expected: str, value: Any) -> PlanError:
    return PlanError(
        f"the plan is damaged: {where} should be {expected}, but is {type(value).__name__}; "
        "build the model again"
    )
