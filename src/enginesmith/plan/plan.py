"""The plan: everything a runtime needs to run a model on one kind of machine, as frozen data.

For a GPU a plan's program is a list of kernel launches (`Plan.launches`). For a CPU it is one C
function (see `codegen/program.py`) in a freestanding shared object:

    int64_t es_run(void *pool, char *const *base, const int64_t *dims, int64_t *stamps)

base[b]: address of buffer b; dims[i]: value of `Plan.exprs[i]` at the current symbol values (sizes
and byte offsets); stamps: NULL, or room for len(steps)+1 time stamps in nanoseconds (profiling).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

FORMAT_VERSION = 5
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
    shared by lifetimes), "persistent" (a context's own, kept between runs; zeros for new sizes),
    "host" (no memory: the address of the function that runs `Plan.hosts[index]`; CPUs alone).
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
class Matrices:
    """Column-major matrices as a library takes them: columns of `rows` dense elements, `leading`
    elements apart; matrices `stride` elements apart (0: one for all). Sizes are ints or expressions
    over the plan's symbols. alignment: bytes that the address is a multiple of."""

    dtype: str
    rows: int | str
    columns: int | str
    leading: int | str
    stride: int | str
    alignment: int


@dataclass(frozen=True, slots=True)
class Product:
    """`count` products of matrices, as cuBLASLt computes them:

        d = activation(scale * op(a) @ op(b) + c + bias)

    op: transposed where `transposed` (of a, b) says so. Sums are float32's. added: there is a c of
    d's type (else c is d, and isn't read); biased: there is a bias, a dense vector of d's type with
    an element per row of d; activation: "none", "relu" or "gelu" (by tanh); tf32: float32 factors
    may be rounded to TF32.
    """

    count: int | str
    a: Matrices
    b: Matrices
    c: Matrices
    d: Matrices
    transposed: tuple[bool, bool]
    scale: float
    added: bool
    biased: bool
    activation: str
    tf32: bool

    @property
    def empty(self) -> bool:
        """There is nothing to compute (of sizes that are ints)."""
        return 0 in (self.count, self.d.rows, self.d.columns)

    def sized(self, size: Callable[[int | str], int | str]) -> Product:
        """The same with every size replaced by size(it)."""

        def matrices(m: Matrices) -> Matrices:
            rows, columns, leading, stride = map(size, (m.rows, m.columns, m.leading, m.stride))
            return Matrices(m.dtype, rows, columns, leading, stride, m.alignment)

        a, b, c, d = map(matrices, (self.a, self.b, self.c, self.d))
        return replace(self, count=size(self.count), a=a, b=b, c=c, d=d)


@dataclass(frozen=True, slots=True)
class Images:
    """An (n, c, h, w) tensor as cuDNN takes it: sizes and strides in elements, ints or expressions
    over the plan's symbols. alignment: bytes that the address is a multiple of."""

    dtype: str
    sizes: tuple[int | str, ...]
    strides: tuple[int | str, ...]
    alignment: int


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution as cuDNN computes it:

        y = activation(conv(x, w) + added[0] + added[1] + ...)

    w: (output channels, input channels of a group, h, w). Sums are float32's. added: broadcast
    where their size is 1. pads: top, left, bottom, right. activation: see ACTIVATIONS; tf32:
    float32 factors may be rounded to TF32.
    """

    x: Images
    w: Images
    added: tuple[Images, ...]
    y: Images
    pads: tuple[int, int, int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    activation: str
    tf32: bool

    @property
    def operands(self) -> tuple[Images, ...]:
        """All tensors, in the order of `LibraryCall.operands`."""
        return (self.x, self.w, *self.added, self.y)

    @property
    def empty(self) -> bool:
        """There is nothing to compute (of sizes that are ints)."""
        return 0 in self.y.sizes

    def sized(self, size: Callable[[int | str], int | str]) -> Convolution:
        """The same with every size replaced by size(it)."""

        def images(m: Images) -> Images:
            return replace(
                m, sizes=tuple(map(size, m.sizes)), strides=tuple(map(size, m.strides))
            )  # fmt: skip

        x, w, *added, y = map(images, self.operands)
        return replace(self, x=x, w=w, added=tuple(added), y=y)


@dataclass(frozen=True, slots=True)
class LibraryCall:
    """A step's call of cuBLASLt (a product) or cuDNN (a convolution). It comes before the step's
    launches.

    operands: where a, b, c, d and perhaps the bias lie, or x, w, what is added, and y; workspace:
    at most one. algorithm: what the library was told to use - cuBLASLt's 64 opaque bytes in
    hexadecimal; cuDNN's engine and its knobs, "38:2=1,9=3" - chosen by version `library` of it,
    with `reserved` bytes of workspace.
    """

    step: int
    operation: Product | Convolution
    operands: tuple[Address, ...]
    workspace: tuple[Address, ...]
    reserved: int
    algorithm: str
    library: int


@dataclass(frozen=True, slots=True)
class HostOperand:
    """A dense, plain array: where it lies, its numpy type, its shape (ints or expressions over the
    plan's symbols)."""

    place: Address
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class HostCall:
    """A step that `onnx.reference` computes on the host.

    operator: of ONNX; node: its NodeProto's bytes in base64, of version `opset` of the standard
    domain (see `runtime/host_node.py`). inputs, outputs: in the order of the node's names, those
    left out skipped.
    """

    step: int
    operator: str
    node: str
    opset: int
    inputs: tuple[HostOperand, ...]
    outputs: tuple[HostOperand, ...]


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
    """"fp32", "tf32" (fp32 whose products may be rounded to TF32), "fp16" or "bf16"."""
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
    calls: tuple[LibraryCall, ...] = ()
    """Those of its steps that a library computes."""
    hosts: tuple[HostCall, ...] = ()
    """Those of its steps that run on the host through `onnx.reference`."""
    modules: tuple[Module, ...] = ()
    """Where each kernel's machine code is, of a plan for a GPU."""
    sources: dict[str, str] = field(default_factory=dict)
    """Kernel name -> C or CUDA C++ text."""
    code: bytes = b""
    """The shared object, or the modules of a plan for a GPU one after the other."""
    weights: bytes | memoryview = b""
    """Packed constants; every one 64-byte aligned."""
    ptx: bytes | memoryview = b""
    """For newer GPUs: the PTX of every kernel (see `plan/ptx.py`); empty where none runs it."""
    graph: bytes | memoryview = b""
    """Of a plan with untuned steps: what tuning starts from (see `planner/carry.py`)."""
