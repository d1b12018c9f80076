"""CUDA C++ text -> cubin or PTX, with NVRTC (the nvidia-cuda-nvrtc wheel) and the artifact cache.

No GPU and no driver is needed. NVRTC releases the interpreter's lock, so threads compile in
parallel.
"""

from __future__ import annotations

import re
from typing import Any

from enginesmith.codegen.cuda_prelude import prelude
from enginesmith.errors import BuildError
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache

FLAGS = ("--std=c++17", "--disable-warnings")

_SPECIFIC = re.compile(r"\b(wgmma\w*|registers_(up|down))\b")
"""The prelude's functions of instructions that 9.0 alone has."""

PTX_VERSION = "8.7"
"""Of CUDA 12.8, the first one that knows all targets. It also knows what NVRTC writes of its own
accord (8.3 has hints that 8.0 lacks)."""


def runs_on_newer(text: str, target: Target) -> bool:
    """Whether GPUs newer than the target can run the PTX of this text."""
    return target.arch != 90 or _SPECIFIC.search(text) is None


def compiler_version() -> str:
    """The installed NVRTC's version, such as "13.0", part of every cache key."""
    nvrtc = _nvrtc()
    major, minor = _checked(nvrtc, nvrtc.nvrtcVersion())
    return f"{major}.{minor}"


def compile_cubin(text: str, target: Target, cache: ArtifactCache) -> bytes:
    """The machine code of `text` (the prelude is put before it) for `target` alone. BuildError
    keeps and names the source and the compiler's log when it fails."""
    return _compile(text, target, cache, "cubin", f"sm_{_feature_set(target)}")


def compile_ptx(text: str, target: Target, cache: ArtifactCache) -> bytes:
    """The PTX of `text`, for newer GPUs if they can run it (see `runs_on_newer`); otherwise like
    `compile_cubin`. No zero byte ends it.

    A driver refuses PTX of a version that it doesn't know, and NVRTC writes its own, whatever is
    used of it. So the text gets PTX_VERSION: drivers older than NVRTC load it, too.
    """
    arch = str(target.arch) if runs_on_newer(text, target) else _feature_set(target)
    ptx = _compile(text, target, cache, "ptx", f"compute_{arch}").rstrip(b"\0").decode()
    written = r"^\.version \d+\.\d+$"
    return re.sub(written, f".version {PTX_VERSION}", ptx, count=1, flags=re.M).encode()


def _feature_set(target: Target) -> str:
    """9.0 comes with its own instructions (wgmma, setmaxnreg), which only the name 90a unlocks."""
    return "90a" if target.arch == 90 else str(target.arch)


def _compile(text: str, target: Target, cache: ArtifactCache, kind: str, arch: str) -> bytes:
    nvrtc = _nvrtc()
    flags = (f"--gpu-architecture={arch}", *FLAGS)
    source = prelude(target) + text
    key = cache.key(kind, compiler_version(), *flags, source)
    if (found := cache.get(key)) is not None:
        return found
    cache.require()
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], []))
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), [f.encode() for f in flags])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _read(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            kept = cache.keep_failed(key, ".cu", source, " ".join(flags) + "\n" + log)
            raise BuildError(
                f"NVRTC failed ({status.name}) for {target}; source and log are kept in "
                f"{kept}:\n{log[:2000]}"
            )
        binary = _read(nvrtc, program, kind.upper())
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    cache.put(key, binary)
    return binary


def _read(nvrtc: Any, program: Any, what: str) -> bytes:
    """One of the buffers of a compiled program."""
    buffer = bytes(_checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program)))
    _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    """The values of an answer (status, *values). BuildError if the status is an error."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BuildError(f"NVRTC failed: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)


def _nvrtc() -> Any:
    """The bindings. BuildError if they or the library are missing."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the library itself is loaded by the first call
    except (ImportError, RuntimeError) as error:
        raise BuildError(
            f"the CUDA compiler is missing ({str(error).splitlines()[0]}); "
            "install it with: pip install 'enginesmith[cuda]'"
        ) from error
    return nvrtc
