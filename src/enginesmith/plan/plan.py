"""The plan: everything a runtime needs to run a model on one kind of machine, as frozen data.

For a GPU a plan's program is a list of kernel launches (`Plan.launches`). For a CPU it is one C
function (see `codegen/program.py`) in a freestanding shared object:

    int64_t es_run(void *pool, char *const *base, const int64_t *dims, int64_t *stamps)

base[b]: address of buffer b; dims[i]: value of `Plan.exprs[i]` at the current symbol values (sizes
and byte offsets); stamps: NULL, or room for len(steps)+1 time stamps in nanoseconds (profiling).
"""

from __future__ import annotations

from dataclasses import dataclass, field

FORMAT_VERSION = 2
"""Raised on every incompatible change; a runtime reads plans of its own version alone."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output: `dtype` is a numpy name; a dim is an int or the text of an expression
    over the plan's symbols (`batch`, `(h + 1)//2`)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class SymbolRange:
    """The values a symbolic dim may take (inclusive; `max` None: no limit) and the one tuned
    for."""

    name: str
    min: int
    opt: int
    max: int | None


@dataclass(frozen=True, slots=True)
class Constraint:
    """Two sizes the model takes to be equal (expressions over the symbols). `nodes`: the ONNX nodes
    that need it. Shapes that break it are refused."""

    left: int | str
    right: int | str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory the program uses.

    kind: "input" (index = position among the inputs), "output" (same), "weights" (one, the
    memory-mapped blob), "arena" (alive from step `first` to step `last`, inclusive; storage is
    shared by lifetimes), "persistent" (a context's own, kept between runs; zeros for new sizes).
    size: bytes, an int or an expression over the symbols.
    slack: bytes that may be read (never written) before and after it.
    """

    kind: str
    size: int | str
    index: int = 0
    first: int = 0
    last: int = 0
    slack: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel launch of the program.

    op, problem: what is computed (text); tactic: the winner; kernel: key of Plan.sources;
    nodes: the ONNX nodes it came from; flops, bytes: useful work and least traffic (expressions
    over the symbols); timings: (tactic, seconds) of all that were timed, winner first ("seconds" at
    opt).
    """

    op: str
    problem: str
    tactic: str
    kernel: str
    nodes: tuple[str, ...]
    flops: int | str
    bytes: int | str
    timings: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Address:
    """A place in a buffer: its number, and a byte offset (an int or an expression)."""

    buffer: int
    offset: int | str


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A tensor map of what lies at `base` (see kernels/cuda.py::TensorMap)."""

    base: Address
    dtype: str
    sizes: tuple[int | str, ...]
    strides: tuple[int | str, ...]
    box: tuple[int, ...]
    swizzle: int
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KernelLaunch:
    """One kernel launch on a GPU, for step number `step`.

    kernel: its function, in the module of its step's `kernel`; grid, threads, shared, cluster: its
    geometry; pointers, values, maps: its parameters, in this order (values are 32-bit ints). Sizes
    are ints or expressions over the plan's symbols. A launch with an empty grid is left out.
    """

    step: int
    kernel: str
    grid: tuple[int | str, int | str, int | str]
    threads: int
    shared: int
    cluster: tuple[int, int, int]
    pointers: tuple[Address, ...]
    values: tuple[int | str, ...]
    maps: tuple[MapSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Module:
    """The machine code of one kernel: `size` bytes of Plan.code from `offset` on."""

    kernel: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A built model. Saved and loaded by `plan/file.py`, run by `runtime/`."""

    name: str
    target: str
    precision: str
    symbols: tuple[SymbolRange, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    exprs: tuple[int | str, ...]
    buffers: tuple[Buffer, ...]
    steps: tuple[Step, ...]
    scratch: int | str
    """Bytes of scratch per thread."""
    constraints: tuple[Constraint, ...] = ()
    notes: tuple[str, ...] = ()
    """What the user should know: fusions made, fallbacks taken, what is untuned."""
    producer: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    """The ONNX model's metadata_props."""
    launches: tuple[KernelLaunch, ...] = ()
    """The program of a plan for a GPU."""
    modules: tuple[Module, ...] = ()
    """Where each kernel's machine code is, of a plan for a GPU."""
    sources: dict[str, str] = field(default_factory=dict)
    """Kernel name -> C or CUDA C++ text."""
    code: bytes = b""
    """The shared object, or the modules of a plan for a GPU one after the other."""
    weights: bytes | memoryview = b""
    """Packed constants; every one 64-byte aligned."""
