"""Where every value lives: which storage, at what offset, with what strides.

Most data movement vanishes here. A concat's inputs are written straight into its memory, a concat
whose inputs are a prefix of a later one's shares that one's memory (DenseNet), and reshapes, slices
and, for readers that take any strides, transposes and expands are views. What remains is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from enginesmith.ir import dims
from enginesmith.ir.dims import Dim, Shape
from enginesmith.ir.graph import Graph, Node, Value
from enginesmith.ir.ops import (
    ConcatAttrs,
    ConvAttrs,
    ConvTransposeAttrs,
    LayoutAttrs,
    SliceAttrs,
    TransposeAttrs,
)
from enginesmith.ir.strides import Stride, dense, natural, reshaped
from enginesmith.ir.types import PLAIN, TensorType
from enginesmith.kernels.base import ITEMSIZE

STRIDED_READERS = frozenset({"matmul", "attention"})
"""Operators whose own operands may have any strides at no cost."""

STRIDED_WRITERS = frozenset({"matmul", "attention"})
"""Operators whose rows of results may lie anywhere at no cost (where kernels take strides)."""

SEEN = frozenset({"reshape", "slice", "transpose"})
"""Operators that may be another look at their input's memory."""

Halo = tuple[int, int, int, int]


@dataclass(eq=False, slots=True)
class Storage:
    """One piece of memory. kind: arena, input, output (index: which one) or weights.

    shape, block, halo, channels_last: geometry of the value it was made for; first..last: steps it
    is alive."""

    kind: str
    dtype: str
    shape: Shape
    block: int
    index: int = 0
    halo: Halo = (0, 0, 0, 0)
    channels_last: bool = False
    first: int = 1 << 30
    last: int = -1

    def plane(self) -> tuple[Dim, Dim]:
        """Height and width of a blocked plane with its halo."""
        top, left, bottom, right = self.halo
        return dims.simplify(self.shape[2] + top + bottom), dims.simplify(
            self.shape[3] + left + right
        )

    def strides(self) -> tuple[Stride, ...]:
        if not self.block:
            return natural(self.shape, self.channels_last)
        height, width = self.plane()
        blocks = dims.ceildiv(self.shape[1], self.block)
        return (
            (blocks, height, width, self.block),
            (height, width, self.block),
            (width, self.block),
            (self.block,),
        )

    def elements(self) -> Dim:
        if not self.block:
            return dims.product(self.shape)
        return dims.product((self.shape[0], *self.strides()[0]))

    def origin(self) -> Dim:
        """Element offset of logical index 0 (behind the halo)."""
        if not self.block:
            return 0
        top, left, _, _ = self.halo
        return dims.simplify((top * self.plane()[1] + left) * self.block)

    def size(self) -> Dim:
        """Bytes."""
        return dims.simplify(self.elements() * ITEMSIZE[self.dtype])

    def touch(self, step: int) -> None:
        self.first, self.last = min(self.first, step), max(self.last, step)


@dataclass(frozen=True, slots=True)
class View:
    """A value's place: element `offset` from the storage's logical origin, and strides (per logical
    dim; for blocked values those of n, channel block, h, w)."""

    storage: Storage
    offset: Dim
    strides: tuple[Stride, ...]

    def is_dense(self, shape: Shape, channels_last: bool = False) -> bool:
        """Without gaps in this order (strides of size-1 dims don't matter)."""
        return all(
            d == 1 or dims.equal(dims.product(a), dims.product(b))
            for d, a, b in zip(shape, self.strides, natural(shape, channels_last), strict=True)
        )


@dataclass(eq=False, slots=True)
class Move:
    """A copy the program must make: `source` into `target`, seen with `shape` (logical)."""

    source: Value
    target: Value
    view: View
    """Where in the target's storage (geometry of the source's shape)."""
    channel: int = 0
    """First channel of `view` to write, for blocked pieces that start inside a block."""


@dataclass(eq=False, slots=True)
class ClearHalo:
    """Zeros to be written around the planes of a blocked storage, before its first use."""

    storage: Storage
    sources: tuple[str, ...]


PlannedStep = Node | Move | ClearHalo


@dataclass(slots=True)
class StoragePlan:
    """views: place of every non-constant value (by id); steps: what to run, in order."""

    views: dict[int, View] = field(default_factory=dict)
    steps: list[PlannedStep] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)

    def root_view(self, storage: Storage) -> View:
        """All of a storage."""
        return View(storage, 0, storage.strides())


