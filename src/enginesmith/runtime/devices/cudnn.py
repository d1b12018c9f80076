"""Convolutions by cuDNN: the functions of its graph interface that it takes, each checked.

`Cudnn` is the library on one GPU, `PreparedConvolution` one convolution of fixed sizes: a graph of
operations (the convolution, additions, an activation) whose intermediate results are virtual, for
which the library has engines with knobs. The binding is ctypes over `libcudnn.so`; the package
`nvidia-cudnn-frontend` would wrap these calls, but brings compilers of its own with it.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ctypes import byref, c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from typing import Any

from enginesmith.errors import DeviceError
from enginesmith.plan.plan import Convolution, Images
from enginesmith.runtime.devices.cublas import Algorithm

MAJOR = 9
"""The version of the library whose use is tested."""

PACKAGE, LIBRARY = "nvidia-cudnn-cu13", f"libcudnn.so.{MAJOR}"
INSTALL = "install it with: pip install 'enginesmith[cudnn]'"

# Numbers from cudnn_graph.h: types of attributes ...
HANDLE, DTYPE, BOOLEAN, INT64, FLOAT, POINTER, CONVOLUTION_MODE = 0, 1, 2, 3, 4, 6, 7
HEURISTIC_MODE, KNOB_TYPE, NUMERICAL_NOTE, POINTWISE_MODE, DESCRIPTOR = 8, 9, 11, 14, 15
_ELEMENTS: dict[int, Any] = {
    BOOLEAN: c_bool, INT64: c_int64, FLOAT: c_float,
    HANDLE: c_void_p, POINTER: c_void_p, DESCRIPTOR: c_void_p,
}  # fmt: skip
"""What arrays of a type are made of; of the others, which are enums: c_int."""

# ... kinds of descriptors ...
POINTWISE, CONVOLUTION, ENGINE, CONFIGURATION, HEURISTIC, PLAN, KNOB = 0, 1, 2, 3, 4, 5, 7
CONVOLVE, APPLY, GRAPH, VARIANTS, TENSOR = 10, 13, 15, 16, 17

# ... values.
DTYPES = {"float32": 0, "float16": 2, "bfloat16": 9}
ADD = 0
ACTIVATIONS = {"relu": 100, "tanh": 101, "sigmoid": 102, "gelu_erf": 104, "swish": 106, "gelu": 107}
CROSS_CORRELATION, MODE_A = 1, 3
DOWN_CONVERTED, REDUCED, FFT, VARYING = 1, 2, 3, 4
WINOGRADS = (5, 6, 7, 8)
UNWANTED = {DOWN_CONVERTED, REDUCED, FFT, VARYING, *WINOGRADS}
"""Notes of engines that are less precise than our kernels, or vary from run to run."""

VIRTUAL = 100
"""Where numbers of intermediate results begin."""

KNOBS = 64
"""The most knobs of an engine that are asked for."""

_P = c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "cudnnGetVersion": [],
    "cudnnGetErrorString": [c_int],
    "cudnnGetLastErrorString": [ctypes.c_char_p, c_size_t],
    "cudnnCreate": [_P],
    "cudnnSetStream": [_P, _P],
    "cudnnBackendCreateDescriptor": [c_int, _P],
    "cudnnBackendDestroyDescriptor": [_P],
    "cudnnBackendSetAttribute": [_P, c_int, c_int, c_int64, _P],
    "cudnnBackendGetAttribute": [_P, c_int, c_int, c_int64, _P, _P],
    "cudnnBackendFinalize": [_P],
    "cudnnBackendExecute": [_P, _P, _P],
}


@cache
def library() -> Any:
    """The loaded library. DeviceError says what is missing."""
    try:
        loaded = ctypes.CDLL(_installed() or LIBRARY)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"cuDNN is not installed ({reason}); {INSTALL}") from error
    for name, kinds in _SIGNATURES.items():
        getattr(loaded, name).argtypes = kinds
    loaded.cudnnGetVersion.restype = c_size_t
    loaded.cudnnGetErrorString.restype = ctypes.c_char_p
    if (version := int(loaded.cudnnGetVersion())) // 10000 != MAJOR:
        raise DeviceError(
            f"cuDNN {version_text(version)} is installed, and {MAJOR} is needed; {INSTALL}"
        )
    return loaded


def _installed() -> str:
    """The library of its package, "" if that isn't installed. Its parts look for the compiler at
    run time and for cuBLASLt, which are found once they are loaded."""
    try:
        found = [f for f in files(PACKAGE) or () if f.name == LIBRARY]
    except PackageNotFoundError:
        return ""
    with suppress(ImportError):
        pathfinder = importlib.import_module("cuda.pathfinder")
        for name in ("nvrtc", "cublasLt"):
            with suppress(RuntimeError):
                pathfinder.load_nvidia_dynamic_lib(name)
    return str(found[0].locate()) if found else ""


def why_missing() -> str | None:
    """None if the library is here, else what is missing."""
    try:
        library()
    except DeviceError as error:
        return str(error).removesuffix(f"; {INSTALL}")
    return None


def installed_version() -> int:
    """The library's version, 91300 for 9.13.0. DeviceError if it is missing."""
    return int(library().cudnnGetVersion())


