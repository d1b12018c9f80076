"""From what the user named (a plan or a model) to an engine, and arrays to feed it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import click
import numpy as np

from enginesmith.errors import EnginesmithError
from enginesmith.plan.expression import compile_expression
from enginesmith.plan.plan import Plan, TensorSpec

if TYPE_CHECKING:
    from enginesmith.runtime.engine import Engine

MODEL_SUFFIXES = {".onnx", ".onnxtxt", ".textproto", ".pb", ".pbtxt"}


def is_model(path: Path) -> bool:
    """Whether the file is an ONNX model by its name; everything else is taken for a plan."""
    return path.suffix.lower() in MODEL_SUFFIXES


def load_engine(path: Path, threads: int | None = None, **build_arguments: Any) -> Engine:
    """The engine of a plan, or of a model, which is built first with progress shown."""
    import enginesmith as es
    from enginesmith.cli.display import progress_bars

    if not is_model(path):
        return es.load(path, threads=threads)
    with progress_bars() as listener:
        return es.build(path, threads=threads, progress=listener, **build_arguments)


def optimal_symbols(plan: Plan) -> dict[str, int]:
    """Every symbol's value the plan was tuned for."""
    return {symbol.name: symbol.opt for symbol in plan.symbols}


def evaluate(size: int | str, symbols: Mapping[str, int]) -> int:
    """A size of the plan at these symbol values."""
    return compile_expression(size)(symbols)


def shape_at(spec: TensorSpec, symbols: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input or output at these symbol values."""
    return tuple(evaluate(dim, symbols) for dim in spec.shape)


def check_names(plan: Plan, names: Iterable[str]) -> None:
    """UsageError if the model has no input of one of these names."""
    known = [spec.name for spec in plan.inputs]
    for name in names:
        if name not in known:
            raise click.UsageError(
                f"the model has no input {name!r}; its inputs are {', '.join(known)}"
            )


def symbols_of_shapes(plan: Plan, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The symbol values that give the inputs these shapes; those not named keep the tuned values.

    UsageError for an unknown input, a wrong rank or two values for one symbol.
    """
    check_names(plan, shapes)
    inputs = {spec.name: spec for spec in plan.inputs}
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        spec = inputs[name]
        if len(shape) != len(spec.shape):
            raise click.UsageError(
                f"input {name!r} has {len(spec.shape)} dims {spec.shape}, not {len(shape)}"
            )
        for dim, value in zip(spec.shape, shape, strict=True):
            if isinstance(dim, str) and dim.isidentifier():
                if found.setdefault(dim, value) != value:
                    raise click.UsageError(f"dim {dim!r} is given as {found[dim]} and {value}")
            elif isinstance(dim, int) and dim != value:
                raise click.UsageError(f"input {name!r} is fixed to {spec.shape}, not {shape}")
    return optimal_symbols(plan) | found


def random_feeds(plan: Plan, symbols: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays for every input: normal floats; integers 0 or 1, which are valid indices anywhere."""
    random = np.random.default_rng(seed)
    return {spec.name: _random(spec.dtype, shape_at(spec, symbols), random) for spec in plan.inputs}


def _random(dtype: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file. EnginesmithError if it is none."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EnginesmithError(f"can't read {path} as a .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise EnginesmithError(f"{path} holds several arrays; save the one to feed with numpy.save")
    return array


def read_samples(paths: Iterable[Path]) -> list[dict[str, np.ndarray]]:
    """The arrays by name of each .npz file, and of all .npz files of a folder by name.
    EnginesmithError lists what can't be read."""
    samples: list[dict[str, np.ndarray]] = []
    problems: list[str] = []
    for path in paths:
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not files:
            problems.append(f"the folder {path} holds no .npz file; write them with numpy.savez")
        for file in files:
            try:
                samples.append(_read_sample(file))
            except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
                problems.append(f"can't read {file} as a .npz file of arrays: {error}")
    if problems:
        raise EnginesmithError("\n".join(problems))
    return samples


def _read_sample(path: Path) -> dict[str, np.ndarray]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise ValueError("it holds one array without a name; save it with numpy.savez")
    with loaded as arrays:
        return dict(arrays)
