"""What must hold in a plan beyond the types of its fields, checked when one is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable

from enginesmith.errors import PlanError
from enginesmith.plan.expression import names_of
from enginesmith.plan.plan import (
    Address,
    Convolution,
    HostCall,
    KernelLaunch,
    LibraryCall,
    Plan,
    Product,
)

DTYPES = frozenset(
    {
        "float16", "float32", "float64", "bool",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    }
)  # fmt: skip
"""Element types of inputs and outputs, by numpy name."""

FACTORS = frozenset({"float16", "bfloat16", "float32"})
"""Element types of the matrices of library calls."""

ACTIVATIONS = frozenset({"none", "relu", "gelu"})
"""Of products by a library."""

CONVOLVED = ACTIVATIONS | {"gelu_erf", "sigmoid", "swish", "tanh"}
"""The same of convolutions: gelu is by tanh, gelu_erf by erf; swish is x * sigmoid(x)."""


ENGINE = "[0-9]{1,4}:([0-9]{1,4}=-?[0-9]{1,9}(,[0-9]{1,4}=-?[0-9]{1,9})*)?"
"""What cuDNN was told to use: an engine's number, and values of its knobs."""


def validate(plan: Plan) -> None:
    """PlanError unless the plan is consistent in itself. Steps' work estimates are not read."""
    symbols = [symbol.name for symbol in plan.symbols]
    _unique("symbol", symbols)
    for symbol in plan.symbols:
        if not 0 <= symbol.min <= symbol.opt or (symbol.max or symbol.opt) < symbol.opt:
            raise _damaged(f"the range of symbol {symbol.name!r} is empty")
    for role, specs in (("input", plan.inputs), ("output", plan.outputs)):
        _unique(role, [spec.name for spec in specs])
        for spec in specs:
            if spec.dtype not in DTYPES:
                raise _damaged(f"{role} {spec.name!r} has the unknown type {spec.dtype!r}")
            _known(spec.shape, symbols, f"{role} {spec.name!r}")
    _known((*plan.exprs, plan.scratch), symbols, "the program")
    for constraint in plan.constraints:
        _known((constraint.left, constraint.right), symbols, "a constraint")
    counts = {"input": len(plan.inputs), "output": len(plan.outputs), "weights": 1}
    counts["host"] = len(plan.hosts)
    for i, buffer in enumerate(plan.buffers):
        where = f"buffer {i}"
        _known((buffer.size,), symbols, where)
        if buffer.kind == "arena":
            if not 0 <= buffer.first <= buffer.last:
                raise _damaged(f"{where} lives from {buffer.first} to {buffer.last}")
        elif buffer.kind == "persistent":
            continue
        elif not 0 <= buffer.index < counts.get(buffer.kind, 0):
            raise _damaged(f"{where} is {buffer.kind!r} number {buffer.index}")
        if buffer.slack < 0 or (buffer.kind == "weights" and buffer.slack):
            raise _damaged(f"{where} has a slack of {buffer.slack}")
    for i, launch in enumerate(plan.launches):
        _launch(plan, launch, symbols, f"launch {i}")
    for i, call in enumerate(plan.calls):
        _call(plan, call, symbols, f"call {i}")
    for i, host in enumerate(plan.hosts):
        _host(plan, host, symbols, f"host step {i}")
    for module in plan.modules:
        if not 0 <= module.offset <= module.offset + module.size <= len(plan.code):
            raise _damaged(f"the code of {module.kernel!r} lies outside of the plan's")


def _launch(plan: Plan, launch: KernelLaunch, symbols: list[str], where: str) -> None:
    if not 0 <= launch.step < len(plan.steps):
        raise _damaged(f"{where} belongs to step {launch.step}")
    kernel = plan.steps[launch.step].kernel
    if kernel not in {m.kernel for m in plan.modules} or not launch.kernel.startswith(kernel):
        raise _damaged(f"{where} runs {launch.kernel!r}, which the plan doesn't hold")
    if not 1 <= launch.threads <= 1024 or not 0 <= launch.shared <= 1 << 18:
        raise _damaged(f"{where} has {launch.threads} threads, {launch.shared} bytes shared")
    if not all(1 <= size <= 16 for size in launch.cluster):
        raise _damaged(f"{where} has clusters of {launch.cluster}")
    _known((*launch.grid, *launch.values), symbols, where)
    for spec in launch.maps:
        _known((*spec.sizes, *spec.strides), symbols, where)
        if not 1 <= len(spec.sizes) == len(spec.box) == len(spec.steps) <= 5:
            raise _damaged(f"{where} has a tensor map of {len(spec.sizes)} sizes")
        if len(spec.strides) != len(spec.sizes) - 1:
            raise _damaged(f"{where} has a tensor map of {len(spec.strides)} strides")
    addresses: list[Address] = [*launch.pointers, *(spec.base for spec in launch.maps)]
    _known((a.offset for a in addresses), symbols, where)
    if not all(0 <= a.buffer < len(plan.buffers) for a in addresses):
        raise _damaged(f"{where} uses a buffer that the plan doesn't have")


