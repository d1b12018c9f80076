"""Row kernels on a GPU: what softmax, normalization and reductions share.

A row kernel knows *rows* - everything along the reduced axes at one place of the kept axes - of
elements x, an expression over inputs. It folds each row to one or more numbers, each of which may
use those before (the mean, then the mean of (x - mean)^2), and stores a value per element or, for
a reduction, one per row.

Two layouts of threads serve any strides:

- `rows`: `t` threads side by side along a row, vectors of `n` elements along the reduced axes. For
  rows that are contiguous in memory.
- `columns`: vectors of `n` neighbouring rows, `r` of them side by side; `t` groups of threads share
  the elements of a row. For rows whose elements are apart while neighbouring rows touch: pooling
  and instance normalization of channels-last images.

Each thread handles `v` vectors at once: their loads overlap. With `keep` these are all that it has,
so they stay in registers from the first fold to the result; otherwise they are read again, from
cache, for every fold. `s` blocks of a cluster share a row where there are few rows. Where there are
many, `loop` blocks per multiprocessor take one group of rows after the other: what all rows share
(scale and bias of a normalization) is read once, and the next row while this one is folded.

Sums of float16, bfloat16 and float32 are kept in float32, of integers in int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from enginesmith.codegen.cuda_expressions import (
    STORAGE_TYPES,
    cuda_expression,
    cuda_float,
    cuda_functions,
    load_value,
    store_value,
    value_type,
)
from enginesmith.codegen.cuda_prelude import CUDA_TYPES
from enginesmith.ir.expr import Expr, args_of, dtype_of
from enginesmith.kernels.base import Problem, Size, Tactic, ceildiv, least, mul
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.kernels.cuda_nest import (
    MULTIPROCESSORS,
    RUNS,
    Values,
    by_strides,
    index_text,
    kernel_head,
    offset_text,
    vector_width,
)
from enginesmith.kernels.nest import RESULT, Axis, product

FOLDS = """
struct Sum { template <class T> DEVICE T fold(T a, T b) { return a + b; } };
struct Product { template <class T> DEVICE T fold(T a, T b) { return a * b; } };
/* NaN if either is. */
struct Max {
  template <class T> DEVICE T fold(T a, T b) { return a > b || a != a ? a : b; }
  DEVICE float fold(float a, float b) { return nan_max(a, b); }
};
struct Min {
  template <class T> DEVICE T fold(T a, T b) { return a < b || a != a ? a : b; }
  DEVICE float fold(float a, float b) { return nan_min(a, b); }
};
/* All N numbers folded into one, as a tree. */
template <class F, int N, class T> DEVICE T fold_first(const T *t) {
  if constexpr (N == 1) return t[0];
  else return F::fold(fold_first<F, (N + 1) / 2>(t), fold_first<F, N / 2>(t + (N + 1) / 2));
}
template <class F, class T, int N> DEVICE T fold_all(const T (&t)[N]) {
  return fold_first<F, N>(t);
}
/* Folded over the lanes of the warp whose numbers differ in bits FROM, 2 * FROM, ... below TO. */
template <class F, int FROM, int TO, class T, int N> DEVICE void fold_lanes(T (&t)[N]) {
  UNROLL for (int bit = FROM; bit < TO; bit *= 2)
    UNROLL for (int k = 0; k < N; ++k) t[k] = F::fold(t[k], lane_xor(t[k], bit));
}
/* Folded over the WARPS warps of the block; lanes whose numbers agree modulo LANES hold the same.
   shared: room for (WARPS + 1) * LANES * N numbers. */
