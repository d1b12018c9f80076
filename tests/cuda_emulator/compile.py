"""Kernel text -> a shared object for this machine, cached by its contents."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from enginesmith.codegen.cuda_prelude import TYPES
from enginesmith.kernels.cuda import CudaSource
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.cc import compiler, compiler_version

HERE = Path(__file__).parent
CACHE = ArtifactCache(Path(os.environ.get("ENGINESMITH_CACHE", ".cache/enginesmith")))
MACHINE = platform.machine()
FLAGS = (
    "-target", f"{MACHINE}-linux-gnu", *(["-mcpu=x86_64_v3"] if MACHINE == "x86_64" else []),
    "-std=c++17", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fPIC", "-g0",
    "-fno-stack-protector", "-fvisibility=hidden", "-ffp-contract=off", "-U_FORTIFY_SOURCE",
    "-Wno-everything",
)  # fmt: skip
# Alignment, bounds and the like trap: the machine says which check it was.
CHECKS = ("alignment", "bounds", "shift", "integer-divide-by-zero", "return", "unreachable")
KERNEL_FLAGS = (
    "-O1", "-fno-strict-aliasing", "-fno-sanitize=all", f"-fsanitize={','.join(CHECKS)}",
    f"-fsanitize-trap={','.join(CHECKS)}",
)  # fmt: skip


def _compile(text: str, flags: tuple[str, ...], load_mode: int) -> ctypes.CDLL:
    """Compile as C++ and load. No library is linked: symbols are found in what is loaded."""
    key = CACHE.key("emulated", compiler_version(), *FLAGS, *flags, text)
    path = CACHE.folder / "emulated" / f"{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            source, unit, shared = (Path(folder, name) for name in ("k.cpp", "k.o", "k.so"))
            source.write_text(text)
            _zig(*FLAGS, *flags, "-c", str(source), "-o", str(unit))
            _zig(*FLAGS[:2], "-shared", "-nostdlib", str(unit), "-o", str(shared))
            os.replace(shared, path)
    return ctypes.CDLL(str(path), load_mode)


def _zig(*arguments: str) -> None:
    env = dict(os.environ)
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        env.setdefault(name, str(CACHE.folder.absolute() / "zig"))
    command = [compiler()[0], "c++", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[:4000]


@lru_cache(1)
def runtime() -> ctypes.CDLL:
    """The machine. Kernels find its functions, so it is loaded for all to see."""
    ctypes.CDLL("libm.so.6", ctypes.RTLD_GLOBAL)
    flags = ("-O2", "-fno-sanitize=all")
    text = (HERE / "runtime.cpp").read_text()
    for part in ("copies.h", "wgmma.h"):
        text = text.replace(f'#include "{part}"', (HERE / part).read_text())
    library = _compile(text, flags, ctypes.RTLD_GLOBAL)
    library.es_launch.restype = ctypes.c_char_p
    library.es_map.restype = ctypes.c_void_p
    library.es_map.argtypes = [ctypes.c_uint64]
    library.es_protect.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
    library.es_unmap.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    return library


@lru_cache(None)
def kernels(source: CudaSource, arch: int) -> Any:
    """The kernels of `source` as a library: es_call_NAME, es_kinds_NAME, es_statics."""
    runtime()
    names = {source.name + launch.suffix for launch in source.launches}
    text = (
        f"#define __CUDA_ARCH__ {arch * 10}\n"
        + (HERE / "emulator.h").read_text().replace('#include "types.h"', TYPES)
        + source.code
        + "".join(f"\nES_KERNEL({name})" for name in sorted(names))
    )
    library = _compile(text, KERNEL_FLAGS, ctypes.RTLD_LOCAL)
    library.es_statics.restype = ctypes.c_void_p
    return library
