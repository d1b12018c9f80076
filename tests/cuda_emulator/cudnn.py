"""A cuDNN that isn't there: its backend's graphs of a convolution, by numpy on the emulated GPU.

It takes what ctypes gives the library, checks it as the library does, and computes in the order of
the device's streams and captures. It knows one convolution with a chain of pointwise operations;
its heuristic knows four engines. Numbers are those of cudnn_graph.h, written anew: a runtime that
has one wrong is refused here too.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import ml_dtypes
import numpy as np
from tests.cuda_emulator.device import EmulatedDevice

SUCCESS, BAD_PARAM, NOT_SUPPORTED = 0, 2000, 3000
NAMES = {
    0: b"CUDNN_STATUS_SUCCESS",
    1001: b"CUDNN_STATUS_NOT_INITIALIZED",
    2000: b"CUDNN_STATUS_BAD_PARAM",
    3000: b"CUDNN_STATUS_NOT_SUPPORTED",
    4000: b"CUDNN_STATUS_INTERNAL_ERROR",
    5000: b"CUDNN_STATUS_EXECUTION_FAILED",
}
HANDLE = 815

FLOAT32 = 0
DTYPES = {FLOAT32: np.float32, 2: np.float16, 9: ml_dtypes.bfloat16}
CROSS_CORRELATION = 1
HEURISTIC_A = 3
WORKSPACE_ALIGNMENT = 16

DESCRIPTOR = 15
ELEMENTS: dict[int, Any] = {
    0: ctypes.c_void_p, 1: ctypes.c_int, 2: ctypes.c_bool, 3: ctypes.c_int64, 4: ctypes.c_float,
    6: ctypes.c_void_p, 7: ctypes.c_int, 8: ctypes.c_int, 9: ctypes.c_int, 11: ctypes.c_int,
    14: ctypes.c_int, DESCRIPTOR: ctypes.c_void_p,
}  # fmt: skip
"""What an attribute's type has for elements."""

POINTWISE, CONVOLUTION, ENGINE, CONFIG, HEURISTIC, PLAN, KNOB = 0, 1, 2, 3, 4, 5, 7
FORWARD, APPLY, GRAPH, PACK, TENSOR = 10, 13, 15, 16, 17
ATTRIBUTES: dict[int, dict[int, tuple[str, int]]] = {
    POINTWISE: {0: ("mode", 14), 1: ("precision", 1)},
    CONVOLUTION: {
        100: ("precision", 1), 101: ("mode", 7), 102: ("dilations", 3), 103: ("steps", 3),
        104: ("after", 3), 105: ("before", 3), 106: ("rank", 3),
    },
    ENGINE: {1300: ("graph", 15), 1301: ("index", 3), 1303: ("notes", 11)},
    CONFIG: {300: ("engine", 15), 302: ("knobs", 15)},
    HEURISTIC: {200: ("mode", 8), 201: ("graph", 15), 202: ("results", 15)},
    PLAN: {400: ("handle", 0), 401: ("config", 15), 402: ("needs", 3)},
    KNOB: {600: ("knob", 9), 601: ("value", 3)},
    FORWARD: {
        700: ("alpha", 4), 701: ("beta", 4), 702: ("convolution", 15), 703: ("w", 15),
        704: ("x", 15), 705: ("y", 15),
    },
    APPLY: {750: ("pointwise", 15), 751: ("x", 15), 752: ("operand", 15), 753: ("y", 15)},
    GRAPH: {800: ("handle", 0), 801: ("operations", 15)},
    PACK: {1000: ("ids", 3), 1001: ("pointers", 6), 1003: ("workspace", 6)},
    TENSOR: {
        900: ("alignment", 3), 901: ("dtype", 1), 902: ("sizes", 3), 903: ("strides", 3),
        906: ("id", 3), 907: ("virtual", 2),
    },
}  # fmt: skip
"""Of each kind of descriptor: the number of an attribute -> how it is called here, its type."""

SEVERAL = {
    "dilations", "steps", "after", "before", "notes", "knobs", "results", "operations", "ids",
    "pointers", "sizes", "strides",
}  # fmt: skip
"""Attributes of more than one element."""
READ_ONLY = {"notes", "results", "needs"}
OPTIONAL = {"knobs", "operand", "workspace", "virtual"}
PARTS = {
    "graph": (GRAPH,), "engine": (ENGINE,), "knobs": (KNOB,), "config": (CONFIG,),
    "convolution": (CONVOLUTION,), "pointwise": (POINTWISE,), "operations": (FORWARD, APPLY),
    "w": (TENSOR,), "x": (TENSOR,), "y": (TENSOR,), "operand": (TENSOR,),
}  # fmt: skip
"""The kinds that a descriptor has to be of, to be a part of another."""


