"""What pooling and resizing share on a GPU: a thread makes the results of a few channels at one
place of an image.

Threads are counted along the memory of y. The channels of a thread are `width` neighbours along
`axis`: one vector where they lie side by side (channels-last images); where they lie apart,
neighbouring threads touch neighbouring elements, and what depends on the place alone is computed
once for all channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from enginesmith.codegen.cuda_expressions import (
    STORAGE_TYPES,
    cuda_expression,
    load_value,
    store_value,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Expr, args_of
from enginesmith.kernels.base import Operand, Problem, Size, ceildiv
from enginesmith.kernels.cuda_nest import (
    Values,
    factor,
    index_text,
    offset_text,
    vector_width,
)
from enginesmith.kernels.nest import Axis, product


@dataclass
class Planes:
    """axis: of the channels, None if a thread handles one element; width: channels of a thread;
    group: places along the last axis that a thread handles.

    Names in the text: o0, o1, ... this thread's first place on each axis of y; n, unless `whole`,
    how many of its channels exist.
    """

    problem: Problem
    axis: int | None
    width: int = 1
    group: int = 1
    values: Values = field(default_factory=Values)

    @property
    def y(self) -> Operand:
        return self.problem.operands[-1]

    @property
    def names(self) -> list[str]:
        return [f"o{a}" for a in range(len(self.y.shape))]

    @property
    def whole(self) -> bool:
        """True if all threads provably have `width` channels."""
        return self.axis is None or factor(self.y.shape[self.axis], self.width) == self.width

    def _step(self, axis: int) -> int:
        if axis == self.axis:
            return self.width
        return self.group if axis == len(self.y.shape) - 1 else 1

    def _counts(self) -> list[Size]:
        return [ceildiv(size, self._step(a)) for a, size in enumerate(self.y.shape)]

    @property
    def total(self) -> Size:
        """Threads."""
        return product(self._counts())

    def start(self, threads: int) -> str:
        """C++: waits for the kernels in front, ends threads without work, finds the place."""
        counts = self._counts()
        order = sorted(range(len(counts)), key=lambda a: -self.problem.typical(self.y.strides[a]))
        text = (
            f"grid_launch();\ngrid_wait();\nconst int index = blockIdx.x * {threads} + threadIdx.x;"
            f"\nif (index >= {self.values.value(self.total)}) return;\n"
        )
        text += index_text([Axis(counts[a], ()) for a in order], self.values, "index")
        for at, a in enumerate(order):
            step = self._step(a)
            text += f"const int o{a} = i{at}{f' * {step}' if step > 1 else ''};\n"
        if not self.whole:
            assert self.axis is not None
            size = self.values.text(self.y.shape[self.axis])
            text += f"const int n = imin({self.width}, {size} - o{self.axis});\n"
        return text

    def offset(self, k: int, names: Sequence[str]) -> str:
        """C++: where `names` is in operand k, in elements."""
        return offset_text(names, self.problem.operands[k].strides, self.values)

    def access(self, k: int) -> int:
        """Elements of operand k that one access moves."""
        return 1 if self.axis is None else channel_width(self.problem, k, self.axis, self.width)

    def load(self, k: int, array: str, place: str) -> str:
        """C++: reads a thread's channels of operand k at `place` (an address) into `array`."""
        stride = 0 if self.axis is None else self.problem.operands[k].strides[self.axis]
        if stride == 0:
            return f"UNROLL for (int k = 0; k < {self.width}; ++k) {array}[k] = *({place});"
        n = str(self.width) if self.whole else "n"
        some = f"load_some({array}, {place}, {self.values.text(stride)}, {n});"
        if stride != 1:
            return some
        run = f"load_run<{self.access(k)}>({array}, {place});"
        return run if self.whole else f"if (n == {self.width}) {run} else {some}"

    def store(self, array: str, place: str) -> str:
        """C++: the reverse, for y."""
        stride = 1 if self.axis is None else self.y.strides[self.axis]
        n = str(self.width) if self.whole else "n"
        some = f"store_some({place}, {array}, {self.values.text(stride)}, {n});"
        if stride != 1:
            return some
        run = f"store_run<{self.access(len(self.problem.operands) - 1)}>({place}, {array});"
        return run if self.whole else f"if (n == {self.width}) {run} else {some}"

    def finish(
        self, epilogue: Expr, result: str, kind: str, names: Sequence[str] | None = None
    ) -> str:
        """C++: y = epilogue(result, operands 1, 2, ...) for the thread's channels k at `names`;
        result: C++ of channel k, a value of dtype `kind`."""
        names, last = names or self.names, len(self.problem.operands) - 1
        kinds = [kind, *(o.dtype for o in self.problem.operands[1:-1])]
        text, args = "", [result]
        for k in range(1, last):
            if k in args_of(epilogue):
                text += f"{CUDA_TYPES[kinds[k]]} a{k}[{self.width}];\n"
                text += self.load(k, f"a{k}", f"p{k} + ({self.offset(k, names)})") + "\n"
            args.append(load_value(kinds[k], f"a{k}[k]"))
        value = cuda_expression(epilogue, args, kinds, self.y.dtype in STORAGE_TYPES)
        value = store_value(self.y.dtype, value)
        place = f"p{last} + ({self.offset(last, names)})"
        return text + (
            f"{CUDA_TYPES[self.y.dtype]} y[{self.width}];\n"
            f"UNROLL for (int k = 0; k < {self.width}; ++k) y[k] = {value};\n"
            f"{self.store('y', place)}\n"
        )


def channel_width(problem: Problem, k: int, axis: int, limit: int = 8) -> int:
    """How many neighbours along `axis` one access to operand k moves."""
    strides = list(problem.operands[k].strides)
    own = strides.pop(axis)
    axes = [Axis(1, (s,)) for s in (*strides, own)]
    return vector_width(problem.operands[k], axes, 0, limit)
