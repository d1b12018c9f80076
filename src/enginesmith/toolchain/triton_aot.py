"""Triton kernels -> cubin and PTX, ahead of time, with the artifact cache. No GPU is needed.

Only text that our own families emitted is compiled, in a process of its own (`triton_worker.py`); a
plan holds the result, so that running it needs no Triton.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache as remembered
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from enginesmith.errors import BuildError
from enginesmith.kernels.cuda import SCRATCH, CudaSource
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache

WORKER = Path(__file__).with_name("triton_worker.py")

SWIZZLES = (0, 32, 64, 128)
"""Bytes, in the order in which Triton numbers them."""

TIMEOUT = 300.0
"""Seconds after which a compilation counts as hanging."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel in Triton, compiled. shared: bytes of dynamic shared memory of a launch."""

    cubin: bytes
    ptx: bytes
    shared: int


@remembered
def compiler_version() -> str:
    """The installed Triton's version. BuildError if there is none."""
    try:
        return version("triton")
    except PackageNotFoundError as error:
        raise BuildError(
            "Triton is missing; install it with: pip install 'enginesmith[triton]'"
        ) from error


def runs_on_newer(target: Target) -> bool:
    """Whether GPUs newer than the target can run the PTX of its kernels: from 9.0 on, Triton uses
    what one architecture alone has."""
    return target.arch < 90


def compile_triton(source: CudaSource, target: Target, cache: ArtifactCache) -> Compiled:
    """The kernel for `target`. BuildError keeps and names the source and the log when it fails."""
    form = source.triton
    assert form is not None
    request = {
        "name": source.name, "parameters": form.parameters, "warps": form.warps,
        "stages": form.stages, "arch": target.arch,
    }  # fmt: skip
    key = cache.key("triton-2", compiler_version(), json.dumps(request), source.code)
    if (found := cache.get(key)) is not None:
        return _unpacked(found)
    cache.require()
    with tempfile.TemporaryDirectory(prefix="enginesmith-") as name:
        folder = Path(name)
        (folder / "kernel.py").write_text(source.code)
        (folder / "request.json").write_text(json.dumps(request))
        log = _run(folder)
        try:
            metadata = json.loads((folder / "metadata.json").read_text())
            cubin = (folder / "kernel.cubin").read_bytes()
            ptx = (folder / "kernel.ptx").read_bytes()
        except OSError as error:
            kept = cache.keep_failed(key, ".py", source.code, f"{request}\n{log}")
            raise BuildError(
                f"Triton failed for {target}; build with tactic_sources that leave it out; source "
                f"and log are kept in {kept}:\n{log[-2000:]}"
            ) from error
    _check(source, metadata, ptx.decode())
    compiled = Compiled(cubin, ptx, metadata["shared"])
    cache.put(key, _packed(compiled))
    return compiled


def finished(source: CudaSource, target: Target, cache: ArtifactCache) -> CudaSource:
    """The source with what only its compiler knows: the shared memory of a kernel in Triton."""
    if source.triton is None:
        return source
    shared = compile_triton(source, target, cache).shared
    return replace(source, launches=tuple(replace(x, shared=shared) for x in source.launches))


def _run(folder: Path) -> str:
    """Runs the worker; what it printed. Its settings are ours alone: variables of the environment
    that change what Triton does are taken away."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "MLIR_"))}
    try:
        done = subprocess.run(
            [sys.executable, str(WORKER), str(folder)], env=environment, timeout=TIMEOUT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done after {TIMEOUT:g} seconds"
    return f"{done.stdout.decode(errors='replace')}\nexit status {done.returncode}"


def _check(source: CudaSource, metadata: dict[str, Any], ptx: str) -> None:
    """BuildError if the kernel asks for what launches don't give: other maps, or numbers in the
    places where they give what isn't read (see kernels/cuda.py::unread)."""
    assert source.triton is not None
    kinds = [kind for kind, _ in source.triton.parameters]
    plain = sum(not kind.startswith("tensordesc") for kind in kinds)
    maps: list[tuple[int, list[int]]] = []
    unread: list[int] = []
    place = plain
    (launch,) = source.launches
    for _ in kinds[plain:]:
        spec = launch.maps[place - plain]
        maps.append((SWIZZLES.index(spec.swizzle), [*reversed(spec.box)]))
        unread += range(place + 1, place + 1 + 2 * len(spec.sizes))
        place += 1 + 2 * len(spec.sizes)
    unread += range(place, place + SCRATCH)
    found = dict(metadata)
    found["maps"] = [(m["swizzle"], m["block_size"]) for m in metadata["tensordesc_meta"]]
    found["parameters read"] = [i for i in unread if f"[{source.name}_param_{i}]" in ptx]
    found["parameters"] = len(set(re.findall(rf"\.param .*\b{source.name}_param_(\d+)", ptx)))
    needs = {
        "name": source.name, "num_warps": source.triton.warps, "global_scratch_size": 0,
        "profile_scratch_size": 0, "maps": maps, "parameters read": [],
        "parameters": place + SCRATCH,
    }  # fmt: skip
    wrong = [f"{k} {found[k]} instead of {v}" for k, v in needs.items() if found[k] != v]
    if wrong:
        raise BuildError(f"Triton made a kernel that can't be launched: {', '.join(wrong)}")


def _packed(compiled: Compiled) -> bytes:
    header = struct.pack("<QQ", compiled.shared, len(compiled.cubin))
    return header + compiled.cubin + compiled.ptx


def _unpacked(data: bytes) -> Compiled:
    shared, size = struct.unpack_from("<QQ", data)
    return Compiled(data[16 : 16 + size], data[16 + size :], shared)
