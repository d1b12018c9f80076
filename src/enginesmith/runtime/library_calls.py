"""The steps of a plan that cuBLASLt or cuDNN computes: descriptors and algorithms by set of shapes.

A plan says which algorithm each call uses. It holds for the version of the library and the GPU that
it was timed with; elsewhere, and for sizes it doesn't serve, the library chooses again within the
plan's workspace, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from enginesmith.errors import DeviceError
from enginesmith.log import logger
from enginesmith.plan.expression import compile_expression
from enginesmith.plan.plan import Address, Convolution, LibraryCall, Plan, Product
from enginesmith.runtime.devices import cublas, cudnn
from enginesmith.runtime.devices.cublas import PreparedProduct, workspace_address
from enginesmith.runtime.devices.cuda import CudaDevice
from enginesmith.runtime.devices.cudnn import PreparedConvolution

Operation: TypeAlias = Product | Convolution
Prepared: TypeAlias = PreparedProduct | PreparedConvolution


@dataclass(frozen=True, slots=True)
class Library:
    """name: as users know it; source: as tactic_sources does."""

    name: str
    source: str

    def version_text(self, version: int) -> str:
        """A version as people write it."""
        if self.source == "cublaslt":
            return cublas.version_text(version)
        return cudnn.version_text(version)

    def load(self, device: CudaDevice) -> int:
        """Its version here. DeviceError if it is missing."""
        return (device.cublas_lt() if self.source == "cublaslt" else device.cudnn()).version


CUBLASLT, CUDNN = Library("cuBLASLt", "cublaslt"), Library("cuDNN", "cudnn")


def library_of(operation: Operation) -> Library:
    """Whose operation it is."""
    return CUBLASLT if isinstance(operation, Product) else CUDNN


def prepare(device: CudaDevice, operation: Operation, operands: Sequence[int]) -> Prepared:
    """The operation, whose sizes are ints and none is 0, ready to run on operands at these
    addresses (cuBLASLt's bias is part of what is prepared)."""
    if isinstance(operation, Product):
        return PreparedProduct(device.cublas_lt(), operation, *operands[4:])
    return PreparedConvolution(device.cudnn(), operation)


def algorithm_data(operation: Operation, text: str) -> bytes:
    """What a plan says of a call's algorithm, as the library is told; `algorithm_text` undoes
    it."""
    return bytes.fromhex(text) if isinstance(operation, Product) else text.encode()


def algorithm_text(operation: Operation, data: bytes) -> str:
    """See `algorithm_data`."""
    return data.hex() if isinstance(operation, Product) else data.decode()


@dataclass(frozen=True, slots=True)
class ReadyCall:
    """A call with all its parameters. operands: addresses; workspace: address and bytes."""

    step: int
    prepared: Prepared
    operands: tuple[int, ...]
    algorithm: bytes
    workspace: tuple[int, int]

    def issue(self, stream: int) -> None:
        """Put it on the stream."""
        self.prepared.run(self.operands, self.algorithm, self.workspace, stream)


class LibraryCalls:
    """The calls of a plan on one GPU; shared by the contexts of an engine."""

    def __init__(self, plan: Plan, device: CudaDevice) -> None:
        """DeviceError if the plan calls a library that isn't there."""
        self._calls, self._device, self._plan = plan.calls, device, plan
        self._chosen_anew: set[int] = set()
        self._strange = {
            library: why
            for library in (CUBLASLT, CUDNN)
            if (calls := [c for c in plan.calls if library_of(c.operation) == library])
            and (why := self._why_strange(library, calls))
        }
        for note in self.notes:
            logger.warning(note)

    def _why_strange(self, library: Library, calls: Sequence[LibraryCall]) -> str:
        """Why the plan's algorithms of a library don't hold here; empty if they do."""
        try:
            here = library.load(self._device)
        except DeviceError as error:
            raise DeviceError(
                f"{len(calls)} of the plan's {len(self._plan.steps)} steps call {library.name}: "
                f"{error}, or build the model again with tactic_sources=('cuda',)"
            ) from error
        if made := sorted({call.library for call in calls} - {here}):
            versions = ", ".join(map(library.version_text, made))
            return f"version {versions}, and this machine has {library.version_text(here)}"
        built = self._plan.target.removeprefix("cuda:")
        if built != f"sm_{self._device.arch}":
            return f"a GPU of {built}, and this one is sm_{self._device.arch}"
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the calls on this machine."""
        notes = []
        for library, why in self._strange.items():
            count = sum(library_of(call.operation) == library for call in self._calls)
            notes.append(
                f"the algorithms of the plan's {count} calls of {library.name} were timed for "
                f"{why}: the library chose others; build the model again to time them here"
            )
        for library in (CUBLASLT, CUDNN):
            steps = sorted(
                call.step for call in self._calls
                if call.step in self._chosen_anew and library_of(call.operation) == library
            )  # fmt: skip
            if steps:
                numbers = ", ".join(map(str, steps))
                notes.append(
                    f"for sizes not tuned for, {library.name} chose other algorithms (steps "
                    f"{numbers})"
                )
        return tuple(notes)

    def ready(self, values: Mapping[str, int], base: Sequence[int]) -> list[ReadyCall]:
        """All calls for these sizes, with buffer i of the plan at base[i]; none for empty results.
        DeviceError if the library doesn't know an operation."""

        def place(address: Address) -> int:
            return base[address.buffer] + compile_expression(address.offset)(values)

        made = []
        for call in self._calls:
            operation = call.operation.sized(lambda size: compile_expression(size)(values))
            if operation.empty:
                continue
            operands = tuple(map(place, call.operands))
            prepared = prepare(self._device, operation, operands)
            algorithm, size = self._algorithm(call, prepared)
            workspace = (workspace_address(next(map(place, call.workspace), 0)), size)
            made.append(ReadyCall(call.step, prepared, operands, algorithm, workspace))
        return made

    def _algorithm(self, call: LibraryCall, prepared: Prepared) -> tuple[bytes, int]:
        """The plan's algorithm, or the library's choice where that doesn't hold, and the bytes of
        workspace it takes."""
        library = library_of(call.operation)
        if library not in self._strange:
            algorithm = algorithm_data(call.operation, call.algorithm)
            needed = prepared.workspace(algorithm)
            if needed is not None and needed <= call.reserved:
                return algorithm, needed
            self._chosen_anew.add(call.step)
        found = prepared.algorithms(call.reserved, 1)
        if not found:
            version = library.version_text(library.load(self._device))
            raise DeviceError(
                f"{library.name} {version} has no algorithm for step {call.step} "
                f"({self._plan.steps[call.step].problem}) with {call.reserved} bytes of workspace; "
                "build the model again, or with tactic_sources=('cuda',)"
            )
        return found[0].data, found[0].workspace