@dataclass(frozen=True)
class _Engine:
    """One way to compute. multiple: what the number of input channels must be a multiple of."""

    knobs: dict[int, int]
    workspace: int
    notes: tuple[int, ...]
    multiple: int = 1


ENGINES = {
    7: _Engine({2: 1, 9: 0}, 4096, (0,), 8),
    3: _Engine({}, 0, ()),
    11: _Engine({}, 0, (1, 3)),  # down-converts its inputs and takes the FFT
    5: _Engine({4: 2}, 1 << 16, (0,)),
}
"""By their global index, in the order of the heuristic."""


@dataclass(eq=False)
class _Descriptor:
    """Keeps what it is made of, so that parts may be destroyed before it, as in the library."""

    kind: int
    values: dict[str, list[Any]] = field(default_factory=dict)
    finalized: bool = False

    def __getitem__(self, name: str) -> Any:
        return self.values[name][0]

    def get(self, name: str) -> Any:
        """The one element of an attribute that may be missing."""
        return self.values.get(name, [None])[0]


class _Refused(Exception):  # noqa: N818
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def _check(good: bool, why: str, status: int = BAD_PARAM) -> None:
    if not good:
        raise _Refused(status, why)


def _reported(function: Callable[..., None]) -> Callable[..., int]:
    """A function that gives a status, and leaves what was wrong for cudnnGetLastErrorString."""

    @functools.wraps(function)
    def call(self: FakeCudnn, *values: Any) -> int:
        try:
            function(self, *values)
        except _Refused as error:
            return self._failed(function.__name__, error.status, str(error))
        return SUCCESS

    return call