def version_text(version: int) -> str:
    """The library's version as people write it."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


class RefusedError(DeviceError):
    """What the library doesn't take: arguments that don't fit, or nothing it has serves."""


REFUSALS = range(2000, 4000)
"""Statuses of a RefusedError: bad parameters, not supported."""


class Cudnn:
    """The library on the GPU that the calling thread uses; then for any thread that uses it.

    free: calls a function that gives something back, now or when that does no harm."""

    def __init__(self, library: Any, free: Callable[[Callable[[], None]], None]) -> None:
        self._library, self._free = library, free
        self.version = int(library.cudnnGetVersion())
        self.handle = c_void_p()  # for good: at exit the GPU's context may be gone
        self.call("cudnnCreate", byref(self.handle))
        self._stream = threading.Lock()
        self.known: dict[tuple[Convolution, int, int], list[Algorithm]] = {}
        """What `PreparedConvolution.algorithms` found: the library may have to compile engines."""

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function; its status, 0 for success."""
        return int(getattr(self._library, name)(*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function. DeviceError (RefusedError) unless it succeeds."""
        if status := self.status(name, *arguments):
            buffer = ctypes.create_string_buffer(1024)
            self._library.cudnnGetLastErrorString(buffer, len(buffer))
            text = self._library.cudnnGetErrorString(status)
            raise (RefusedError if status in REFUSALS else DeviceError)(
                f"{name} failed: {text.decode() if text else status}: {buffer.value.decode()} "
                f"(cuDNN {version_text(self.version)}; build with tactic_sources=('cuda',) to do "
                "without)"
            )

    def make(self, owner: object, kind: int) -> c_void_p:
        """A new descriptor of a kind, destroyed with its owner."""
        made = c_void_p()
        self.call("cudnnBackendCreateDescriptor", kind, byref(made))
        destroy, free = self._library.cudnnBackendDestroyDescriptor, self._free
        weakref.finalize(owner, lambda: free(lambda: destroy(made))).atexit = False
        return made

    def set(self, descriptor: c_void_p, attribute: int, kind: int, *values: Any) -> None:
        """Set an attribute of a descriptor to values of a type."""
        array = _array(kind, values)
        self.call("cudnnBackendSetAttribute", descriptor, attribute, kind, len(values),
                  byref(array))  # fmt: skip

    def get(self, descriptor: c_void_p, attribute: int, kind: int, most: int) -> list[Any]:
        """At most so many values of an attribute; not of descriptors."""
        array, count = _array(kind, [0] * most), c_int64()
        self.call("cudnnBackendGetAttribute", descriptor, attribute, kind, most, byref(count),
                  byref(array))  # fmt: skip
        return list(array)[: min(count.value, most)]

    def parts(
        self, owner: object, descriptor: c_void_p, attribute: int, kind: int, most: int
    ) -> list[c_void_p]:
        """At most so many descriptors of a kind that an attribute holds, as copies."""
        made = [self.make(owner, kind) for _ in range(most)]
        array, count = _array(DESCRIPTOR, made), c_int64()
        self.call("cudnnBackendGetAttribute", descriptor, attribute, DESCRIPTOR, most, byref(count),
                  byref(array))  # fmt: skip
        return made[: min(count.value, most)]

    def finish(self, descriptor: c_void_p) -> c_void_p:
        """The descriptor, whose attributes are complete."""
        self.call("cudnnBackendFinalize", descriptor)
        return descriptor

    def execute(self, plan: c_void_p, variants: c_void_p, stream: int) -> None:
        """Run a plan on the stream."""
        with self._stream:  # the stream is the handle's, which all threads share
            self.call("cudnnSetStream", self.handle, stream)
            self.call("cudnnBackendExecute", self.handle, plan, variants)


def _array(kind: int, values: Sequence[Any]) -> Any:
    plain = [v.value if isinstance(v, c_void_p) else v for v in values]
    return (_ELEMENTS.get(kind, c_int) * max(1, len(plain)))(*plain)


class PreparedConvolution:
    """A convolution whose sizes are all ints, ready to run. Not for empty ones."""

    def __init__(self, cudnn: Cudnn, convolution: Convolution) -> None:
        self._cudnn, self._convolution = cudnn, convolution
        self._graph: c_void_p | None = None
        self._plans: dict[bytes, tuple[c_void_p, int]] = {}
        self._virtual = 0

    # -- the graph --------------------------------------------------------------------------------

    def _built(self) -> c_void_p:
        """The graph of operations. RefusedError if the library doesn't know it."""
        if self._graph is not None:
            return self._graph
        cudnn, convolution = self._cudnn, self._convolution
        x, w, *added, y = (self._tensor(i, m) for i, m in enumerate(convolution.operands))
        wanted: list[tuple[int, c_void_p | None]] = [(ADD, b) for b in added]
        if convolution.activation != "none":
            wanted.append((ACTIVATIONS[convolution.activation], None))
        sums = self._between() if wanted else y
        operations = [self._convolve(x, w, sums)]
        for i, (mode, other) in enumerate(wanted):
            result = y if i == len(wanted) - 1 else self._between()
            operations.append(self._apply(mode, sums, other, result))
            sums = result
        graph = cudnn.make(self, GRAPH)
        cudnn.set(graph, 800, HANDLE, cudnn.handle)
        cudnn.set(graph, 801, DESCRIPTOR, *operations)
        self._graph = cudnn.finish(graph)
        return self._graph

    def _tensor(self, number: int, images: Images, virtual: bool = False) -> c_void_p:
        cudnn = self._cudnn
        tensor = cudnn.make(self, TENSOR)
        cudnn.set(tensor, 906, INT64, number)
        cudnn.set(tensor, 901, DTYPE, DTYPES[images.dtype])
        cudnn.set(tensor, 902, INT64, *map(int, images.sizes))
        cudnn.set(tensor, 903, INT64, *map(int, images.strides))
        cudnn.set(tensor, 900, INT64, images.alignment)
        cudnn.set(tensor, 907, BOOLEAN, virtual)
        return cudnn.finish(tensor)

    def _between(self) -> c_void_p:
        """An intermediate result: like y, but in float32 and nowhere in memory."""
        self._virtual += 1
        y = self._convolution.y
        images = Images("float32", y.sizes, y.strides, 16)
        return self._tensor(VIRTUAL + self._virtual, images, virtual=True)

    def _convolve(self, x: c_void_p, w: c_void_p, y: c_void_p) -> c_void_p:
        cudnn, c = self._cudnn, self._convolution
        how = cudnn.make(self, CONVOLUTION)
        cudnn.set(how, 100, DTYPE, DTYPES["float32"])
        cudnn.set(how, 101, CONVOLUTION_MODE, CROSS_CORRELATION)
        cudnn.set(how, 106, INT64, 2)
        cudnn.set(how, 102, INT64, *c.dilations)
        cudnn.set(how, 103, INT64, *c.strides)
        cudnn.set(how, 105, INT64, *c.pads[:2])
        cudnn.set(how, 104, INT64, *c.pads[2:])
        operation = cudnn.make(self, CONVOLVE)
        cudnn.set(operation, 702, DESCRIPTOR, cudnn.finish(how))
        for attribute, part in ((704, x), (703, w), (705, y)):
            cudnn.set(operation, attribute, DESCRIPTOR, part)
        cudnn.set(operation, 700, FLOAT, 1.0)
        cudnn.set(operation, 701, FLOAT, 0.0)
        return cudnn.finish(operation)

    def _apply(self, mode: int, x: c_void_p, other: c_void_p | None, y: c_void_p) -> c_void_p:
        cudnn = self._cudnn
        how = cudnn.make(self, POINTWISE)
        cudnn.set(how, 0, POINTWISE_MODE, mode)
        cudnn.set(how, 1, DTYPE, DTYPES["float32"])
        operation = cudnn.make(self, APPLY)
        cudnn.set(operation, 750, DESCRIPTOR, cudnn.finish(how))
        cudnn.set(operation, 751, DESCRIPTOR, x)
        if other is not None:
            cudnn.set(operation, 752, DESCRIPTOR, other)
        cudnn.set(operation, 753, DESCRIPTOR, y)
        return cudnn.finish(operation)

    # -- engines ----------------------------------------------------------------------------------

    def algorithms(self, workspace: int, count: int) -> list[Algorithm]:
        """The first `count` engines (or fewer) of the library's heuristic, the most promising
        first, that are precise and take no more than so many bytes of workspace."""
        known, key = self._cudnn.known, (self._convolution, workspace, count)
        if key not in known:
            known[key] = self._found(workspace, count)
        return known[key]

    def _found(self, workspace: int, count: int) -> list[Algorithm]:
        found: list[Algorithm] = []
        try:
            for data in self._promising():
                size = self.workspace(data)
                if size is not None and size <= workspace:
                    found.append(Algorithm(data, size))
                if len(found) == count:
                    break
        except RefusedError:  # nothing serves
            return []
        return found

    def _promising(self) -> Iterator[bytes]:
        """Engines of the library's heuristic that are precise."""
        cudnn, owner = self._cudnn, _Owner()
        heuristic = cudnn.make(owner, HEURISTIC)
        cudnn.set(heuristic, 201, DESCRIPTOR, self._built())
        cudnn.set(heuristic, 200, HEURISTIC_MODE, MODE_A)
        cudnn.finish(heuristic)
        for configuration in cudnn.parts(owner, heuristic, 202, CONFIGURATION, KNOBS):
            (engine,) = cudnn.parts(owner, configuration, 300, ENGINE, 1)
            notes = set(cudnn.get(engine, 1303, NUMERICAL_NOTE, KNOBS))
            allowed = {DOWN_CONVERTED} if self._convolution.tf32 else set()
            if notes & (UNWANTED - allowed):
                continue
            (index,) = cudnn.get(engine, 1301, INT64, 1)
            knobs = []
            for knob in cudnn.parts(owner, configuration, 302, KNOB, KNOBS):
                (kind,) = cudnn.get(knob, 600, KNOB_TYPE, 1)
                (value,) = cudnn.get(knob, 601, INT64, 1)
                knobs.append(f"{kind}={value}")
            yield f"{index}:{','.join(knobs)}".encode()

    def workspace(self, algorithm: bytes) -> int | None:
        """How many bytes of workspace an engine takes here, None if it doesn't serve."""
        plan = self._plan(algorithm)
        return plan and plan[1]

    def _plan(self, algorithm: bytes) -> tuple[c_void_p, int] | None:
        """The library's plan of an engine with knobs, as `algorithms` writes it, and the bytes of
        workspace that takes; None if the library has no such engine for this convolution."""
        if algorithm not in self._plans:
            try:
                self._plans[algorithm] = self._made(algorithm.decode())
            except RefusedError:
                return None
        return self._plans[algorithm]

    def _made(self, algorithm: str) -> tuple[c_void_p, int]:
        cudnn = self._cudnn
        index, _, rest = algorithm.partition(":")
        engine = cudnn.make(self, ENGINE)
        cudnn.set(engine, 1300, DESCRIPTOR, self._built())
        cudnn.set(engine, 1301, INT64, int(index))
        configuration = cudnn.make(self, CONFIGURATION)
        cudnn.set(configuration, 300, DESCRIPTOR, cudnn.finish(engine))
        knobs = []
        for choice in filter(None, rest.split(",")):
            kind, _, value = choice.partition("=")
            knob = cudnn.make(self, KNOB)
            cudnn.set(knob, 600, KNOB_TYPE, int(kind))
            cudnn.set(knob, 601, INT64, int(value))
            knobs.append(cudnn.finish(knob))
        if knobs:
            cudnn.set(configuration, 302, DESCRIPTOR, *knobs)
        plan = cudnn.make(self, PLAN)
        cudnn.set(plan, 400, HANDLE, cudnn.handle)
        cudnn.set(plan, 401, DESCRIPTOR, cudnn.finish(configuration))
        cudnn.finish(plan)
        (size,) = cudnn.get(plan, 402, INT64, 1)
        return plan, int(size)

    def run(
        self, operands: Sequence[int], algorithm: bytes, workspace: tuple[int, int], stream: int
    ) -> None:
        """Compute on the stream. operands: addresses; workspace: address, bytes."""
        cudnn, owner = self._cudnn, _Owner()
        plan = self._plan(algorithm)
        if plan is None:
            raise DeviceError(f"cuDNN has no engine {algorithm.decode()} for this convolution")
        variants = cudnn.make(owner, VARIANTS)
        cudnn.set(variants, 1000, INT64, *range(len(operands)))
        cudnn.set(variants, 1001, POINTER, *operands)
        cudnn.set(variants, 1003, POINTER, workspace[0])
        cudnn.execute(plan[0], cudnn.finish(variants), stream)


class _Owner:
    """Something that descriptors are destroyed with."""
