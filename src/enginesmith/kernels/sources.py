"""Where the tactics of GPU kernels come from, and which of them a build may use.

A source is a compiler or a library besides our own CUDA C++: optional, and offered for the families
that have a module for it. A tactic that comes from a source has the source's name; the family's
`emit` and `pack` know them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from enginesmith.errors import BuildError
from enginesmith.kernels import FAMILIES
from enginesmith.kernels.attention import triton as attention_triton
from enginesmith.kernels.base import Problem, Tactic
from enginesmith.kernels.conv import cublaslt as conv_cublaslt
from enginesmith.kernels.conv import cudnn as conv_cudnn
from enginesmith.kernels.conv import triton as conv_triton
from enginesmith.kernels.matmul import cublaslt as matmul_cublaslt
from enginesmith.kernels.matmul import triton as matmul_triton
from enginesmith.plan.target import Target
from enginesmith.runtime.devices import cublas, cudnn

OWN = "cuda"
"""Our own kernels, in CUDA C++: what no other source serves is theirs, even if not chosen."""

OFFERS: dict[str, dict[str, ModuleType]] = {
    "triton": {"attention": attention_triton, "conv": conv_triton, "matmul": matmul_triton},
    "cublaslt": {"conv": conv_cublaslt, "matmul": matmul_cublaslt},
    "cudnn": {"conv": conv_cudnn},
}
"""Source -> family -> module with `why_not(problem, target)` and `tactics(problem, target)`."""

SOURCES = (OWN, *OFFERS)
"""All names."""

UNRIVALLED = ("sm_90",)
"""Where our own kernels were measured to be the fastest (docs/performance.md, "Sources"): there the
others must be asked for, so that plans need no library and builds no second compiler."""

UNTRIED = ("cudnn",)
"""Sources that have not run on a GPU yet, only against stand-ins: they must be asked for."""

TRITON_VERSIONS = ((3, 6), (3, 7))
"""From which Triton on (included) and up to which (excluded) our use of its compiler is tested."""


def _triton() -> str | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "triton is not installed"
    low, high = TRITON_VERSIONS
    number = tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())
    if low <= number < high:
        return None
    wanted = " and ".join(
        f"{sign}{'.'.join(map(str, bound))}"
        for sign, bound in zip((">=", "<"), TRITON_VERSIONS, strict=True)
    )
    return f"triton {found} is installed, but {wanted} is needed"


_MISSING: dict[str, Callable[[], str | None]] = {
    OWN: lambda: None,
    "triton": _triton,
    "cublaslt": cublas.why_missing,
    "cudnn": cudnn.why_missing,
}
"""By source: None if it can be used here, else what is missing."""


def why_missing(source: str) -> str | None:
    """None if kernels of this source can be built here, else what is missing and how to get it."""
    reason = _MISSING[source]()
    return reason and f"{reason}; install it with: pip install 'enginesmith[{source}]'"


def installed() -> tuple[str, ...]:
    """The sources that can be used here."""
    return tuple(source for source in SOURCES if why_missing(source) is None)


def chosen(sources: Sequence[str] | None, target: Target) -> tuple[str, ...]:
    """The sources a build uses, in the order of SOURCES; None: our own, and all that are installed
    (but for UNTRIED) where our own don't use the GPU's best instructions (see UNRIVALLED).
    BuildError lists all that is wrong with a choice."""
    if sources is None:
        alone = target.device != "cuda" or target.isa in UNRIVALLED
        return (OWN,) if alone else tuple(s for s in installed() if s not in UNTRIED)
    problems = [
        f"{name!r} is none of {', '.join(SOURCES)}" if name not in SOURCES else why_missing(name)
        for name in sources
    ]
    if isinstance(sources, str) or not sources:
        problems = [f"{sources!r} is no sequence of names; choose from {', '.join(SOURCES)}"]
    if wrong := [problem for problem in problems if problem]:
        raise BuildError(f"tactic_sources: {'; '.join(wrong)}")
    return tuple(source for source in SOURCES if source in sources)


def candidates(
    family: str, problem: Problem, target: Target, sources: Sequence[str] = (OWN,)
) -> tuple[Tactic, ...]:
    """The tactics for a problem, the most promising first (that one is used without tuning): our
    own, then the other sources'. If ours aren't chosen, they serve what the others don't."""
    own: tuple[Tactic, ...] = FAMILIES[target.device][family].tactics(problem, target)
    others: tuple[Tactic, ...] = ()
    for source in sources if target.device == "cuda" else ():
        offer = OFFERS.get(source, {}).get(family)
        if offer is not None and offer.why_not(problem, target) is None:
            others += offer.tactics(problem, target)
    return own + others if OWN in sources or not others else others
