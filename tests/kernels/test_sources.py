"""Where tactics come from: what may be chosen, and what is offered then."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from enginesmith.errors import BuildError
from enginesmith.kernels import FAMILIES, sources
from enginesmith.kernels.base import Operand, dense_strides
from enginesmith.kernels.matmul.problem import MatMulProblem
from enginesmith.kernels.sources import OWN, SOURCES, candidates, chosen, why_missing
from enginesmith.plan.target import Target

A100, H100 = Target("cuda", "sm_80"), Target("cuda", "sm_90")


def product(m: int, k: int, n: int) -> MatMulProblem:
    shapes = (m, k), (k, n), (m, n)
    return MatMulProblem(tuple(Operand("float16", s, dense_strides(s)) for s in shapes))


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "version", lambda name: "3.6.0")
    monkeypatch.setitem(sources._MISSING, "cublaslt", lambda: "there is none")


def test_all_that_is_installed(with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(None, A100) == (OWN, "triton")
    assert chosen(None, H100) == (OWN,), "nothing beats ours there"
    assert chosen(None, Target("cpu", "avx2")) == (OWN,)
    assert chosen(["triton", OWN], H100) == (OWN, "triton")
    assert why_missing(OWN) is None

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(sources, "version", missing)
    assert chosen(None, A100) == (OWN,)
    assert "pip install 'enginesmith[triton]'" in (why_missing("triton") or "")


@pytest.mark.parametrize("found", ["3.5.1", "3.7.0", "4.0"])
def test_other_versions(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "version", lambda name: found)
    assert f"triton {found} is installed, but >=3.6 and <3.7" in (why_missing("triton") or "")


def test_refusals_name_all_problems(with_triton: None) -> None:
    with pytest.raises(BuildError, match=r"'cutlass' is none of cuda, triton.*; there is none"):
        chosen(("cutlass", "cublaslt"), H100)
    for wrong in ("triton", ()):
        with pytest.raises(BuildError, match="is no sequence of names"):
            chosen(wrong, H100)


def test_candidates() -> None:
    """Our own come first, and serve alone what the others don't."""
    family = FAMILIES["cuda"]["matmul"]
    large, small = product(512, 512, 512), product(1, 512, 512)
    own = candidates("matmul", large, H100)
    assert own == family.tactics(large, H100)
    both = candidates("matmul", large, H100, (OWN, "triton"))
    assert both[: len(own)] == own
    assert {t.name for t in both[len(own) :]} == {"triton"}
    assert candidates("matmul", large, H100, ("triton",)) == both[len(own) :]
    assert candidates("matmul", small, H100, ("triton",)) == family.tactics(small, H100)


def test_tactics_are_called_by_their_source() -> None:
    assert SOURCES[0] == OWN
    for source, families in sources.OFFERS.items():
        for family in families:
            module = FAMILIES["cuda"][family]
            known = {*getattr(module, "OTHERS", ()), *getattr(module, "EMITTERS", ())}
            assert source in known, f"{family}'s emit doesn't know {source}"
