"""Option types: NAME=1x3x224x224, profiles, durations; and options several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

if TYPE_CHECKING:
    ParamType: TypeAlias = click.ParamType[Any, Any]
else:  # not subscriptable before click 8.2
    ParamType = click.ParamType

Shape: TypeAlias = tuple[int, ...]
SymbolicShape: TypeAlias = tuple[int | str, ...]
Command = TypeVar("Command", bound=Callable[..., Any])

UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_dims(text: str) -> Shape:
    """`1x3x224x224` (or with commas; `scalar` for no dims) as integers. ValueError if it is not."""
    if text == "scalar":
        return ()
    if not re.fullmatch(r"\d+([x,]\d+)*", text):
        raise ValueError(f"{text!r} is no shape; write it like 1x3x224x224")
    return tuple(map(int, re.split("[x,]", text)))


def parse_symbolic_dims(text: str) -> SymbolicShape:
    """Like `parse_dims`, and with commas a dim may be a name: `batch,3,h,w`."""
    parts = text.split(",")
    if len(parts) > 1 and all(p.isdecimal() or p.isidentifier() for p in parts):
        return tuple(int(p) if p.isdecimal() else p for p in parts)
    return parse_dims(text)


class Named(ParamType):
    """NAME=VALUE as a pair; `name` may hold '=' no more than once."""

    name = "name=value"

    def split(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        key, sign, rest = str(value).partition("=")
        if not (key and sign and rest):
            self.fail(f"{value!r} is not of the form NAME=VALUE", param, ctx)
        return key, rest

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        return value if isinstance(value, tuple) else self.split(value, param, ctx)


class NamedShape(Named):
    """x=1x3x224x224 -> ("x", (1, 3, 224, 224))."""

    name = "name=dims"
    parse: Callable[[str], SymbolicShape] = staticmethod(parse_dims)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        key, rest = self.split(value, param, ctx)
        try:
            return key, self.parse(rest)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NamedSymbolicShape(NamedShape):
    """x=1x3x224x224, or x=batch,3,224,224 with symbolic dims by name."""

    parse = staticmethod(parse_symbolic_dims)


class NamedProfile(Named):
    """x=MIN:OPT:MAX -> ("x", (min, opt, max)); all three of one rank, ascending."""

    name = "name=min:opt:max"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        key, rest = self.split(value, param, ctx)
        try:
            shapes = tuple(map(parse_dims, re.split(r":|\.\.", rest)))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if len(shapes) != 3 or len({len(shape) for shape in shapes}) != 1:
            self.fail(f"{rest!r} is not three shapes of one rank, MIN:OPT:MAX", param, ctx)
        for axis, (low, best, high) in enumerate(zip(*shapes, strict=True)):
            if not low <= best <= high:
                self.fail(f"dim {axis} of {rest!r} is not min <= opt <= max", param, ctx)
        return key, shapes


class Names(ParamType):
    """cuda,triton -> ("cuda", "triton")."""

    name = "names"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, tuple):
            return value
        return tuple(name.strip() for name in str(value).split(","))


class Duration(ParamType):
    """60s, 2m, 500ms, 1.5 (seconds) -> seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|min|m|h)?", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration; write it like 60s, 2m or 500ms", param, ctx)
        return float(match[1]) * UNITS[match[2] or ""]


def example(*lines: str) -> str:
    """The epilog of a command's help."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def target_options(command: Command) -> Command:
    """--target and --precision: what a model is built for."""
    for option in reversed(
        (
            click.option("--target", default="cpu", show_default=True, metavar="DEVICE[:ISA]",
                         help="cpu or cuda (this machine's best), or cpu:avx2, cpu:avx512, "
                              "cuda:sm_80, cuda:sm_90, ..."),
            click.option("--precision", default="fp32", show_default=True, metavar="TYPE",
                         help="fp32; on GPUs also fp16 and bf16."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def build_options(command: Command) -> Command:
    """--target, --precision, --shape and --profile: what is built."""
    for option in reversed(
        (
            click.option("--shape", "shapes", type=NamedSymbolicShape(), multiple=True,
                         help="Fix an input's shape: x=1x3x224x224; with commas, dims may be "
                              "symbols: x=batch,3,224,224. May be repeated."),
            click.option("--profile", "profiles", type=NamedProfile(), multiple=True,
                         help="Bound an input's shape and say which to tune for: "
                              "x=1x3x32x32:1x3x640x640:8x3x960x960. May be repeated."),
        )
    ):  # fmt: skip
        command = option(command)
    return target_options(command)


def threads_option(command: Command) -> Command:
    """--threads."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Threads to run with; all cores this process may use if absent.",
    )(command)


def host_option(command: Command) -> Command:
    """--no-host-steps."""
    return click.option(
        "--no-host-steps", "host_steps", is_flag=True, flag_value=False, default=True,
        help="Refuse nodes that have no kernel instead of running them on the host.",
    )(command)  # fmt: skip


def sources_option(command: Command) -> Command:
    """--tactic-sources."""
    return click.option(
        "--tactic-sources",
        type=Names(),
        metavar="NAME,...",
        help="What GPU kernels may come from: cuda (our own), triton, cublaslt, cudnn. If absent: "
        "our own on sm_90, elsewhere all that are installed but cudnn; `enginesmith doctor` lists "
        "them.",
    )(command)


def merge_shapes(
    shapes: tuple[tuple[str, SymbolicShape], ...],
    profiles: tuple[tuple[str, tuple[Shape, ...]], ...],
) -> dict[str, Any]:
    """The `shapes` argument of es.build. UsageError if an input is named twice."""
    merged: dict[str, Any] = {}
    for name, value in (*shapes, *profiles):
        if name in merged:
            raise click.UsageError(f"the shape of input {name!r} is given twice")
        merged[name] = value
    if profiles:
        from enginesmith import Profile

        merged |= {name: Profile(*bounds) for name, bounds in profiles}
    return merged
