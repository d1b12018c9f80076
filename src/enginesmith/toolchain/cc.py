"""C text -> object file -> shared object, with `zig cc` (the ziglang wheel) and the artifact cache.

Everything is freestanding: no libc header or symbol, so one plan runs on glibc and musl alike.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from enginesmith.codegen.prelude import FLAGS, prelude
from enginesmith.errors import BuildError
from enginesmith.plan.target import Target
from enginesmith.toolchain.cache import ArtifactCache

BASE_FLAGS = (
    "-target", "x86_64-linux-musl", "-ffreestanding", "-nostdlib", "-fPIC", "-O3",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-sanitize=all",
    "-fno-stack-protector", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-g0",
    "-Wno-everything",
)  # fmt: skip


def compiler() -> list[str]:
    """The command of the pinned compiler. BuildError if the ziglang package is missing."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            "the C compiler is missing: package `ziglang` is not installed; "
            "install it with: pip install 'enginesmith[build]'"
        )
    zig = Path(spec.submodule_search_locations[0]) / ("zig.exe" if os.name == "nt" else "zig")
    if not zig.exists():
        raise BuildError(f"the C compiler is missing: {zig} does not exist; reinstall `ziglang`")
    return [str(zig), "cc"]


def compiler_version() -> str:
    """The installed ziglang version, part of every cache key."""
    from importlib.metadata import version

    return version("ziglang")


def compile_object(text: str, target: Target, cache: ArtifactCache) -> bytes:
    """The object file of `text` (the prelude is put before it). BuildError keeps and names the
    source and the compiler's log when it fails."""
    flags = (*BASE_FLAGS, *FLAGS[target.isa])
    source = prelude(target) + text
    key = cache.key("object", compiler_version(), *flags, source)
    if (found := cache.get(key)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="enginesmith-") as folder:
        c, o = Path(folder, "kernel.c"), Path(folder, "kernel.o")
        c.write_text(source)
        _run([*compiler(), *flags, "-c", str(c), "-o", str(o)], cache, key, source)
        binary = o.read_bytes()
    cache.put(key, binary)
    return binary


def link_shared(objects: Sequence[bytes], target: Target, cache: ArtifactCache) -> bytes:
    """A freestanding shared object of these objects, in this order."""
    key = cache.key("shared", compiler_version(), str(target), *objects)
    if (found := cache.get(key)) is not None:
        return found
    with tempfile.TemporaryDirectory(prefix="enginesmith-") as folder:
        names = []
        for i, binary in enumerate(objects):
            path = Path(folder, f"{i:04}.o")
            path.write_bytes(binary)
            names.append(path.name)
        so = Path(folder, "plan.so")
        flags = ("-target", "x86_64-linux-musl", "-nostdlib", "-shared", "-Wl,-s", "-Wl,-z,defs")
        _run([*compiler(), *flags, *names, "-o", str(so)], cache, key, None, cwd=folder)
        binary = so.read_bytes()
    cache.put(key, binary)
    return binary


def _run(
    command: list[str], cache: ArtifactCache, key: str, source: str | None, cwd: str | None = None
) -> None:
    cache.require()
    env = dict(os.environ)
    env.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache.folder / "zig"))
    env.setdefault("ZIG_LOCAL_CACHE_DIR", str(cache.folder / "zig"))
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    if done.returncode != 0:
        kept = cache.keep_failed(key, ".c", source, " ".join(command) + "\n" + done.stderr)
        raise BuildError(
            f"the C compiler failed (exit {done.returncode}); source and log are kept in "
            f"{kept}:\n{done.stderr[:2000]}"
        )