template <class F, int WARPS, int LANES, class T, int N>
DEVICE void fold_warps(T (&t)[N], T *shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % LANES;
  if (threadIdx.x % 32 < LANES)
    UNROLL for (int k = 0; k < N; ++k) shared[(warp * LANES + lane) * N + k] = t[k];
  __syncthreads();
  T part[WARPS];
  if (LANES * N == 1) {
    UNROLL for (int w = 0; w < WARPS; ++w) part[w] = shared[w];
    t[0] = fold_all<F>(part);
    return;
  }
  T *total = shared + WARPS * LANES * N;
  UNROLL for (int i = 0; i < ceildiv(LANES * N, WARPS * 32); ++i) {
    const int c = threadIdx.x + i * WARPS * 32;
    if (c < LANES * N) {
      UNROLL for (int w = 0; w < WARPS; ++w) part[w] = shared[w * LANES * N + c];
      total[c] = fold_all<F>(part);
    }
  }
  __syncthreads();
  UNROLL for (int k = 0; k < N; ++k) t[k] = total[lane * N + k];
}
"""
"""C++: folds across threads; all of them get the result."""

CLUSTER_FOLD = """
/* Folded over the blocks of the cluster. shared: room for 2 * LANES * N numbers, which no block may
   leave before the others have read them. */
