"""Runs CUDA kernels without a GPU: their text compiled for the CPU, over an emulated machine.

Tests of kernels call it through tests/cuda_kernels. See runtime.cpp for what the machine checks,
emulator.h for the functions a kernel may use. Kernels that form clusters use dynamic shared memory
only.
"""

from tests.cuda_emulator.machine import EmulationError, run_source
from tests.cuda_emulator.memory import numpy_dtype

__all__ = ["EmulationError", "numpy_dtype", "run_source"]
