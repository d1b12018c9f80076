"""The CUDA compiler: the prelude on every architecture, the cache, and what a failure says."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginesmith.codegen.cuda_prelude import prelude
from enginesmith.errors import BuildError
from enginesmith.plan.target import ARCHITECTURES, Target
from enginesmith.toolchain import nvrtc
from enginesmith.toolchain.cache import ArtifactCache
from enginesmith.toolchain.nvrtc import compile_cubin, compile_ptx, compiler_version, runs_on_newer

SM_80, SM_90 = Target("cuda", "sm_80"), Target("cuda", "sm_90")
DOUBLE = r"""
extern "C" __global__ void twice(float *x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= 2.f;
}
"""


@pytest.fixture
def cache(artifact_cache: Path) -> ArtifactCache:
    return ArtifactCache(artifact_cache)


def test_a_kernel_compiles_once(fresh_cache, monkeypatch):
    cache = ArtifactCache(fresh_cache)
    binary = compile_cubin(DOUBLE, SM_80, cache)
    assert binary.startswith(b"\x7fELF") and b"twice" in binary
    monkeypatch.setattr(nvrtc, "_read", None)  # what a second compilation would need
    assert compile_cubin(DOUBLE, SM_80, cache) == binary


@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_architectures(isa, cache):
    ptx = compile_ptx(DOUBLE, Target("cuda", isa), cache).decode()
    assert f".target {isa}\n" in ptx and ".entry twice" in ptx
    assert "\0" not in ptx
    assert re.findall(r"^\.version .*", ptx, re.M) == [".version 8.7"]


def test_failures_keep_the_source_and_the_log(fresh_cache):
    with pytest.raises(BuildError, match=r"(?s)failed.*\.\*:.*nonsense") as error:
        compile_cubin("nonsense;", SM_80, ArtifactCache(fresh_cache))
    assert "sm_80" in str(error.value)
    kept = {path.suffix: path.read_text() for path in (fresh_cache / "failed").iterdir()}
    assert kept[".cu"].endswith("nonsense;")
    assert "--gpu-architecture=sm_80" in kept[".log"] and "nonsense" in kept[".log"]


def test_missing_packages_name_the_extra(fresh_cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BuildError, match=r"enginesmith\[cuda\]"):
        compile_cubin(DOUBLE, SM_80, ArtifactCache(fresh_cache))


def test_threads_compile_at_once(fresh_cache):
    cache = ArtifactCache(fresh_cache)
    texts = [DOUBLE.replace("twice", f"twice{i}") for i in range(4)]
    with ThreadPoolExecutor(2) as threads:
        binaries = list(threads.map(lambda text: compile_cubin(text, SM_90, cache), texts))
    assert all(f"twice{i}".encode() in binary for i, binary in enumerate(binaries))


def test_version():
    assert re.fullmatch(r"\d+\.\d+", compiler_version())


EVERYWHERE = r"""
extern "C" __global__ void every(char *memory, float *f, half *h, bf16 *b, double *d, int n) {
  grid_wait(); grid_launch();
  char *s = shared_memory();
  uint32_t a[4], c[2]; float acc[4] = {};
  UNROLL for (int i = 0; i < 2; i++) {  // everything twice: labels in assembly must not clash
    cp_async16(s, memory, n > 0); cp_async8(s, memory, n > 1); cp_async4(s, memory, n > 2);
    cp_async_commit(); cp_async_wait<1>();
    ldmatrix_x4(a, s); ldmatrix_x4_trans(a, s); ldmatrix_x2(c, s); ldmatrix_x2_trans(c, s);
    mma(acc, a, c, Tag<half>()); mma(acc, a, c, Tag<bf16>()); mma(acc, a, c, Tag<float>());
    f[i] = lane_xor(acc[0], 1) + lane_get(acc[1], 0) + lane_up(acc[2], 1) + acc[3];
    f[i] += fast_exp2(f[4]) + fast_rcp(f[5]) + fast_tanh(f[6]);
    h[i] = from_float(f[i], Tag<half>()); b[i] = from_float(f[i], Tag<bf16>());
    h[4] = double_to_half(d[0]);
    Vec<uint32_t, 2> v = {{pack2(f[0], f[1], Tag<half>()), pack2(f[0], f[1], Tag<bf16>())}};
    store_vec((uint32_t *)memory, v); fence(); sync_warp();
    atomic_add((int *)memory, 1); atomic_add(f, 1.f);
    n += imin(n, 3) + imax(n, 4) + ceildiv(n, 5);
  }
}
"""
HOPPER = r"""
extern "C" __global__ void hopper(float *f, int n, const __grid_constant__ TensorMap m) {
  char *s = shared_memory();
  Barrier *b = (Barrier *)s;
  tma_prefetch(&m);
  barrier_init(b, 1); barrier_fence();
  UNROLL for (int i = 0; i < 2; i++) {
    barrier_expect(b, n);
    tma_load2(s + 1024, &m, b, n, i); tma_load3(s + 1024, &m, b, n, i, n);
    tma_load4(s + 1024, &m, b, n, i, n, i);
    barrier_arrive(b); barrier_cp_async(b); barrier_wait(b, i);
    proxy_fence();
    tma_store2(&m, s + 1024, n, i); tma_store3(&m, s + 1024, n, i, n);
    tma_commit(); tma_wait_read<0>();
    sync_threads(1, 128);
    const uint32_t other = cluster_address(s, cluster_rank() ^ 1);
    cluster_sync();
    f[i] = cluster_load(other) + cluster_load4(other).v[3];
  }
}
"""
WGMMA = r"""
extern "C" __global__ void wgmma(uint64_t *t) {
  registers_down<24>(); registers_up<240>();
  wgmma_fence(); wgmma_commit(); wgmma_wait<0>();
  *t = wgmma_tile(shared_memory());
}
"""


@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_the_prelude(isa, cache):
    """All functions compile; Hopper's from 9.0 on, the warp groups' matrices on 9.0 alone."""
    target = Target("cuda", isa)
    assert ("tma_load2" in prelude(target)) == (target.arch >= 90)
    text = EVERYWHERE + HOPPER * (target.arch >= 90) + WGMMA * (target.arch == 90)
    compile_cubin(text, target, cache)


def test_what_newer_gpus_can_run(cache, fresh_cache):
    """Without the instructions of 9.0 alone, a text compiles for plain sm_90; with them it doesn't,
    and its PTX is for 9.0 alone."""
    for text in (EVERYWHERE, HOPPER):
        assert runs_on_newer(text, SM_90)
        assert nvrtc._compile(text, SM_90, cache, "cubin", "sm_90")
    for call in re.findall(r"(?:registers|wgmma)_\w+(?:<\d+>)?\(.*?\)", WGMMA):
        text = f'extern "C" __global__ void one(uint64_t *t) {{ *t = 0; {call}; }}'
        assert not runs_on_newer(text, SM_90)
        assert runs_on_newer(text, SM_80)
    assert b".target sm_90a" in compile_ptx(WGMMA, SM_90, cache)
    with pytest.raises(BuildError, match="failed"):
        nvrtc._compile(WGMMA, SM_90, ArtifactCache(fresh_cache), "cubin", "sm_90")


@pytest.mark.parametrize("isa", ARCHITECTURES)
def test_an_older_assembler_takes_the_ptx_for_newer_gpus(isa, cache, tmp_path):
    """Triton 3.6 comes with CUDA 12.8's, which is what a driver of that version does."""
    nvidia = pytest.importorskip("triton.backends.nvidia")
    ptxas = Path(nvidia.__path__[0], "bin", "ptxas")

    def run(*arguments):
        command = [ptxas, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    if "release 12.8" not in run("--version").stdout:
        pytest.skip("this Triton brings another assembler")
    target = Target("cuda", isa)
    kernel = tmp_path / "kernel.ptx"
    kernel.write_bytes(compile_ptx(EVERYWHERE + HOPPER * (target.arch >= 90), target, cache))
    for newer in ARCHITECTURES[ARCHITECTURES.index(isa) :]:
        done = run(f"-arch={newer}", kernel, "-o", tmp_path / "kernel.cubin")
        assert done.returncode == 0, done.stderr