template <class F, int BLOCKS, int LANES, int N>
DEVICE void fold_cluster(float (&t)[N], float *shared) {
  const int lane = threadIdx.x % LANES;
  float *total = shared + LANES * N;
  if (threadIdx.x < LANES) UNROLL for (int k = 0; k < N; ++k) shared[lane * N + k] = t[k];
  cluster_sync();
  for (int c = threadIdx.x; c < LANES * N; c += blockDim.x) {
    float part[BLOCKS];
    UNROLL for (int b = 0; b < BLOCKS; ++b) part[b] = cluster_load(cluster_address(shared + c, b));
    total[c] = fold_all<F>(part);
  }
  __syncthreads();
  UNROLL for (int k = 0; k < N; ++k) t[k] = total[lane * N + k];
}
"""
"""C++: of compute capability 9.0 and newer."""

_FUNCTOR = {"sum": "Sum", "mean": "Sum", "prod": "Product", "max": "Max", "min": "Min"}
_LOWEST = {"max": -inf, "min": inf}
_EXTREME = {"max": "-9223372036854775807LL - 1", "min": "9223372036854775807LL"}


@dataclass(frozen=True, slots=True)
class Fold:
    """A number per row, called `name`: the fold (a reduction's kind) of `term`, C++ over the
    element `x` and the folds before; then `finish`, C++ over the total `t` and `share`, 1 / the
    row's length (of integers: the length), both of the type that folds are computed in."""

    name: str
    kind: str
    term: str
    finish: str = "t"


@dataclass(frozen=True, slots=True)
class RowKernel:
    """kept, reduced: the nest, with the strides of all operands; the last operand is the result.
    element: the expression of x over the operands. result: C++ of what is stored, over x and the
    folds; epilogue: over it (Arg(0)) and operands: Arg(k) is operand k + shift. each: a result per
    element; otherwise one per row (without x, and the epilogue has no further operands).
    functions: C++ that terms and `result` need."""

    problem: Problem
    kept: Sequence[Axis]
    reduced: Sequence[Axis]
    element: Expr
    folds: Sequence[Fold]
    result: str
    epilogue: Expr = RESULT
    shift: int = 0
    each: bool = True
    functions: str = ""

    @property
    def dtypes(self) -> list[str]:
        return [o.dtype for o in self.problem.operands]

    @property
    def kind(self) -> str:
        """The dtype of x."""
        return dtype_of(self.element, self.dtypes[:-1])

    @property
    def accumulator(self) -> str:
        """The C++ type of folds."""
        return {"float64": "double"}.get(self.kind, "float" if "float" in self.kind else "int64_t")

    @property
    def fast(self) -> bool:
        """True if the result can't show more than the fast functions compute."""
        return self.dtypes[-1] in STORAGE_TYPES

    @property
    def inputs(self) -> list[int]:
        """Operands that x is made of."""
        return sorted(args_of(self.element))

    @property
    def extras(self) -> list[int]:
        """Operands that the epilogue reads besides."""
        return sorted(k + self.shift for k in args_of(self.epilogue) if k)

    @property
    def columns(self) -> bool:
        """True if neighbouring rows are closer in memory than the elements of a row."""
        main = _main(self.problem, self.inputs)
        steps = [self.problem.typical(a[-1].strides[main]) for a in (self.kept, self.reduced)]
        return self.problem.typical(self.reduced[-1].size) == 1 or (
            steps[0] != 0 and (steps[1] == 0 or steps[0] < steps[1])
        )


def _main(problem: Problem, inputs: Sequence[int]) -> int:
    """The input of the most elements: neighbouring threads read its neighbouring elements."""

    def size(k: int) -> int:
        o = problem.operands[k]
        return sum(1 for n, s in zip(o.shape, o.strides, strict=True) if n != 1 and s != 0)

    return max(inputs, key=size, default=0)


def row_kernel(
    problem: Problem, kept: Sequence[Axis], reduced: Sequence[Axis], element: Expr,
    folds: Sequence[Fold], result: str, epilogue: Expr = RESULT, shift: int = 0, *,
    each: bool = True, functions: str = "",
) -> RowKernel:  # fmt: skip
    """The kernel, its axes in the order in which they lie in memory."""
    main = _main(problem, sorted(args_of(element)))
    kept, reduced = (by_strides(problem, axes, main) for axes in (kept, reduced))
    return RowKernel(
        problem, kept, reduced, element, folds, result, epilogue, shift, each, functions
    )  # fmt: skip


def emit_rows(kernel: RowKernel, choice: Tactic) -> CudaSource:
    """The text and the launch of a tactic of `row_tactics`."""
    return _Writer(kernel, choice).source()


class _Writer:
    """Writes one kernel. Names in its text: i0, i1, ... the place on the kept axes; q<k> operand k
    there; e the vector along the reduced axes, r0, r1, ... its place on them; a<k> operand k at
    those vectors; xs the elements; means the fold `mean`."""

    def __init__(self, kernel: RowKernel, choice: Tactic) -> None:
        self.kernel, self.problem = kernel, kernel.problem
        self.columns = choice.name == "columns"
        self.n, self.v, self.s = choice["n"], choice["v"], choice["s"]
        self.t, self.r, self.keep = choice["t"], choice["r"], bool(choice["keep"])
        self.loop = choice.get("loop")
        self.values, self.shared = Values(), 0
        self.y = len(kernel.problem.operands) - 1
        self.kept, self.reduced = kernel.kept, kernel.reduced
        if self.columns:
            self.vectored, self.kept = kernel.kept, in_vectors(kernel.kept, self.n)
        else:
            self.vectored, self.reduced = kernel.reduced, in_vectors(kernel.reduced, self.n)
        self.rows, self.length = counts(kernel, self.n)
        step = self.t * self.s
        self.full = self.length // step if self.keep and isinstance(self.length, int) else 0
        self.results = self.n if self.columns else 1  # rows of a thread

    def source(self) -> CudaSource:
        kernel = self.kernel
        body = self._looped() if self.loop else self._start() + self._folds() + self._store()
        clusters = CLUSTER_FOLD if self.s > 1 else ""
        threads = self.t * self.r
        head = kernel_head(self.problem, self.values, threads, blocks=self.loop)
        text = RUNS + FOLDS + clusters + cuda_functions(kernel.element, kernel.epilogue)
        text += kernel.functions
        groups = ceildiv(self.rows, self.r)
        grid = (least(groups, self.loop * MULTIPROCESSORS) if self.loop else groups, self.s, 1)
        launch = Launch(
            grid, threads, self.values.launch, shared=self.shared, cluster=(1, self.s, 1)
        )
        return CudaSource(text + head + body + "}\n", (launch,))

    # -- places ------------------------------------------------------------------------------

    def _start(self) -> str:
        """This thread's row and its share of it; what it keeps."""
        operands = [*self.kernel.inputs, *self.kernel.extras]
        text = "grid_launch();\n" + self._share() + self._row("blockIdx.x")
        text += "".join(self._place(k) for k in sorted({*operands, self.y}))
        if self.keep:
            text += "const int b = g;\n" + self._prefetch()
            text += "grid_wait();\n" + self._load(operands)
            return text + self._elements()
        return text + "grid_wait();\n"

    def _share(self) -> str:
        """g: which vectors of a row are this thread's."""
        own, width = ("/", self.r) if self.columns else ("%", self.t)
        rank = f" + cluster_rank() * {self.t}" if self.s > 1 else ""
        return f"const int g = threadIdx.x {own} {width}{rank};\n"

    def _row(self, group: str) -> str:
        """row: this thread's of a group of rows; at: the same, or the last that exists; i0, i1, ...
        its place on the kept axes."""
        whole, width = ("%", self.r) if self.columns else ("/", self.t)
        text = f"const int row = {group} * {self.r} + threadIdx.x {whole} {width};\n"
        if self.r > 1:
            text += f"const int at = imin(row, {self.values.value(self.rows)} - 1);\n"
        return text + index_text(self.kept, self.values, "at" if self.r > 1 else "row")

    def _place(self, k: int) -> str:
        """q<k>: operand k at this row."""
        offset = self._kept_offset([f"i{n}" for n in range(len(self.kept))], k)
        kind = CUDA_TYPES[self.problem.operands[k].dtype]
        return f"{'' if k == self.y else 'const '}{kind} *q{k} = p{k} + ({offset});\n"

    def _looped(self) -> str:
        """All of the kernel, with a loop over groups of rows. Every thread of a block takes part in
        all rounds."""
        kernel = self.kernel
        operands = sorted({*kernel.inputs, *kernel.extras})
        fixed = [k for k in operands if all(a.strides[k] == 0 for a in self.kept)]
        early = [k for k in fixed if self.problem.operands[k].constant]
        moving = [k for k in operands if k not in fixed]
        ahead = [k for k in moving if k not in kernel.extras]
        groups = self.values.value(ceildiv(self.rows, self.r))
        places = "".join(self._place(k) for k in ahead)
        text = "grid_launch();\n" + self._share() + "const int b = g;\n"
        text += "".join(self._place(k) for k in fixed) + self._declared(operands)
        text += self._fetch(early) + "grid_wait();\n"
        text += self._fetch([k for k in fixed if k not in early])
        text += f"{{\n{self._row('blockIdx.x')}{places}{self._fetch(ahead)}}}\n"
        text += f"for (int group = blockIdx.x; group < {groups}; group += gridDim.x) {{\n"
        text += self._row("group")
        rest = [k for k in moving if k not in ahead]
        text += "".join(self._place(k) for k in [*rest, self.y]) + self._fetch(rest)
        text += self._elements()
        text += f"if (group + gridDim.x < {groups}) {{\nconst int later = group + gridDim.x;\n"
        text += f"{self._row('later')}{places}{self._fetch(ahead)}}}\n"
        text += self._folds() + self._store()
        # With one fold a round's numbers in shared memory might be replaced before all have read.
        alone = self.shared and len(kernel.folds) == 1
        return text + ("__syncthreads();\n" if alone else "") + "}\n"

    def _prefetch(self) -> str:
        """Constants on their way to the L2 cache before the kernels in front have finished. One
        block asks for all: requests of many for the same lines would queue up there."""
        constants = [k for k in self.kernel.extras if self.problem.operands[k].constant]
        body = "".join(f"prefetch(q{k} + ({self._offset(k)})); " for k in constants)
        return f"if (blockIdx.x == 0) {self._positions(body)}" if body else ""

    def _kept_offset(self, names: Sequence[str], k: int) -> str:
        """Strides as values: problems that differ in them share a kernel."""
        strides = [a.strides[k] for a in self.kept]
        terms = [
            i if s == 1 else f"{i} * {self.values.value(s)}"
            for i, s in zip(names, strides, strict=True)
            if s != 0
        ]
        return " + ".join(terms) or "0"

    def _offset(self, k: int) -> str:
        names = [f"r{i}" for i in range(len(self.reduced))]
        return offset_text(names, [a.strides[k] for a in self.reduced], self.values)

    def _index(self) -> str:
        return index_text(self.reduced, self.values, "e", "r")

    @property
    def _valid(self) -> str:
        """C++ condition: position i of this batch exists."""
        if self.full >= self.v:
            return ""
        inside = f"b + i * {self.t * self.s} < {self.values.text(self.length)}"
        return f"i < {self.full} || {inside}" if self.full else inside

    # -- elements ----------------------------------------------------------------------------

    def _load(self, operands: Sequence[int]) -> str:
        """a<k>: the operands at positions b, b + step, ... of the row, all loads before any use.
        Positions past the end repeat the last one."""
        return self._declared(operands) + self._fetch(operands)

    def _declared(self, operands: Sequence[int]) -> str:
        """Registers a<k> of the operands' elements."""
        return "".join(
            f"{CUDA_TYPES[self.problem.operands[k].dtype]} a{k}[{self.v}][{self.n}];\n"
            for k in operands
        )

    def _fetch(self, operands: Sequence[int]) -> str:
        """Loads into the registers of `_declared`."""
        return self._positions("".join(self._read(k) for k in operands)) if operands else ""

    def _positions(self, body: str) -> str:
        """`body` for e, the vectors of a batch; those past the end repeat the last one."""
        e = f"b + i * {self.t * self.s}"
        if self.full < self.v:
            clamped = f"imin({e}, {self.values.text(self.length)} - 1)"
            e = f"i < {self.full} ? {e} : {clamped}" if self.full else clamped
        return (
            f"UNROLL for (int i = 0; i < {self.v}; ++i) {{\nconst int e = {e}; {self._index()}"
            f"{body}}}\n"
        )

    def _read(self, k: int) -> str:
        place, stride = f"q{k} + ({self._offset(k)})", self.vectored[-1].strides[k]
        if stride == 0:
            return (
                f"{{ const {CUDA_TYPES[self.problem.operands[k].dtype]} a = *({place}); "
                f"UNROLL for (int k = 0; k < {self.n}; ++k) a{k}[i][k] = a; }}\n"
            )
        if stride == 1:
            return f"load_run<{self._width(k)}>(a{k}[i], {place});\n"
        return f"load_some(a{k}[i], {place}, {self.values.text(stride)}, {self.n});\n"

    def _width(self, k: int) -> int:
        others = self.kernel.reduced if self.columns else self.kernel.kept
        axes = [*others, *self.vectored]
        return vector_width(self.problem.operands[k], axes, k, self.n)

    def _elements(self) -> str:
        """xs: the elements of the batch."""
        kernel = self.kernel
        args = self._args(range(self.y))
        value = cuda_expression(kernel.element, args, kernel.dtypes[:-1], kernel.fast)
        return (
            f"{value_type(kernel.kind)} xs[{self.v}][{self.n}];\n"
            f"UNROLL for (int i = 0; i < {self.v}; ++i)\n"
            f"UNROLL for (int k = 0; k < {self.n}; ++k) xs[i][k] = {value};\n"
        )

    def _args(self, operands: Sequence[int]) -> list[str]:
        return [load_value(self.problem.operands[k].dtype, f"a{k}[i][k]") for k in operands]

    # -- folds -------------------------------------------------------------------------------

    def _batches(self, operands: Sequence[int], elements: bool, body: str) -> str:
        """`body` for each batch of positions of this thread."""
        if self.keep:
            return body
        head = f"for (int b = g; b < {self.values.text(self.length)}; b += "
        load = self._load(operands) + (self._elements() if elements else "")
        return f"{head}{self.v * self.t * self.s}) {{\n{load}{body}}}\n"

    def _names(self, folds: Sequence[Fold], k: str) -> str:
        """C++: x and the folds so far, of element k."""
        kind = self.kernel.accumulator
        text = f"const {value_type(self.kernel.kind)} x = xs[i][k]; (void)x;"
        return text + self._numbers(folds, k if self.columns else "0", kind)

    def _numbers(self, folds: Sequence[Fold], k: str, kind: str) -> str:
        return "".join(f" const {kind} {f.name} = {f.name}s[{k}]; (void){f.name};" for f in folds)

    def _folds(self) -> str:
        kernel, kind = self.kernel, self.kernel.accumulator
        size = self.values.text(product([a.size for a in kernel.reduced]))
        share = size if kind == "int64_t" else f"1 / ({kind}){size}"
        text = f"const {kind} share = {share}; (void)share;\n"
        for at, fold in enumerate(kernel.folds):
            functor, first = _FUNCTOR[fold.kind], self._identity(fold.kind)
            many = f"t{at}"
            # Not a branch: loads whose values are used in one alone would move into it.
            value = "value"
            if self._valid and fold.kind not in _LOWEST:  # repeats don't change those
                value = f"{self._valid} ? value : ({kind}){first}"
            step = (
                f"UNROLL for (int i = 0; i < {self.v}; ++i) "
                f"UNROLL for (int k = 0; k < {self.n}; ++k) {{\n"
                f"{self._names(kernel.folds[:at], 'k')}\nconst {kind} value = {fold.term};\n"
                f"{many}[k] = {functor}::fold({many}[k], {value});\n}}\n"
            )
            text += f"{kind} {many}[{self.n}];\n"
            text += f"UNROLL for (int k = 0; k < {self.n}; ++k) {many}[k] = {first};\n"
            text += self._batches(kernel.inputs, True, step)
            text += self._across(fold, many, functor, kind)
        return text

    def _identity(self, kind: str) -> str:
        if kind in _LOWEST:
            number = cuda_float(_LOWEST[kind], self.kernel.kind)
            return _EXTREME[kind] if self.kernel.accumulator == "int64_t" else number
        return "1" if kind == "prod" else "0"

    def _across(self, fold: Fold, many: str, functor: str, kind: str) -> str:
        """<fold>s: the totals over all threads of the row, finished."""
        m, name = self.results, f"{fold.name}s"
        if self.columns:
            text = f"{kind} (&{name})[{m}] = {many};\n"
            first, last = (self.r, 32) if self.r < 32 and self.t > 1 else (1, 1)
            lanes, warps = min(self.r, 32), self.t * self.r // 32 if self.t > 1 else 1
        else:
            text = f"{kind} {name}[1] = {{fold_all<{functor}>({many})}};\n"
            first, last = 1, min(self.t, 32)
            lanes, warps = 1, max(1, self.t // 32)
        if first < last:
            text += f"fold_lanes<{functor}, {first}, {last}>({name});\n"
        if warps > 1:
            shared = self._shared((warps + 1) * lanes * m)
            text += f"fold_warps<{functor}, {warps}, {lanes}>({name}, {shared});\n"
        if self.s > 1:
            shared = self._shared(2 * lanes * m)
            text += f"fold_cluster<{functor}, {self.s}, {lanes}>({name}, {shared});\n"
        if fold.finish != "t":
            text += (
                f"UNROLL for (int k = 0; k < {m}; ++k) {{ const {kind} t = {name}[k];"
                f"{self._numbers(self.kernel.folds[: self.kernel.folds.index(fold)], 'k', kind)}"
                f" {name}[k] = {fold.finish}; }}\n"
            )
        return text

    def _shared(self, numbers: int) -> str:
        """C++: shared memory for so many numbers of folds, of its own."""
        kind, at = self.kernel.accumulator, self.shared
        self.shared += numbers * (4 if kind == "float" else 8)
        return f"({kind} *)(shared_memory() + {at})"

    # -- results -----------------------------------------------------------------------------

    def _store(self) -> str:
        text = self._store_each() if self.kernel.each else self._store_row()
        return text + ("cluster_sync();\n" if self.s > 1 else "")

    def _result(self, args: Sequence[str]) -> str:
        """C++: the value that is stored, converted."""
        kernel, shift = self.kernel, self.kernel.shift
        count = max(args_of(kernel.epilogue), default=0)
        kinds = [kernel.kind, *(kernel.dtypes[k + shift] for k in range(1, count + 1))]
        whole = [f"(({value_type(kernel.kind)})({kernel.result}))", *args]
        value = cuda_expression(kernel.epilogue, whole, kinds, kernel.fast)
        return store_value(kernel.dtypes[-1], value)

    def _write(self, place: str, stride: Size, width: int, count: int) -> str:
        if stride == 1 or count == 1:
            return f"store_run<{width if count > 1 else 1}>({place}, y);\n"
        return f"store_some({place}, y, {self.values.text(stride)}, {count});\n"

    def _store_each(self) -> str:
        kernel = self.kernel
        count = max(args_of(kernel.epilogue), default=0)
        args = self._args([k + kernel.shift for k in range(1, count + 1)])
        kind = CUDA_TYPES[kernel.dtypes[-1]]
        inside = [self._valid and f"({self._valid})"]
        inside += [f"row < {self.values.value(self.rows)}"] if self.r > 1 else []
        condition = " && ".join(c for c in inside if c)
        place = f"q{self.y} + ({self._offset(self.y)})"
        write = self._write(place, self.vectored[-1].strides[-1], self._width(self.y), self.n)
        body = (
            f"UNROLL for (int i = 0; i < {self.v}; ++i) {f'if ({condition}) ' if condition else ''}"
            f"{{\nconst int e = b + i * {self.t * self.s}; {self._index()}{kind} y[{self.n}];\n"
            f"UNROLL for (int k = 0; k < {self.n}; ++k) {{\n{self._names(kernel.folds, 'k')}\n"
            f"y[k] = {self._result(args)};\n}}\n{write}}}\n"
        )
        return self._batches([*kernel.inputs, *kernel.extras], True, body)

    def _store_row(self) -> str:
        kernel, m = self.kernel, self.results
        kind = CUDA_TYPES[kernel.dtypes[-1]]
        stride = self.vectored[-1].strides[-1] if self.columns else 1
        width = self._width(self.y) if self.columns else 1
        bound = f" && row < {self.values.value(self.rows)}" if self.r > 1 else ""
        return (
            f"if (g == 0{bound}) {{\n{kind} y[{m}];\nUNROLL for (int k = 0; k < {m}; ++k) {{\n"
            f"{self._numbers(kernel.folds, 'k', kernel.accumulator)}\n"
            f"y[k] = {self._result([])};\n}}\n{self._write(f'q{self.y}', stride, width, m)}}}\n"
        )


def in_vectors(axes: Sequence[Axis], n: int) -> list[Axis]:
    """The nest with its last axis counted in vectors of n elements."""
    *outer, last = axes
    return [*outer, Axis(ceildiv(last.size, n), tuple(mul(s, n) for s in last.strides))]


def counts(kernel: RowKernel, n: int) -> tuple[Size, Size]:
    """Rows (or vectors of n rows) and positions along one."""
    kept, reduced = kernel.kept, kernel.reduced
    if kernel.columns:
        kept = in_vectors(kept, n)
    else:
        reduced = in_vectors(reduced, n)
    return product([a.size for a in kept]), product([a.size for a in reduced])