def _call(plan: Plan, call: LibraryCall, symbols: list[str], where: str) -> None:
    if not 0 <= call.step < len(plan.steps):
        raise _damaged(f"{where} belongs to step {call.step}")
    if isinstance(call.operation, Product):
        operands, algorithm = _product(call.operation, symbols, where), "[0-9a-f]{128}"
    else:
        operands, algorithm = _convolution(call.operation, symbols, where), ENGINE
    if len(call.operands) != operands or len(call.workspace) != (call.reserved > 0):
        raise _damaged(f"{where} lacks an operand or its workspace")
    if not (re.fullmatch(algorithm, call.algorithm) and call.reserved >= 0):
        raise _damaged(f"{where} has no valid algorithm")
    places = (*call.operands, *call.workspace)
    _known((a.offset for a in places), symbols, where)
    if not all(0 <= a.buffer < len(plan.buffers) for a in places):
        raise _damaged(f"{where} uses a buffer that the plan doesn't have")


def _product(product: Product, symbols: list[str], where: str) -> int:
    """How many operands it has."""
    if product.activation not in ACTIVATIONS:
        raise _damaged(f"{where} has the unknown activation {product.activation!r}")
    for matrices in (product.a, product.b, product.c, product.d):
        sizes = (matrices.rows, matrices.columns, matrices.leading, matrices.stride)
        _known((*sizes, product.count), symbols, where)
        _operand(matrices.dtype, matrices.alignment, where)
    return 4 + product.biased


def _convolution(convolution: Convolution, symbols: list[str], where: str) -> int:
    """How many operands it has."""
    if convolution.activation not in CONVOLVED:
        raise _damaged(f"{where} has the unknown activation {convolution.activation!r}")
    if min(*convolution.pads, 0) < 0 or min(*convolution.strides, *convolution.dilations) < 1:
        raise _damaged(f"{where} has impossible pads, strides or dilations")
    for images in convolution.operands:
        _known((*images.sizes, *images.strides), symbols, where)
        if not len(images.sizes) == len(images.strides) == 4:
            raise _damaged(f"{where} has an operand of {len(images.sizes)} sizes")
        _operand(images.dtype, images.alignment, where)
    return len(convolution.operands)


def _operand(dtype: str, alignment: int, where: str) -> None:
    if dtype not in FACTORS or not 0 < alignment <= 1 << 16:
        raise _damaged(f"{where} has an operand of {dtype!r}, aligned to {alignment} bytes")


def _host(plan: Plan, host: HostCall, symbols: list[str], where: str) -> None:
    """The step's operands; its node is checked where it would run (`runtime/host_node.py`)."""
    if not 0 <= host.step < len(plan.steps):
        raise _damaged(f"{where} belongs to step {host.step}")
    if not host.outputs:
        raise _damaged(f"{where} has no outputs")
    for operand in (*host.inputs, *host.outputs):
        if operand.dtype not in DTYPES:
            raise _damaged(f"{where} has an operand of the unknown type {operand.dtype!r}")
        _known((*operand.shape, operand.place.offset), symbols, where)
        if not 0 <= operand.place.buffer < len(plan.buffers):
            raise _damaged(f"{where} uses a buffer that the plan doesn't have")
    if any(plan.buffers[o.place.buffer].kind in ("weights", "host") for o in host.outputs):
        raise _damaged(f"{where} writes what must not change")


def _unique(role: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise _damaged(f"two of {role}s {names} have the same name")


def _known(sizes: Iterable[int | str], symbols: list[str], where: str) -> None:
    for size in sizes:
        unknown = names_of(size).difference(symbols)
        if unknown:
            raise _damaged(f"{where} uses unknown symbols {sorted(unknown)}")


def _damaged(reason: str) -> PlanError:
    return PlanError(f"the plan is damaged: {reason}; build the model again")