def place(graph: Graph, strided: bool = False) -> StoragePlan:
    """Decide every value's place, the remaining copies and all lifetimes.

    strided: the target's kernels read and write operands of any strides (GPUs), so that more
    reshapes and transposes are views; which of them cost nothing is decided here."""
    return _Placer(graph, strided).run()


class _Placer:
    def __init__(self, graph: Graph, strided: bool) -> None:
        self.graph = graph
        self.strided = strided
        self.plan = StoragePlan()
        self.parent: dict[int, tuple[Value, int]] = {}
        """Value -> (concat output it is written into, position along the axis is offsets[...])."""
        self.offset: dict[int, Dim] = {}
        self.axis: dict[int, int] = {}
        self.prefix_of: dict[int, Value] = {}
        self.seen_as: dict[int, Node] = {}
        """Value -> the transpose or reshape in whose output's memory its producer writes."""

    def run(self) -> StoragePlan:
        for position, value in enumerate(self.graph.inputs):
            self.root(value, "input", position)
        for node in reversed(self.graph.nodes):
            if node.op == "concat":
                self.place_concat(node)
            elif self.written_elsewhere(node):
                self.seen_as[id(node.inputs[0])] = node
        for node in list(self.graph.nodes):
            self.visit(node)
        self.place_outputs()
        self.set_halos()
        self.clear_halos()
        self.set_lifetimes()
        return self.plan

    # -- concat in place --------------------------------------------------------------------------

    def place_concat(self, node: Node) -> None:
        attrs = node.attrs
        assert isinstance(attrs, ConcatAttrs)
        whole = node.output
        for reader in self.later_concats(node):
            if [id(v) for v in reader.inputs[: len(node.inputs)]] == [id(v) for v in node.inputs]:
                self.prefix_of[id(whole)] = reader.output
                return
        start: Dim = 0
        for value in node.inputs:
            if self.can_be_written_into(value, node, start):
                self.parent[id(value)] = (whole, attrs.axis)
                self.offset[id(value)] = start
            start = dims.simplify(start + value.shape[attrs.axis])

    def later_concats(self, node: Node) -> list[Node]:
        """Concats along the same axis that read this one's first input and more."""
        attrs, found = node.attrs, []
        if self.graph.is_output(node.output):
            return []
        for reader, slot in node.inputs[0].uses:
            longer = len(reader.inputs) > len(node.inputs)
            same = reader.attrs == attrs and reader.output.type.layout == node.output.type.layout
            if reader.op == "concat" and slot == 0 and longer and same:
                found.append(reader)
        return sorted(found, key=lambda n: len(n.inputs))

    def can_be_written_into(self, value: Value, concat: Node, start: Dim) -> bool:
        producer = value.producer
        if producer is None or id(value) in self.parent or self.graph.is_output(value):
            return False
        if producer.op == "host":  # which writes dense memory alone
            return False
        if producer.op in ("reshape", "slice", "transpose", "expand", "layout"):
            # A conversion can write anywhere; a view can't, but perhaps what it is a view of.
            if self.is_view(producer) and not self.can_be_seen_as(producer):
                return False
        if id(value) in self.prefix_of or sum(v is value for v in concat.inputs) > 1:
            return False
        layout = concat.output.type.layout
        if value.type.layout != layout:
            return False
        if layout.block:
            last = concat.inputs[-1] is value
            whole_blocks = last or dims.divisible(value.shape[1], layout.block)
            return dims.divisible(start, layout.block) and whole_blocks
        return True

    def can_be_seen_as(self, view: Node) -> bool:
        """Can the producer of a reshape's input write into the reshape's place?"""
        x = view.inputs[0]
        others = (*SEEN, "expand", "layout", "concat", "host")
        own = x.producer is not None and x.producer.op not in others
        if not self.strided or view.op != "reshape" or not own or not self.is_free(x):
            return False
        self.seen_as[id(x)] = view
        return True

    # -- views ------------------------------------------------------------------------------------

    def is_view(self, node: Node) -> bool:
        """Could this node be a view (decided by types alone; denseness is checked later)?"""
        out = node.outputs[0]
        match node.op:
            case "reshape" | "slice":
                return not isinstance(node.attrs, SliceAttrs) or all(
                    s > 0 for s in node.attrs.steps
                )
            case "layout":
                return self.same_memory(node)
            case "transpose":
                return self.strided or self.readers_take_strides(out)
            case "expand":
                return self.readers_take_strides(out) or all(
                    (reader.op == "pointwise" and not reader.output.type.layout.block)
                    or (reader.op == "attention" and self.strided)
                    for reader, _ in out.uses
                )
        return False

    def written_elsewhere(self, node: Node) -> bool:
        """Can the producer of a transpose's input write where the transpose would put it? If rows
        stay rows, strides cost the writer nothing."""
        attrs, x = node.attrs, node.inputs[0] if node.inputs else None
        if not self.strided or not isinstance(attrs, TransposeAttrs) or x is None:
            return False
        rows_stay = attrs.perm[-1] == len(attrs.perm) - 1
        own = x.producer is not None and x.producer.op in STRIDED_WRITERS
        return rows_stay and own and self.is_free(x)

    def is_free(self, value: Value) -> bool:
        """Its place is open, and it has one reader."""
        known = id(value) in self.parent or id(value) in self.prefix_of
        return not known and len(value.uses) == 1 and not self.graph.is_output(value)

    def readers_take_strides(self, value: Value) -> bool:
        """Is it read where strides cost nothing (or, by kernels of any strides, seen as such)?"""
        if self.graph.is_output(value) or not value.uses:
            return False
        return all(
            (n.op in STRIDED_READERS and slot < 3)
            or (self.strided and n.op in SEEN and self.readers_take_strides(n.output))
            for n, slot in value.uses
        )

    def same_memory(self, node: Node) -> bool:
        """Blocked and plain agree when planes are single pixels and channels fill their blocks (or
        there is one image and only the tail differs, which a plain reader never sees)."""
        x, y = node.inputs[0], node.output
        if self.strided:
            return True
        if x.type.rank != 4 or x.shape[2:] != (1, 1) or x.type.layout == y.type.layout:
            return False
        block = max(x.type.layout.block, y.type.layout.block)
        to_plain = bool(x.type.layout.block)
        if any(isinstance(n.attrs, ConvAttrs) and any(n.attrs.pads) for n, _ in y.uses):
            return False  # the reader needs zeros around the pixel
        return dims.divisible(x.shape[1], block) or (to_plain and x.shape[0] == 1)

    def view_of(self, value: Value) -> View:
        """The place of a value, following concats it is written into."""
        if (known := self.plan.views.get(id(value))) is not None:
            return known
        if (longer := self.prefix_of.get(id(value))) is not None:
            outer = self.view_of(longer)
            view = View(outer.storage, outer.offset, outer.strides)
        elif id(value) in self.parent:
            whole, axis = self.parent[id(value)]
            outer = self.view_of(whole)
            start = self.offset[id(value)]
            if value.type.layout.block:
                start = dims.floordiv(start, value.type.layout.block)
            shift = dims.simplify(outer.offset + start * dims.product(outer.strides[axis]))
            view = View(outer.storage, shift, outer.strides)
        elif (node := self.seen_as.get(id(value))) is not None:
            outer, y = self.view_of(node.output), node.output
            if isinstance(node.attrs, TransposeAttrs):
                perm = node.attrs.perm
                strides = tuple(outer.strides[perm.index(axis)] for axis in range(len(perm)))
            elif (back := reshaped(outer.strides, y.shape, value.shape)) is not None:
                strides = back
            else:  # not in its place in a concat: what is seen there is copied instead
                del self.seen_as[id(value)], self.parent[id(y)], self.plan.views[id(y)]
                return self.root(value, "arena", 0)
            view = View(outer.storage, outer.offset, strides)
        else:
            return self.root(value, "arena", 0)
        self.plan.views[id(value)] = view
        return view

    def root(self, value: Value, kind: str, index: int) -> View:
        layout = value.type.layout
        storage = Storage(
            kind, value.type.held, value.shape, layout.block, index,
            channels_last=layout.channels_last,
        )  # fmt: skip
        self.plan.storages.append(storage)
        view = View(storage, 0, storage.strides())
        self.plan.views[id(value)] = view
        return view

    def visit(self, node: Node) -> None:
        """Give the node's outputs a place; queue what must run."""
        if node.op == "concat":
            self.visit_concat(node)
            return
        if node.op in SEEN and self.seen_as.get(id(node.inputs[0])) is node:
            self.view_of(node.output)  # the producer has written it
            return
        if self.is_view(node) and id(node.output) not in self.parent:
            view = self.derived_view(node)
            if view is not None:
                self.plan.views[id(node.output)] = view
                return
        if node.op == "attention":
            self.make_rows_consecutive(node, 2)
        if node.op == "host":
            self.make_operands_dense(node)
        for output in node.outputs:
            self.view_of(output)
        if node.op in ("reshape", "slice", "transpose", "expand"):
            self.move(node)
        else:
            self.plan.steps.append(node)

    def make_rows_consecutive(self, node: Node, slot: int) -> None:
        """Copy an operand whose last axis has gaps: attention reads its values as vectors."""
        value = node.inputs[slot]
        if value.is_constant or dims.equal(dims.product(self.view_of(value).strides[-1]), 1):
            return
        self.copy_operand(node, slot, Value(f"{value.name}_rows", value.type))

    def make_operands_dense(self, node: Node) -> None:
        """Copy operands of a host step that have gaps or are held in another type: they go to the
        host as numpy arrays."""
        for slot, value in enumerate(node.inputs):
            if value.is_constant:
                continue
            view = self.view_of(value)
            own = view.storage.dtype == value.dtype and not view.storage.block
            if not own or not view.is_dense(value.shape):
                type_ = TensorType(value.dtype, value.shape)
                self.copy_operand(node, slot, Value(f"{value.name}_dense", type_))

    def copy_operand(self, node: Node, slot: int, copy: Value) -> None:
        """Let the node read a copy of an operand."""
        move = Node("layout", [node.inputs[slot]], [copy], LayoutAttrs(), node.sources)
        self.graph.insert_before(node, move)
        node.set_input(slot, copy)
        self.visit(move)

    def derived_view(self, node: Node) -> View | None:
        """The output as a view of the input, or None if its memory doesn't allow it."""
        x, y = node.inputs[0], node.output
        if x.is_constant:
            return None
        source = self.view_of(x)
        match node.attrs:
            case SliceAttrs(starts, steps):
                return sliced(source, x, starts, steps)
            case TransposeAttrs(perm):
                strides = tuple(source.strides[p] for p in perm)
                view = View(source.storage, source.offset, strides)
                free = self.readers_take_strides(y) or view.is_dense(
                    y.shape, y.type.layout.channels_last
                )
                return view if free else None
        if node.op == "expand":
            return View(source.storage, source.offset, expanded(source.strides, x.shape, y.shape))
        if node.op == "layout" and self.strided:
            same = source.is_dense(y.shape, y.type.layout.channels_last)
            same = same and source.storage.dtype == y.type.held
            return View(source.storage, source.offset, source.strides) if same else None
        if node.op == "layout":
            if x.type.layout.block and not source.storage.block:
                return None
            strides = _single_pixel_strides(source, x, y)
            return View(source.storage, source.offset, strides)
        if x.type.layout.block:
            return None
        if source.is_dense(x.shape):
            return View(source.storage, source.offset, dense(y.shape))
        seen = reshaped(source.strides, x.shape, y.shape) if self.strided else None
        return None if seen is None else View(source.storage, source.offset, seen)

    def move(self, node: Node) -> None:
        """A reshape, slice, transpose or expand that has to copy: the target is seen with the shape
        of the source's view (for a reshape, the input's own shape)."""
        x, y = node.inputs[0], node.output
        target = self.plan.views[id(y)]
        if node.op == "reshape":
            if target.is_dense(y.shape):
                seen = View(target.storage, target.offset, dense(x.shape))
                self.plan.steps.append(Move(x, y, seen))
                return
            raise NotImplementedError(f"reshape into strided memory: {node!r}")
        self.plan.steps.append(node)

    def visit_concat(self, node: Node) -> None:
        whole, attrs = node.output, node.attrs
        assert isinstance(attrs, ConcatAttrs)
        outer = self.view_of(whole)
        start: Dim = 0
        for value in node.inputs:
            placed = self.plan.views.get(id(value))
            step, channel, block = start, 0, whole.type.layout.block
            if block and dims.divisible(start, block):
                step = dims.floordiv(start, block)
            elif block:
                step, channel = 0, int(start)
            shift = dims.simplify(outer.offset + step * dims.product(outer.strides[attrs.axis]))
            there = (
                placed is not None
                and placed.storage is outer.storage
                and dims.equal(placed.offset, shift)
            )
            if not there:
                view = View(outer.storage, shift, outer.strides)
                self.plan.steps.append(Move(value, whole, view, channel))
            start = dims.simplify(start + value.shape[attrs.axis])

    # -- outputs, halos, lifetimes ----------------------------------------------------------------

    def place_outputs(self) -> None:
        """Turn the storage of each graph output into output memory, or copy into it."""
        taken: set[int] = set()
        for position, value in enumerate(self.graph.outputs):
            view = None if value.is_constant else self.view_of(value)
            if (
                view is not None
                and self.can_be_output(view, value)
                and id(view.storage) not in taken
            ):
                view.storage.kind, view.storage.index = "output", position
                taken.add(id(view.storage))
                continue
            copy = Value(f"{value.name}_copy", replace(value.type, layout=PLAIN))
            target = self.root(copy, "output", position)
            self.plan.steps.append(Move(value, copy, target))

    def can_be_output(self, view: View, value: Value) -> bool:
        storage = view.storage
        return (
            storage.kind == "arena"
            and not storage.block
            and storage.dtype == value.dtype
            and view.offset == 0
            and view.is_dense(value.shape)
            and dims.equal(storage.elements(), dims.product(value.shape))
        )

    def set_halos(self) -> None:
        """Every blocked storage gets the zeros its convolutions read; views move with it."""
        for node in self.graph.nodes:
            if not isinstance(node.attrs, ConvAttrs | ConvTransposeAttrs):
                continue
            x = node.inputs[0]
            if x.type.layout.block and isinstance(node.attrs, ConvAttrs):
                storage = self.plan.views[id(x)].storage
                a, b = storage.halo, node.attrs.pads
                storage.halo = (max(a[0], b[0]), max(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
        fresh: dict[int, View] = {}
        for key, view in self.plan.views.items():
            fresh[key] = self.with_halo(view)
        self.plan.views = fresh
        for step in self.plan.steps:
            if isinstance(step, Move):
                step.view = self.with_halo(step.view)

    def with_halo(self, view: View) -> View:
        """Blocked views were made while halos were unknown: only channel offsets occur in them."""
        storage = view.storage
        if not storage.block or not any(storage.halo) or len(view.strides) != 4:
            return view
        plain = Storage(storage.kind, storage.dtype, storage.shape, storage.block)
        old, new = plain.strides(), storage.strides()
        blocks = dims.floordiv(view.offset, dims.product(old[1])) if view.offset != 0 else 0
        return View(storage, dims.simplify(blocks * dims.product(new[1])), new)

    def clear_halos(self) -> None:
        """Put a ClearHalo before the first step that touches a storage with a halo."""
        steps: list[PlannedStep] = []
        cleared: set[int] = set()
        for step in self.plan.steps:
            for storage in self.touched(step):
                if any(storage.halo) and id(storage) not in cleared:
                    cleared.add(id(storage))
                    sources = step.sources if isinstance(step, Node) else ()
                    steps.append(ClearHalo(storage, sources))
            steps.append(step)
        self.plan.steps = steps

    def touched(self, step: PlannedStep) -> list[Storage]:
        """Every storage a step reads or writes."""
        if isinstance(step, ClearHalo):
            return [step.storage]
        if isinstance(step, Move):
            found = [step.view.storage]
            values = [step.source]
        else:
            found, values = [], [*step.inputs, *step.outputs]
        return found + [self.plan.views[id(v)].storage for v in values if not v.is_constant]

    def set_lifetimes(self) -> None:
        for index, step in enumerate(self.plan.steps):
            for storage in self.touched(step):
                storage.touch(index)


def sliced(source: View, x: Value, starts: tuple[Dim, ...], steps: tuple[int, ...]) -> View:
    """Part of a view. starts: per logical dim (channels of blocked values in whole blocks)."""
    offset = source.offset
    strides: list[Stride] = []
    for axis, (start, step) in enumerate(zip(starts, steps, strict=True)):
        unit = dims.product(source.strides[axis])
        blocks = x.type.layout.block and axis == 1
        first = dims.floordiv(start, x.type.layout.block) if blocks else start
        offset = offset + first * unit
        strides.append(source.strides[axis] if step == 1 else (step, *source.strides[axis]))
    return View(source.storage, dims.simplify(offset), tuple(strides))


def expanded(strides: tuple[Stride, ...], old: Shape, new: Shape) -> tuple[Stride, ...]:
    """Strides that repeat a value of shape `old` over `new` (numpy broadcasting)."""
    lead = len(new) - len(old)
    # A size that isn't 1 is that of the result, even where this can't be proven.
    kept = tuple(s if old[i] != 1 or new[lead + i] == 1 else (0,) for i, s in enumerate(strides))
    return ((0,),) * lead + kept


def _single_pixel_strides(source: View, x: Value, y: Value) -> tuple[Stride, ...]:
    """Strides of a (n, c, 1, 1) value seen in the other layout (same memory)."""
    block = max(x.type.layout.block, y.type.layout.block)
    if y.type.layout.block:  # plain -> blocked
        return (source.strides[0], (block,), (block,), (block,))
    return (source.strides[0], (1,), (1,), (1,))
