"""import_model: ONNX -> Graph. Collects every problem of the model before it raises."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from keyword import iskeyword

import numpy as np
import onnx

from enginesmith.errors import ModelError, Problem, UnsupportedError
from enginesmith.frontend.builder import GraphBuilder
from enginesmith.frontend.checks import ordered, schema_problem, structure_problems
from enginesmith.frontend.composites import expand, is_composite
from enginesmith.frontend.host_ops import host_step, note_of
from enginesmith.frontend.importers import IMPORTERS, importer_for
from enginesmith.frontend.node import (
    FixedSize,
    Invalid,
    OnnxNode,
    Refusal,
    Unsupported,
    dtype_name,
    label,
)
from enginesmith.frontend.reader import STANDARD, Model, Source, read_model
from enginesmith.ir import dims
from enginesmith.ir.dims import Dim
from enginesmith.ir.expr import Arg
from enginesmith.ir.graph import Graph, Value, constant
from enginesmith.ir.ops import PointwiseAttrs
from enginesmith.ir.types import TensorType

InputShapes = Mapping[str, Sequence[int | str | None] | None]
_UNKNOWN = ("", "?", "-1", "None")


def import_model(
    source: Source | Model, shapes: InputShapes | None = None, host_steps: bool = False
) -> Graph:
    """The model as a Graph.

    `shapes`: per input name a shape of ints (fixed), strings (named symbols) and None (as in the
    file). Inputs left out, or None, keep the file's shape, where names are symbols and unknown
    sizes become symbols such as `x_2`; symbols that must have one value (channels of a convolution)
    get it. host_steps: nodes that no importer serves may run on the host (`host_ops.py`); notes of
    the graph list them. ModelError: the model or a shape is wrong; UnsupportedError: valid, but not
    importable. Both list everything found.
    """
    model = read_model(source)
    fixed: dict[str, FixedSize] = {}
    while True:
        try:
            return _Import(model, fixed, host_steps).run(shapes or {})
        except FixedSize as found:  # once per symbol at most: it is a number from now on
            fixed[found.symbol] = found


class _Import:
    def __init__(self, model: Model, fixed: Mapping[str, FixedSize], host_steps: bool) -> None:
        self.host_steps = host_steps
        self.hosted: dict[int, str] = {}
        """By id of a host step: the note about it."""
        self.model = model
        self.fixed = fixed
        self.proto = model.proto.graph
        self.graph = Graph(self.proto.name)
        self.graph.metadata = {p.key: p.value for p in model.proto.metadata_props}
        self.builder = GraphBuilder(self.graph)
        self.opset = max(
            (o.version for o in model.proto.opset_import if o.domain in STANDARD), default=0
        )
        self.read = {name for node in self.proto.node for name in node.input}
        self.read.update(o.name for o in self.proto.output)
        self.values: dict[str, Value] = {}
        self.composite = ""
        """Label of the composite operator whose nodes are being imported."""
        self.failed: set[str] = set()
        """Values that don't exist because of a problem already recorded."""
        self.invalid: list[Problem] = []
        self.unsupported: list[Problem] = []

    def run(self, shapes: InputShapes) -> Graph:
        self.invalid += structure_problems(self.proto)
        nodes, cycle = ordered(self.proto.node)
        if cycle:
            names = ", ".join(label(n) for n in cycle)
            self.invalid.append(Problem(label(cycle[0]), f"is part of a cycle: {names}"))
        self._check_nodes()
        if self.invalid:
            self._raise_problems()
        self._add_initializers()
        self._add_inputs(shapes)
        for node in nodes:
            self._import_node(node)
        self._raise_problems()
        self._add_outputs()
        self._raise_problems()
        self._drop_dead_nodes()
        self.graph.notes += [self.hosted[id(n)] for n in self.graph.nodes if n.op == "host"]
        return self.graph

    def _raise_problems(self) -> None:
        problems = [*self.invalid, *self.unsupported]
        if not problems:
            return
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        if self.invalid:
            raise ModelError(f"{self.model.name} isn't a valid model: {count}", problems)
        raise UnsupportedError(f"{self.model.name} can't be imported: {count}", problems)

    def _check_nodes(self) -> None:
        """Operators no importer knows, and nodes that break their schema."""
        for node in self.proto.node:
            wrong = schema_problem(node, self.opset) if node.domain in STANDARD else ""
            if wrong:
                self.invalid.append(Problem(label(node), f"{node.op_type}: {wrong}"))
            elif node.domain not in STANDARD:
                self.unsupported.append(
                    Problem(
                        label(node),
                        f"no importer for operator {node.op_type} of domain {node.domain}",
                        "export the model with standard ONNX operators",
                    )
                )
            elif not self._is_importable(node.op_type) and not self.host_steps:
                self.unsupported.append(
                    Problem(label(node), f"no importer for operator {node.op_type}")
                )

    def _is_importable(self, op_type: str) -> bool:
        known = op_type == "Constant" or op_type in IMPORTERS
        return known or is_composite(op_type, self.opset)

    # --- inputs and constants --------------------------------------------------------------------

    def _add_initializers(self) -> None:
        """Also those that are inputs by name: their default is taken as constant."""
        for tensor in self.proto.initializer:
            self._add_constant(tensor.name, tensor, f"initializer {tensor.name}")
        for sparse in self.proto.sparse_initializer:
            name = sparse.values.name
            self._fail(f"initializer {name}", Unsupported("it is sparse"), [name])

    def _add_constant(self, name: str, tensor: onnx.TensorProto, where: str) -> None:
        try:
            dtype_name(tensor.data_type, "it")
            array = self.model.array(tensor)
        except (Refusal, ValueError, TypeError, KeyError) as error:
            refusal = error if isinstance(error, Refusal) else Invalid(f"malformed data: {error}")
            self._fail(where, refusal, [name])
            return
        self.values[name] = constant(name, array)

    def _add_inputs(self, shapes: InputShapes) -> None:
        inputs = [i for i in self.proto.input if i.name not in self.values]
        names = [i.name for i in inputs]
        for name in shapes:
            if name not in names:
                self.invalid.append(
                    Problem(
                        f"shapes[{name!r}]",
                        f"the model has no input {name}",
                        f"its inputs are {', '.join(names)}",
                    )
                )
        declared = {i.name: self._declared(i, names) for i in inputs if i.name not in self.failed}
        bound: dict[str, Dim] = {name: found.size for name, found in self.fixed.items()}
        self.graph.notes += map(str, self.fixed.values())
        for name, type_ in declared.items():
            wanted = shapes.get(name)
            if wanted is not None:
                self._bind(name, type_, wanted, bound)
        for name, type_ in declared.items():
            fixed = type_.with_shape(tuple(dims.substitute(d, bound) for d in type_.shape))
            value = Value(name, fixed)
            self.graph.inputs.append(value)
            self.values[name] = value

    def _declared(self, info: onnx.ValueInfoProto, names: Sequence[str]) -> TensorType:
        """The type in the file, every unknown size a symbol."""
        where = f"input {info.name}"
        tensor = info.type.tensor_type
        try:
            if not info.type.HasField("tensor_type"):
                raise Unsupported("it isn't a tensor")
            dtype = dtype_name(tensor.elem_type, "it")
            if not tensor.HasField("shape"):
                raise Unsupported("its rank is unknown", "export the model with input shapes")
        except Refusal as error:
            self._fail(where, error, [info.name])
            return TensorType("float32", ())
        shape: list[Dim] = []
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value >= 0:
                shape.append(int(dim.dim_value))
            elif dim.dim_param in _UNKNOWN:
                shape.append(self._fresh_symbol(f"{info.name}_{axis}"))
            else:
                shape.append(dims.symbol(identifier(dim.dim_param)))
        return TensorType(dtype, tuple(shape))

    def _fresh_symbol(self, name: str) -> Dim:
        """A symbol no input of the file names."""
        taken = {
            identifier(d.dim_param)
            for i in self.proto.input
            for d in i.type.tensor_type.shape.dim
            if d.dim_param not in _UNKNOWN
        }
        name = identifier(name)
        while name in taken:
            name += "_"
        return dims.symbol(name)

    def _bind(
        self,
        name: str,
        type_: TensorType,
        wanted: Sequence[int | str | None],
        bound: dict[str, Dim],
    ) -> None:
        """Record what the caller's shape says of the symbols in the input's type."""
        where = f"shapes[{name!r}]"
        if len(wanted) != type_.rank:
            self.invalid.append(
                Problem(where, f"has {len(wanted)} sizes, the input has rank {type_.rank}")
            )
            return
        for axis, (dim, want) in enumerate(zip(type_.shape, wanted, strict=True)):
            if want is None:
                continue
            if isinstance(want, bool) or not isinstance(want, int | str | np.integer):
                self.invalid.append(Problem(where, f"size {axis} is {want!r}, no int or name"))
                continue
            new: Dim = dims.symbol(identifier(want)) if isinstance(want, str) else int(want)
            if isinstance(dim, int):
                if not dims.equal(dim, new):
                    self.invalid.append(
                        Problem(where, f"size {axis} is {want}, the model fixes it to {dim}")
                    )
                continue
            if isinstance(new, int) and new < 0:
                self.invalid.append(Problem(where, f"size {axis} is {want}, which is negative"))
                continue
            symbol = dims.to_text(dim)
            if symbol in bound and not dims.equal(bound[symbol], new):
                self.invalid.append(
                    Problem(
                        where,
                        f"size {axis} ({symbol}) is {want} here and "
                        f"{dims.to_text(bound[symbol])} elsewhere",
                    )
                )
            bound[symbol] = new

    # --- nodes -----------------------------------------------------------------------------------

    def _import_node(self, node: onnx.NodeProto) -> None:
        if any(name in self.failed for name in node.input):
            self.failed.update(node.output)
            if self.host_steps and not self.composite and not self._is_importable(node.op_type):
                self._doubt(node)
            return
        self.builder.source = self.composite or label(node)
        self.builder.hint = next(filter(None, node.output), label(node))
        inputs = [self.values[name] if name else None for name in node.input]
        read = [i for i, name in enumerate(node.output) if name in self.read]
        view = OnnxNode(node, self.opset, inputs, max(read, default=0) + 1)
        function = importer_for(node.op_type, self.opset)
        assumed = len(self.graph.assumptions)
        results: Sequence[Value | None]
        try:
            if node.op_type == "Constant":
                results = [self._constant_node(view)]
            elif node.domain not in STANDARD or not self._is_importable(node.op_type):
                if self.composite:
                    raise Unsupported(
                        f"no importer for operator {node.op_type}, which it consists of"
                    )
                if not self.host_steps or node.domain not in STANDARD:
                    self.failed.update(node.output)  # _check_nodes has listed it
                    return
                raise Unsupported(f"no importer for operator {node.op_type}")
            elif function is None:
                self._import_composite(node, inputs)
                return
            else:
                imported = function(self.builder, view)
                results = [imported] if isinstance(imported, Value) else list(imported)
            if len(results) < view.outputs:
                raise Unsupported(f"{view.outputs} outputs of {node.op_type}")
        except Refusal as error:
            try:
                del self.graph.assumptions[assumed:]
                results = self._on_host(view, error)
            except Refusal as last:
                self._fail(self.builder.source, last, node.output)
                return
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            # The operands don't fit what the operator demands, in a way no importer foresaw.
            refusal = Invalid(f"{node.op_type} doesn't fit its operands: {error}")
            self._fail(self.builder.source, refusal, node.output)
            return
        for name, value in zip(node.output, results, strict=False):
            if name and value is not None:
                self.values[name] = value

    def _doubt(self, node: onnx.NodeProto) -> None:
        """List a node that might run on the host, if only its operands were known."""
        if node.domain in STANDARD:  # else _check_nodes has listed it
            reason = f"no importer for operator {node.op_type}"
            tail = "; could it run on the host? What it reads can't be imported either"
            self.unsupported.append(Problem(label(node), reason + tail))

    def _on_host(self, view: OnnxNode, refusal: Refusal) -> Sequence[Value | None]:
        """The node's outputs as those of a host step; raises `refusal`, or a longer one, if that
        can't be. (A composite operator goes there as a whole.)"""
        if not self.host_steps or self.composite or isinstance(refusal, Invalid):
            raise refusal
        wanted = [name in self.read for name in view.proto.output]
        results = host_step(self.builder, view, wanted, refusal)
        made = next((v.producer for v in results if v is not None and v.producer), None)
        if made is not None:
            tensors = len(made.outputs) + sum(not v.is_constant for v in made.inputs)
            reason = "; ".join(filter(None, (refusal.reason, refusal.remedy)))
            self.hosted[id(made)] = note_of(
                self.builder.source, view.proto.op_type, reason, tensors
            )
        return results

    def _import_composite(self, node: onnx.NodeProto, inputs: Sequence[Value | None]) -> None:
        """The nodes an operator is defined by, under its own name. If one of them can't be imported
        and the operator as a whole may run on the host, Unsupported says why."""
        nodes = expand(node, self.opset, inputs)
        outermost = not self.composite
        before, failed = len(self.unsupported), set(self.failed)
        self.composite = self.composite or label(node)
        self.read.update(name for inner in nodes for name in inner.input)
        for inner in nodes:
            self._import_node(inner)
        if outermost:
            self.composite = ""
            found = self.unsupported[before:]
            if found and self.host_steps:
                del self.unsupported[before:]
                self.failed = failed
                raise Unsupported(found[0].reason, found[0].remedy)

    def _constant_node(self, node: OnnxNode) -> Value:
        if node.has("value"):
            tensor = node.tensor("value")
            dtype_name(tensor.data_type, "it")
            return self.builder.constant(self.model.array(tensor))
        for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
            for suffix in ("", "s"):
                if node.has(name + suffix):
                    attribute = next(a for a in node.proto.attribute if a.name == name + suffix)
                    return self.builder.constant(
                        np.array(onnx.helper.get_attribute_value(attribute), dtype)
                    )
        raise Unsupported("a Constant of strings or a sparse one")

    def _fail(self, where: str, error: Refusal, outputs: Sequence[str]) -> None:
        problem = Problem(where, error.reason, error.remedy)
        (self.invalid if isinstance(error, Invalid) else self.unsupported).append(problem)
        self.failed.update(outputs)

    # --- outputs ---------------------------------------------------------------------------------

    def _add_outputs(self) -> None:
        for info in self.proto.output:
            value = self.builder.data(self.values[info.name])
            self._compare(info, value)
            if value.is_constant:
                value = constant(info.name, value.data)
            elif value.producer is None or self.graph.is_output(value):
                self.builder.source, self.builder.hint = f"output {info.name}", info.name
                value = self.builder.emit("pointwise", [value], PointwiseAttrs(Arg(0)))
            value.name = info.name
            self.graph.outputs.append(value)

    def _compare(self, info: onnx.ValueInfoProto, value: Value) -> None:
        """The declared type is a hint; only sizes that contradict the derived ones are mistakes."""
        tensor = info.type.tensor_type
        where = f"output {info.name}"
        if tensor.elem_type:
            try:
                declared = dtype_name(tensor.elem_type, "it")
            except Refusal as error:
                self._fail(where, error, [])
                return
            if declared != value.dtype:
                self.invalid.append(
                    Problem(where, f"is declared {declared}, the graph computes {value.dtype}")
                )
        if not tensor.HasField("shape"):
            return
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        conflict = len(sizes) != value.type.rank or any(
            want is not None and want >= 0 and isinstance(have, int) and have != want
            for want, have in zip(sizes, value.shape, strict=False)
        )
        if conflict:
            shape = ", ".join("?" if s is None else str(s) for s in sizes)
            self.invalid.append(
                Problem(
                    where, f"shape conflict: declared ({shape}), the graph computes {value.type}"
                )
            )

    def _drop_dead_nodes(self) -> None:
        live = {id(v) for v in self.graph.outputs}
        kept = []
        for node in reversed(self.graph.nodes):
            if any(id(v) in live for v in node.outputs):
                live.update(id(v) for v in node.inputs)
                kept.append(node)
            else:
                node.detach()
        self.graph.nodes = kept[::-1]


def identifier(text: str) -> str:
    """`text` as a name of the dimension syntax: letters, digits and _, no Python keyword."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    if not name or name[0].isdigit() or iskeyword(name) or name in ("max", "min"):
        name = f"_{name}"
    return name
