"""`enginesmith doctor`: what matters of this machine, what is wrong and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
from rich.text import Text

from enginesmith.cli import display
from enginesmith.cli.options import example
from enginesmith.errors import BuildError, DeviceError, EnginesmithError
from enginesmith.knobs import knobs
from enginesmith.plan.target import ARCHITECTURES, ISAS, nearest_architecture
from enginesmith.runtime.devices.host import available_threads, cpu_quota, host_isas

NEEDED = ("numpy", "onnx", "protobuf", "sympy", "ziglang", "click", "rich")
OPTIONAL = ("onnxruntime", "openvino")
LOW_DISK = 1 << 30
"""Bytes; a large model's kernels and plan fit in this."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. level: "ok", "warning" (works, but) or "error"; remedy: what to do."""

    what: str
    level: str
    text: str
    remedy: str = ""


STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@click.command(
    short_help="Check this machine and installation.", epilog=example("enginesmith doctor")
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look at versions, compiler, CPU, limits and the cache, and run a small self-test.

    Exit code 1 if something is wrong.
    """
    findings = [finding for look in CHECKS for finding in _guarded(look)]
    if as_json:
        names = ("what", "level", "text", "remedy")
        display.emit_json([{name: getattr(f, name) for name in names} for f in findings])
    else:
        rows = display.table("level", "what", "~found")
        for finding in findings:
            text = Text(finding.text)
            if finding.remedy:
                text.append(f"\n-> {finding.remedy}", style="bold")
            rows.add_row(Text(finding.level, STYLES[finding.level]), finding.what, text)
        display.console().print(rows)
    if any(finding.level == "error" for finding in findings):
        ctx.exit(1)


def _guarded(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; its own failure is a finding too."""
    try:
        yield from look()
    except (EnginesmithError, OSError, ImportError) as error:
        yield Finding(look.__name__, "error", str(error))


def versions() -> Iterator[Finding]:
    """Python and the packages."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    for package in ("enginesmith", *NEEDED):
        found = installed(package)
        if found is None:
            remedy = "pip install 'enginesmith[build]'"
            yield Finding(package, "error", "not installed; building needs it", remedy)
        else:
            yield Finding(package, "ok", found)
    for package in OPTIONAL:
        yield Finding(package, "ok", installed(package) or "not installed (optional)")


def installed(package: str) -> str | None:
    """A package's version, None if it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> Iterator[Finding]:
    """The instruction sets and how many CPUs an engine may use."""
    isas = host_isas()
    if platform.system() != "Linux" or platform.machine() not in {"x86_64", "AMD64"}:
        text = f"{platform.system()} on {platform.machine()}"
        yield Finding("processor", "error", text, "use Linux on an x86-64 CPU; no other is ready")
    elif not isas:
        text = f"{cpu_name()}: none of {', '.join(ISAS)}"
        yield Finding("processor", "error", text, "use a machine (or VM setting) with AVX2")
    else:
        yield Finding("processor", "ok", f"{cpu_name()}: {', '.join(f'cpu:{i}' for i in isas)}")
    allowed, total = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = cpu_quota(Path("/"))
    limit = "no CPU quota" if quota is None else f"a cgroup quota of {quota:g} CPUs"
    text = f"{available_threads()}: {allowed} of {total} CPUs allowed, {limit}"
    if quota is not None and quota < 1:
        remedy = "give the container at least one whole CPU (docker run --cpus)"
        yield Finding("threads", "warning", text, remedy)
    else:
        yield Finding("threads", "ok", text)


def cpu_name() -> str:
    """The CPU's model as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def memory() -> Iterator[Finding]:
    """Physical memory."""
    pages, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
    page = os.sysconf("SC_PAGE_SIZE")
    text = f"{display.size(pages * page)}, {display.size(free * page)} free"
    yield Finding("memory", "ok", text)


def cache() -> Iterator[Finding]:
    """The artifact cache: its place, size, space left, and whether it can be written."""
    folder = knobs().cache
    elsewhere = "set ENGINESMITH_CACHE to a folder you can write"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        text = f"{folder} can't be written: {error.strerror}"
        yield Finding("cache", "error", text, elsewhere)
        return
    used = sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())
    free = shutil.disk_usage(folder).free
    text = f"{folder}: {display.size(used)}, {display.size(free)} free"
    if free < LOW_DISK:
        yield Finding("cache", "warning", text, f"free some space, or {elsewhere}")
    else:
        yield Finding("cache", "ok", text)


def toolchain() -> Iterator[Finding]:
    """Compile, load and time a small kernel."""
    from enginesmith.plan.target import Target
    from enginesmith.toolchain.cache import ArtifactCache
    from enginesmith.toolchain.cc import compiler
    from enginesmith.tuner.peak import measure_peak

    yield Finding("compiler", "ok", " ".join(compiler()))
    if not host_isas():
        return
    try:
        peak = measure_peak(
            Target("cpu", host_isas()[0]), available_threads(), ArtifactCache(knobs().cache)
        )
    except OSError as error:
        remedy = "set TMPDIR to a folder that isn't mounted noexec"
        yield Finding("loading code", "error", str(error), remedy)
        return
    text = f"{peak.gflops:.0f} GFLOP/s, {peak.gbps:.0f} GB/s copied, {peak.threads} threads"
    yield Finding("speed", "ok", text)


def gpu() -> Iterator[Finding]:
    """The first NVIDIA GPU, if there is one, and what building for it takes."""
    from enginesmith.runtime.devices.cuda import cuda_device
    from enginesmith.toolchain import nvrtc

    try:
        device = cuda_device()
    except DeviceError as error:
        yield Finding("gpu", "ok", f"none: {error}")
        return
    version_text = f"{device.driver_version // 1000}.{device.driver_version % 1000 // 10}"
    text = f"{device.name}: cuda:sm_{device.arch}, {device.multiprocessors} multiprocessors"
    yield Finding("gpu", "ok", f"{text}, driver for CUDA {version_text}")
    if f"sm_{device.arch}" not in ARCHITECTURES:
        text = f"{device.name} is sm_{device.arch}, none of {', '.join(ARCHITECTURES)}"
        nearest = nearest_architecture(device.arch)
        if nearest is None:
            remedy = "use target='cpu'; engines for this GPU can't be built"
            yield Finding("gpu", "error", text, remedy)
            return
        remedy = f"build with target='cuda:{nearest}': nothing is timed, and the plan runs here"
        yield Finding("gpu", "warning", text, remedy)
    try:
        yield Finding("nvrtc", "ok", nvrtc.compiler_version())
    except BuildError as error:
        yield Finding("nvrtc", "warning", str(error), "pip install 'enginesmith[cuda]'")


def sources() -> Iterator[Finding]:
    """What GPU kernels can come from besides our own."""
    from enginesmith.kernels.sources import OWN, SOURCES, why_missing

    for name in SOURCES:
        if name != OWN:
            missing = why_missing(name)
            text = "offers GPU kernels" if missing is None else f"not used (optional): {missing}"
            yield Finding(name, "ok", text)


def self_test() -> Iterator[Finding]:
    """Build a model of two nodes and compare its output with numpy's."""
    import numpy as np
    from onnx import TensorProto, helper

    import enginesmith as es

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    weight = np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4)
    constant = helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"], "multiply"),
        helper.make_node("Relu", ["product"], ["y"], "clip"),
    ]
    graph = helper.make_graph(nodes, "self_test", [x], [y], [constant])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    engine = es.build(model, tuning=False)
    feed = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    error = float(np.abs(engine({"x": feed})["y"] - np.maximum(feed @ weight, 0)).max())
    if error < 1e-5:
        yield Finding("self-test", "ok", f"a model was built and run, largest error {error:.0e}")
    else:
        remedy = "report this with the output of `enginesmith doctor --json`"
        yield Finding("self-test", "error", f"wrong result, largest error {error:.0e}", remedy)


CHECKS = (versions, processor, memory, cache, toolchain, gpu, sources, self_test)