class FakeCudnn:
    """version: of the library. calls: how many plans were executed. handles: how many were made.
    fail_next: name of a function -> the status it gives next time. alive: descriptors not yet
    destroyed."""

    def __init__(self, device: EmulatedDevice, version: int = 91300) -> None:
        self.device, self.version = device, version
        self.calls = self.handles = self.stream = 0
        self.fail_next: dict[str, int] = {}
        self.alive: dict[int, _Descriptor] = {}
        self._numbers = count(1)  # threads take them one by one
        self._last = threading.local()  # the library's messages are a thread's own

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cudnn") and name in self.fail_next:
            return lambda *_: self._failed(name, self.fail_next.pop(name), "told to fail")
        return found

    def _failed(self, name: str, status: int, why: str) -> int:
        self._last.message = f"{name}: {why}"
        return status

    def cudnnGetVersion(self) -> int:
        return self.version

    def cudnnGetErrorString(self, status: int) -> bytes:
        return NAMES.get(status, b"CUDNN_STATUS_UNKNOWN")

    def cudnnGetLastErrorString(self, buffer: Any, size: int) -> None:
        assert 0 < size <= len(buffer)
        message = getattr(self._last, "message", "").encode()[: size - 1]
        ctypes.memmove(buffer, message + b"\0", len(message) + 1)

    def cudnnCreate(self, to: Any) -> int:
        self.handles += 1
        to._obj.value = HANDLE
        return SUCCESS

    def cudnnSetStream(self, handle: Any, stream: int) -> int:
        assert handle.value == HANDLE
        self.stream = stream
        return SUCCESS

    @_reported
    def cudnnBackendCreateDescriptor(self, kind: int, to: Any) -> None:
        _check(kind in ATTRIBUTES, f"no descriptor {kind}", NOT_SUPPORTED)
        to._obj.value = number = next(self._numbers)
        self.alive[number] = _Descriptor(kind)

    @_reported
    def cudnnBackendDestroyDescriptor(self, which: Any) -> None:
        del self.alive[which.value]

    @_reported
    def cudnnBackendSetAttribute(
        self, which: Any, attribute: int, type_: int, size: int, elements: Any
    ) -> None:
        what = self.alive[which.value]
        name = _attribute(what, attribute, type_)
        _check(not what.finalized, "the descriptor is finalized")
        _check(name not in READ_ONLY, f"attribute {attribute} can only be read")
        _check(size >= 0 and (size == 1 or name in SEVERAL), f"{size} elements of {attribute}")
        values = list(_array(elements._obj, type_, size)[:size])
        if type_ == DESCRIPTOR:
            _check(all(values), "no descriptor")
            values = [self.alive[number] for number in values]
        what.values[name] = values

    @_reported
    def cudnnBackendGetAttribute(
        self, which: Any, attribute: int, type_: int, requested: int, found: Any, to: Any
    ) -> None:
        what = self.alive[which.value]
        name = _attribute(what, attribute, type_)
        _check(what.finalized, "the descriptor isn't finalized")
        values = what.values.get(name, [])
        found._obj.value = len(values)
        if to is None or not requested:
            return
        array = _array(to._obj, type_, requested)
        for k, value in enumerate(values[:requested]):
            if type_ != DESCRIPTOR:
                array[k] = value
                continue
            _check(bool(array[k]), "no descriptor to fill")
            theirs = self.alive[array[k]]
            _check(theirs.kind == value.kind, "another kind of descriptor to fill")
            theirs.values, theirs.finalized = dict(value.values), True

    @_reported
    def cudnnBackendFinalize(self, which: Any) -> None:
        what = self.alive[which.value]
        _check(not what.finalized, "already finalized")
        for attribute, (name, type_) in ATTRIBUTES[what.kind].items():
            if name in READ_ONLY or (name in OPTIONAL and name not in what.values):
                continue
            _check(bool(what.values.get(name)) or name in OPTIONAL, f"no attribute {attribute}")
            if type_ == DESCRIPTOR:
                parts = what.values[name]
                _check(all(p.kind in PARTS[name] for p in parts), f"{attribute}: another kind")
                _check(all(p.finalized for p in parts), f"{attribute}: not finalized")
        if "handle" in what.values:
            _check(what["handle"] == HANDLE, "another handle")
        if what.kind in FINALIZE:
            FINALIZE[what.kind](what)
        what.finalized = True

    @_reported
    def cudnnBackendExecute(self, handle: Any, plan: Any, pack: Any) -> None:
        assert handle.value == HANDLE and self.stream
        what, given = self.alive[plan.value], self.alive[pack.value]
        _check(what.kind == PLAN and what.finalized, "no finalized plan")
        _check(given.kind == PACK and given.finalized, "no finalized variant pack")
        graph, needs, workspace = what["config"]["engine"]["graph"], what["needs"], 0
        addresses = dict(zip(given.values["ids"], given.values["pointers"], strict=True))
        for tensor in _tensors(graph):
            if not tensor.get("virtual"):
                address = addresses.get(tensor["id"])
                _check(bool(address), f"no address of tensor {tensor['id']}")
                _check(address % tensor["alignment"] == 0, f"tensor {tensor['id']} isn't aligned")
        if needs:
            workspace = given.get("workspace") or 0
            _check(workspace != 0, "no workspace")
            _check(workspace % WORKSPACE_ALIGNMENT == 0, "the workspace isn't aligned")

        def job() -> None:
            self.calls += 1
            if needs:
                ctypes.memset(workspace, 0xA5, needs)
            with np.errstate(all="ignore"):  # a GPU doesn't warn
                _compute(graph, addresses)

        self.device._do(job)


def _attribute(what: _Descriptor, attribute: int, type_: int) -> str:
    name, right = ATTRIBUTES[what.kind].get(attribute, ("", None))
    _check(right is not None, f"descriptor {what.kind} has no attribute {attribute}")
    _check(type_ == right, f"attribute {attribute} isn't of type {type_}")
    return name


def _array(memory: Any, type_: int, size: int) -> Any:
    """The caller's array, or one element as an array. Wrong ones would be memory misread."""
    if not isinstance(memory, ctypes.Array):
        memory = (type(memory) * 1).from_buffer(memory)
    assert memory._type_ is ELEMENTS[type_] and size <= len(memory)
    return memory


def _finalize_pointwise(what: _Descriptor) -> None:
    _check(what["mode"] in POINTWISE_MODES, f"no pointwise mode {what['mode']}", NOT_SUPPORTED)
    _check(what["precision"] == FLOAT32, "computes in float32 alone", NOT_SUPPORTED)


def _finalize_convolution(what: _Descriptor) -> None:
    _check(what["precision"] == FLOAT32, "computes in float32 alone", NOT_SUPPORTED)
    _check(what["mode"] == CROSS_CORRELATION, "not a cross-correlation")
    _check(what["rank"] == 2, "not of two dimensions")
    for name, least in (("dilations", 1), ("steps", 1), ("after", 0), ("before", 0)):
        values = what.values[name]
        _check(len(values) == 2 and min(values) >= least, f"{name} are {values}")


