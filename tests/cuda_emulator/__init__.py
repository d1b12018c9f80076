"""Runs CUDA kernels without a GPU: their text compiled for the CPU, over an emulated machine.

`run_source` is what tests call. See runtime.cpp for what the machine checks, emulator.h for the
functions a kernel may use. Kernels that form clusters use dynamic shared memory only.
"""

from tests.cuda_emulator.machine import EmulationError, run_family, run_source

__all__ = ["EmulationError", "run_family", "run_source"]
