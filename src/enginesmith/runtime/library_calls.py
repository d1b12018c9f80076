"""The steps of a plan that cuBLASLt computes: descriptors and algorithms per set of shapes.

A plan says which algorithm each call uses. It holds for the version of the library and the GPU that
it was timed with; elsewhere, and for sizes it doesn't serve, the library chooses again within the
plan's workspace, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginesmith.errors import DeviceError
from enginesmith.log import logger
from enginesmith.plan.expression import compile_expression
from enginesmith.plan.plan import Address, LibraryCall, Plan
from enginesmith.runtime.devices.cublas import PreparedProduct, version_text, workspace_address
from enginesmith.runtime.devices.cuda import CudaDevice


@dataclass(frozen=True, slots=True)
class ReadyCall:
    """A call with all its parameters. matrices: the addresses of a, b, c, d; workspace: address and
    bytes."""

    step: int
    product: PreparedProduct
    matrices: tuple[int, int, int, int]
    algorithm: bytes
    workspace: tuple[int, int]

    def issue(self, stream: int) -> None:
        """Put it on the stream."""
        self.product.run(*self.matrices, self.algorithm, self.workspace, stream)


class LibraryCalls:
    """The calls of a plan on one GPU; shared by the contexts of an engine."""

    def __init__(self, plan: Plan, device: CudaDevice) -> None:
        """DeviceError if the plan calls the library and it isn't there."""
        self._calls, self._device, self._plan = plan.calls, device, plan
        self._chosen_anew: set[int] = set()
        if not plan.calls:
            return
        try:
            self._library = device.cublas_lt()
        except DeviceError as error:
            raise DeviceError(
                f"{len(plan.calls)} of the plan's {len(plan.steps)} steps call cuBLASLt: {error}, "
                "or build the model again with tactic_sources=('cuda',)"
            ) from error
        self._strange = self._why_strange()
        if self._strange:
            logger.warning(self.notes[0])

    def _why_strange(self) -> str:
        """Why the plan's algorithms don't hold here; empty if they do."""
        here = self._library.version
        made = sorted({call.library for call in self._calls} - {here})
        if made:
            versions = ", ".join(map(version_text, made))
            return f"version {versions}, and this machine has {version_text(here)}"
        built = self._plan.target.removeprefix("cuda:")
        if built != f"sm_{self._device.arch}":
            return f"a GPU of {built}, and this one is sm_{self._device.arch}"
        return ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about the calls on this machine."""
        if not self._calls:
            return ()
        if self._strange:
            return (
                f"the algorithms of the plan's {len(self._calls)} calls of cuBLASLt were timed for "
                f"{self._strange}: the library chose others; build the model again to time them "
                "here",
            )
        if not self._chosen_anew:
            return ()
        steps = ", ".join(map(str, sorted(self._chosen_anew)))
        return (f"for sizes not tuned for, cuBLASLt chose other algorithms (steps {steps})",)

    def ready(self, values: Mapping[str, int], base: Sequence[int]) -> list[ReadyCall]:
        """All calls for these sizes, with buffer i of the plan at base[i]; none for empty results.
        DeviceError if the library doesn't know a product."""

        def place(address: Address) -> int:
            return base[address.buffer] + compile_expression(address.offset)(values)

        made = []
        for call in self._calls:
            product = call.product.sized(lambda size: compile_expression(size)(values))
            if 0 in (product.count, product.d.rows, product.d.columns):
                continue
            bias = next(map(place, call.bias), 0)
            prepared = PreparedProduct(self._library, product, bias)
            algorithm, size = self._algorithm(call, prepared)
            matrices = (place(call.a), place(call.b), place(call.c), place(call.d))
            workspace = (workspace_address(next(map(place, call.workspace), 0)), size)
            made.append(ReadyCall(call.step, prepared, matrices, algorithm, workspace))
        return made

    def _algorithm(self, call: LibraryCall, product: PreparedProduct) -> tuple[bytes, int]:
        """The plan's algorithm, or the library's choice where that doesn't hold, and the bytes of
        workspace it takes."""
        if not self._strange:
            algorithm = bytes.fromhex(call.algorithm)
            needed = product.workspace(algorithm)
            if needed is not None and needed <= call.reserved:
                return algorithm, needed
            self._chosen_anew.add(call.step)
        found = product.algorithms(call.reserved, 1)
        if not found:
            raise DeviceError(
                f"cuBLASLt {version_text(self._library.version)} has no algorithm for step "
                f"{call.step} ({self._plan.steps[call.step].problem}) with {call.reserved} bytes "
                "of workspace; build the model again, or with tactic_sources=('cuda',)"
            )
        return found[0].data, found[0].workspace