def _finalize_tensor(what: _Descriptor) -> None:
    _check(what["dtype"] in DTYPES, f"data type {what['dtype']}", NOT_SUPPORTED)
    sizes, strides = what.values["sizes"], what.values["strides"]
    _check(len(sizes) == len(strides) == 4, f"sizes {sizes}, strides {strides}")
    _check(min(sizes) > 0 and min(strides) >= 0, f"sizes {sizes}, strides {strides}")
    alignment, item = what["alignment"], np.dtype(DTYPES[what["dtype"]]).itemsize
    _check(alignment > 0 and alignment % item == 0, f"alignment {alignment}")


def _finalize_forward(what: _Descriptor) -> None:
    _check(what["x"]["dtype"] == what["w"]["dtype"], "x and w of different types")
    _check(what["beta"] == 0, "adding to what y holds", NOT_SUPPORTED)


def _finalize_apply(what: _Descriptor) -> None:
    takes = POINTWISE_MODES[what["pointwise"]["mode"]] is None
    _check(takes == bool(what.values.get("operand")), "wrong number of operands")


def _finalize_graph(graph: _Descriptor) -> None:
    first, *rest = graph.values["operations"]
    _check(first.kind == FORWARD and all(o.kind == APPLY for o in rest), "not a convolution first")
    tensors: dict[int, _Descriptor] = {}
    for tensor in _tensors(graph):
        same = tensors.setdefault(tensor["id"], tensor).values == tensor.values
        _check(same, f"two tensors have the id {tensor['id']}")
    _check(not (first["x"].get("virtual") or first["w"].get("virtual")), "virtual inputs")
    sizes = _output_sizes(first)
    _check(first["y"].values["sizes"] == sizes, f"the convolution's output has sizes {sizes}")
    last, inputs = first["y"], {first["x"]["id"], first["w"]["id"]}
    outputs = [last["id"]]
    for operation in rest:
        _check(bool(last.get("virtual")), f"tensor {last['id']} isn't virtual")
        taken = (operation["x"], *operation.values.get("operand", ()))
        others = _others(operation, last)
        _check(len(others) == len(taken) - 1, "not a chain")
        for other in others:
            _check(not other.get("virtual"), "a virtual operand")
            pairs = zip(other.values["sizes"], sizes, strict=True)
            _check(all(n in (1, full) for n, full in pairs), "an operand's sizes don't fit")
        inputs |= {other["id"] for other in others}
        last = operation["y"]
        _check(last.values["sizes"] == sizes, f"a pointwise operation's output isn't {sizes}")
        outputs.append(last["id"])
    _check(not last.get("virtual"), "the last output is virtual")
    _check(len({*inputs, *outputs}) == len(inputs) + len(outputs), "a tensor is computed twice")


