"""What runs the tests' kernels on GPUs, on the emulated one: it gives what the emulator gives, and
finds what a GPU alone would not tell."""

from __future__ import annotations

import numpy as np
import pytest
from tests import cuda_kernels
from tests.cuda_emulator import EmulationError
from tests.cuda_emulator.device import EmulatedDevice
from tests.cuda_kernels import gpu as machine
from tests.kernels.cuda import test_mma, test_wgmma

from enginesmith.errors import DeviceError
from enginesmith.kernels.base import Operand, Problem, dense_strides
from enginesmith.kernels.cuda import CudaSource, Launch
from enginesmith.toolchain import nvrtc

I = "const int i = blockIdx.x * blockDim.x + threadIdx.x;"  # noqa: E741
X = np.random.default_rng(0).standard_normal(64).astype(np.float32)


@pytest.fixture(autouse=True)
def on_gpu(gpu: EmulatedDevice, monkeypatch: pytest.MonkeyPatch) -> EmulatedDevice:
    """Kernels run as on a GPU."""
    monkeypatch.setattr(nvrtc, "compile_cubin", lambda text, target, cache: text.encode())
    cuda_kernels.use("gpu")
    return gpu


def run(text: str, alignment: int = 4, **changes: int) -> np.ndarray:
    """y of float32[64] for x of float32[64]."""
    operands = [Operand("float32", (64,), dense_strides((64,)), alignment=alignment)] * 2
    parameters = "float *x, float *y" + ", char *workspace" * bool(changes)
    source = CudaSource(
        f'extern "C" __global__ void NAME({parameters}) {{ {I} {text} }}',
        (Launch((2, 1, 1), 32),), **changes,
    )  # fmt: skip
    (y,) = cuda_kernels.run_source(source, Problem(tuple(operands)), [X])
    return y


def test_right_kernels() -> None:
    np.testing.assert_array_equal(run("y[i] = 2 * x[63 - i];"), 2 * X[::-1])
    test_mma.check(test_mma.conv_mma, test_mma.CONVS["slices"], test_mma.SHAPES[2])
    test_mma.check(test_mma.conv_mma, test_mma.CONVS["residual"], test_mma.SHAPES[1], isa="sm_80")
    test_mma.check(test_mma.matmul_mma, test_mma.PRODUCTS["no rows"], test_mma.SHAPES[0])


def test_tensor_maps_and_packed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_wgmma.matmul, "LEAST", 0)
    test_wgmma.check_product(test_wgmma.product(150, 136, 96), test_wgmma.tile(64, 64))


MISTAKES = {
    "past the output": ("y[i] = x[i]; if (i == 0) y[64] = 1;", "wrote outside of output 0"),
    "before the output": ("y[i] = x[i]; if (i == 0) y[-1] = 1;", "wrote outside of output 0"),
    "to an input": ("y[i] = x[i]; x[i] = 0;", "wrote to input 0"),
    "a part only": ("if (i != 7) y[i] = x[i];", "differs between two runs"),
    "onto what was there": ("y[i] += x[i];", "differs between two runs"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    text, message = MISTAKES[name]
    with pytest.raises(EmulationError, match=message):
        run(text)


def test_addresses_are_no_rounder_than_promised() -> None:
    y = run("y[i] = (float)(((uint64_t)x | (uint64_t)y) % 32);", alignment=16)
    np.testing.assert_array_equal(y, np.full(64, 16, np.float32))


def test_workspaces() -> None:
    count = "y[i] = x[i]; if (threadIdx.x == 0) {COUNT}"
    good = count.replace(
        "COUNT", "if (atomic_add((int *)workspace, 1) == 1) *(int *)workspace = 0;"
    )
    np.testing.assert_array_equal(run(good, workspace=256, cleared=128), X)
    with pytest.raises(EmulationError, match="cleared bytes other than zero"):
        run(good.replace("== 1", "== 7"), workspace=256, cleared=128)
    with pytest.raises(EmulationError, match="outside of the workspace"):
        run("y[i] = x[i]; workspace[256 + i] = 0;", workspace=256)


def test_after_a_lost_gpu_nothing_is_believed(on_gpu: EmulatedDevice) -> None:
    on_gpu.fail_next["launch"] = DeviceError("refused")
    with pytest.raises(DeviceError, match="refused"):
        run("y[i] = x[i];")
    on_gpu.fail_next["launch"] = DeviceError("illegal address", usable=False)
    with pytest.raises(pytest.exit.Exception, match="illegal address"):
        run("y[i] = x[i];")


def test_kernels_for_other_gpus_are_skipped(on_gpu: EmulatedDevice) -> None:
    on_gpu.arch = 100
    with pytest.raises(pytest.skip.Exception, match=r"9\.0 on one of 10\.0"):
        run("y[i] = x[i];")


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.why_not.cache_clear()
    assert machine.why_not() is None

    def missing(ordinal: int = 0) -> EmulatedDevice:
        raise DeviceError("no driver (a long story)\nand more")

    monkeypatch.setattr("enginesmith.runtime.devices.cuda.cuda_device", missing)
    machine.why_not.cache_clear()
    assert machine.why_not() == "no driver"
    machine.why_not.cache_clear()


def test_which_tests_run_kernels() -> None:
    assert cuda_kernels.runs_kernels(test_mma.test_conv)
    assert cuda_kernels.runs_kernels(test_wgmma.test_products)
    assert not cuda_kernels.runs_kernels(test_mma.test_compiles)
    assert not cuda_kernels.runs_kernels(test_wgmma.test_refusals)
