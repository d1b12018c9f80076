"""Triton ahead of time: the cache, what a kernel's launch needs, and what a failure says."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from enginesmith.errors import BuildError
from enginesmith.kernels import sources
from enginesmith.kernels.cuda import CudaSource, Launch, TritonForm, unread
from enginesmith.plan.target import ARCHITECTURES, Target
from enginesmith.toolchain import triton_aot
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.triton_aot import compile_triton, finished

pytestmark = pytest.mark.skipif(
    sources.why_missing("triton") is not None, reason=f"{sources.why_missing('triton')}"
)

SM_80 = Target("cuda", "sm_80")
TEXT = """\
import triton
import triton.language as tl


@triton.jit
def NAME(p0, p1, v0):
    i = tl.arange(0, 64)
    x = tl.load(p0 + i[:, None] * v0 + i[None, :])
    tl.store(p1 + i[:, None] * 64 + i[None, :], tl.dot(x, tl.trans(x)))
"""
SQUARE = CudaSource(
    TEXT,
    (Launch((1, 1, 1), 128, unread((64,), ())[0]),),
    triton=TritonForm((("*fp16", 16), ("*fp32", 16), ("i32", 8)), 4, 2),
)


def test_a_kernel_compiles_once(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ArtifactCache(fresh_cache)
    compiled = compile_triton(SQUARE, SM_80, cache)
    assert compiled.cubin.startswith(b"\x7fELF")
    assert f".entry {SQUARE.name}(" in compiled.ptx.decode()
    assert compiled.shared >= 64 * 64 * 2
    monkeypatch.setattr(subprocess, "run", None)  # what a second compilation would need
    assert compile_triton(SQUARE, SM_80, cache) == compiled
    (launch,) = finished(SQUARE, SM_80, cache).launches
    assert launch == replace(SQUARE.launches[0], shared=compiled.shared)
    plain = CudaSource("text", (Launch((1, 1, 1), 32),))
    assert finished(plain, SM_80, cache) is plain


def test_two_compilations_give_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of the folder or the time is in them."""
    first, second = (
        compile_triton(SQUARE, SM_80, ArtifactCache(tmp_path / name)) for name in ("a", "b")
    )
    assert first == second


@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_architectures(isa: str, artifact_cache: Path) -> None:
    target = Target("cuda", isa)
    text = compile_triton(SQUARE, target, ArtifactCache(artifact_cache)).ptx.decode()
    newer = triton_aot.runs_on_newer(target)
    assert f".target {isa}{'' if newer else 'a'}\n" in text
    # Two parameters come after those of the function.
    assert text.count(".param .u64 .ptr") == 4
    assert f"{SQUARE.name}_param_4" in text
    assert f"{SQUARE.name}_param_5" not in text


def test_what_is_compiled_names_the_kernel() -> None:
    """The same text for other types or warps is another kernel."""
    assert SQUARE.triton is not None
    wide = replace(SQUARE, triton=replace(SQUARE.triton, warps=8))
    assert wide.name != SQUARE.name


def test_the_environment_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compile_triton(SQUARE, SM_80, ArtifactCache(tmp_path / "a"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("TRITON_OVERRIDE_ARCH", "sm90")
    assert compile_triton(SQUARE, SM_80, ArtifactCache(tmp_path / "b")) == plain


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("    x = nonsense\n", "nonsense"),
        ("    import os; os._exit(7)\n", "exit status"),
    ],
)
def test_failures_keep_the_source_and_the_log(line: str, said: str, fresh_cache: Path) -> None:
    """Also where the compiler dies."""
    text = TEXT.replace("@triton.jit", f"if True:\n{line}\n@triton.jit")
    broken = replace(SQUARE, text=text)
    with pytest.raises(BuildError, match=r"(?s)failed for cuda:sm_80.*sources.*\.\*:") as error:
        compile_triton(broken, SM_80, ArtifactCache(fresh_cache))
    assert said in str(error.value)
    kept = {path.suffix: path.read_text() for path in (fresh_cache / "failed").iterdir()}
    assert kept[".py"] == broken.code
    assert "'arch': 80" in kept[".log"]


def test_a_hanging_compiler_is_stopped(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_aot, "TIMEOUT", 0.01)
    with pytest.raises(BuildError, match=r"not done after 0\.01 seconds"):
        compile_triton(SQUARE, SM_80, ArtifactCache(fresh_cache))


def test_kernels_that_want_memory_are_refused(fresh_cache: Path) -> None:
    """A launch gives none."""
    text = TEXT.replace(
        "x = tl.load(p0 + i[:, None] * v0 + i[None, :])",
        "x = tl.make_tensor_descriptor(p0, [64, 64], [64, 1], [64, 64]).load([0, 0])",
    )
    with pytest.raises(BuildError, match="global_scratch_size"):
        compile_triton(
            replace(SQUARE, text=text), Target("cuda", "sm_90"), ArtifactCache(fresh_cache)
        )


def test_missing_package_names_the_extra(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(triton_aot, "version", missing)
    triton_aot.compiler_version.cache_clear()
    with pytest.raises(BuildError, match=r"pip install 'enginesmith\[triton\]'"):
        compile_triton(SQUARE, SM_80, ArtifactCache(fresh_cache))