def _output_sizes(forward: _Descriptor) -> list[int]:
    """What follows from the sizes of its inputs."""
    convolution = forward["convolution"].values
    n, channels, *image = forward["x"].values["sizes"]
    k, part, *window = forward["w"].values["sizes"]
    _check(channels % part == 0 and k % (channels // part) == 0, "groups don't fit")
    sizes = [n, k]
    for d in range(2):
        padded = image[d] + convolution["before"][d] + convolution["after"][d]
        reach = convolution["dilations"][d] * (window[d] - 1) + 1
        sizes.append((padded - reach) // convolution["steps"][d] + 1)
    return sizes


def _finalize_engine(what: _Descriptor) -> None:
    _check(what["index"] in ENGINES, f"no engine {what['index']}")
    what.values["notes"] = list(ENGINES[what["index"]].notes)


def _finalize_config(what: _Descriptor) -> None:
    knobs = [choice["knob"] for choice in what.values.get("knobs", ())]
    _check(len(set(knobs)) == len(knobs), "a knob is chosen twice")


def _finalize_heuristic(what: _Descriptor) -> None:
    what.values["results"] = results = list[_Descriptor]()
    if what["mode"] != HEURISTIC_A:
        return
    for index, known in ENGINES.items():
        if _channels(what["graph"]) % known.multiple == 0:
            values = {"graph": [what["graph"]], "index": [index], "notes": list(known.notes)}
            engine = _Descriptor(ENGINE, values, True)
            knobs = [
                _Descriptor(KNOB, {"knob": [knob], "value": [value]}, True)
                for knob, value in known.knobs.items()
            ]
            results.append(_Descriptor(CONFIG, {"engine": [engine], "knobs": knobs}, True))


def _finalize_plan(what: _Descriptor) -> None:
    config = what["config"]
    known = ENGINES[config["engine"]["index"]]
    for choice in config.values.get("knobs", ()):
        good = choice["knob"] in known.knobs and choice["value"] >= 0
        _check(good, f"knob {choice['knob']} = {choice['value']}", NOT_SUPPORTED)
    channels = _channels(config["engine"]["graph"])
    _check(channels % known.multiple == 0, f"{channels} channels", NOT_SUPPORTED)
    what.values["needs"] = [known.workspace]


def _finalize_pack(what: _Descriptor) -> None:
    ids = what.values["ids"]
    _check(len(ids) == len(what.values["pointers"]), "not an address for each id")
    _check(len(set(ids)) == len(ids), "an id comes twice")


FINALIZE: dict[int, Callable[[_Descriptor], None]] = {
    POINTWISE: _finalize_pointwise,
    CONVOLUTION: _finalize_convolution,
    ENGINE: _finalize_engine,
    CONFIG: _finalize_config,
    HEURISTIC: _finalize_heuristic,
    PLAN: _finalize_plan,
    FORWARD: _finalize_forward,
    APPLY: _finalize_apply,
    GRAPH: _finalize_graph,
    PACK: _finalize_pack,
    TENSOR: _finalize_tensor,
}
"""What a kind checks when it is finalized, and what can be read from then on."""


def _channels(graph: _Descriptor) -> int:
    """Of the convolution's input."""
    found: int = graph["operations"]["x"].values["sizes"][1]
    return found


def _tensors(graph: _Descriptor) -> list[_Descriptor]:
    """All that its operations name; one in two operations comes twice."""
    return [
        operation[name]
        for operation in graph.values["operations"]
        for name in ("x", "w", "operand", "y")
        if operation.values.get(name)
    ]


def _others(operation: _Descriptor, last: _Descriptor) -> list[_Descriptor]:
    """What a pointwise operation takes besides the tensor before it."""
    taken = (operation["x"], *operation.values.get("operand", ()))
    return [tensor for tensor in taken if tensor["id"] != last["id"]]


def _memory(tensor: _Descriptor, addresses: dict[int, int]) -> np.ndarray:
    """A tensor's elements at its address."""
    dtype = np.dtype(DTYPES[tensor["dtype"]])
    sizes, strides = tensor.values["sizes"], tensor.values["strides"]
    extent = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    memory = (ctypes.c_uint8 * (extent * dtype.itemsize)).from_address(addresses[tensor["id"]])
    flat = np.frombuffer(memory, dtype)
    return np.lib.stride_tricks.as_strided(
        flat, sizes, [s * dtype.itemsize for s in strides], writeable=True
    )


def _compute(graph: _Descriptor, addresses: dict[int, int]) -> None:
    """All operations in float32; what is stored is rounded once."""
    first, *rest = graph.values["operations"]
    x, w = (_memory(first[name], addresses).astype(np.float32) for name in ("x", "w"))
    y, last = np.float32(first["alpha"]) * _convolve(first, x, w), first["y"]
    for operation in rest:
        for other in _others(operation, last):
            y = y + _memory(other, addresses).astype(np.float32)
        activation = POINTWISE_MODES[operation["pointwise"]["mode"]]
        if activation is not None:
            y = activation(y).astype(np.float32)
        last = operation["y"]
    out = _memory(last, addresses)
    out[...] = y.astype(out.dtype)


def _convolve(forward: _Descriptor, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A product of matrices for each place of the window."""
    convolution = forward["convolution"].values
    edges = list(zip(convolution["before"], convolution["after"], strict=True))
    x = np.pad(x, [(0, 0), (0, 0), *edges])
    n, k, height, width = _output_sizes(forward)
    part, groups = w.shape[1], x.shape[1] // w.shape[1]
    (down, right), (over, along) = convolution["steps"], convolution["dilations"]
    y = np.zeros((n, groups, k // groups, height * width), np.float32)
    for row, column in np.ndindex(w.shape[2], w.shape[3]):
        top, left = row * over, column * along
        rows = slice(top, top + (height - 1) * down + 1, down)
        columns = slice(left, left + (width - 1) * right + 1, right)
        seen = x[:, :, rows, columns].reshape(n, groups, part, height * width)
        y += w[:, :, row, column].reshape(groups, k // groups, part) @ seen
    return y.reshape(n, k, height, width)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 1 / (1 + np.exp(-x.astype(np.float64)))
    return y


def _gelu(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 0.5 * x * (1 + np.vectorize(math.erf, [np.float64])(x / math.sqrt(2)))
    return y


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return y


POINTWISE_MODES: dict[int, Callable[[np.ndarray], np.ndarray] | None] = {
    0: None,
    100: lambda x: np.maximum(x, 0),
    101: np.tanh,
    102: _sigmoid,
    104: _gelu,
    106: lambda x: x * _sigmoid(x),
    107: _gelu_tanh,
}
"""None: adds an operand."""
