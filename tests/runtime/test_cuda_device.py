"""The driver's calls in their order, with a driver that only notes them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest

from enginesmith.runtime.devices import cuda
from enginesmith.runtime.devices.cuda import CudaDevice


class Status(Enum):
    CUDA_SUCCESS = 0


class Names:
    """An enumeration of the driver's: every name is its own value."""

    def __getattr__(self, name: str) -> str:
        return name


class NotingDriver:
    """Every function succeeds; `calls` are their names."""

    CUresult = Status
    CUdevice_attribute = CUstreamCaptureMode = Names()

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def function(*_: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            return Status.CUDA_SUCCESS, 64 * len(self.calls)

        return function


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    driver = NotingDriver()
    monkeypatch.setattr(cuda, "driver", lambda: driver)
    return driver.calls


def freed(calls: list[str]) -> int:
    return calls.count("cuMemFree")


def test_nothing_is_freed_while_its_thread_captures(noted: list[str]) -> None:
    """Not even by the garbage collector: the driver would give the capture up."""
    device = CudaDevice()
    loop: list[Any] = [device.allocate(8)]
    loop.append(loop)
    memory = device.allocate(8)
    with device.capture(1):
        memory.close()
        del loop
        gc.collect()
        device.unload(3)
        device.close_graph(4)
        assert not freed(noted)
    assert freed(noted) == 2
    after = noted[noted.index("cuStreamEndCapture") :]
    assert {"cuMemFree", "cuModuleUnload", "cuGraphExecDestroy"} <= set(after)


def test_a_failed_capture_frees_too(noted: list[str]) -> None:
    device = CudaDevice()
    memory = device.allocate(8)

    def fail() -> None:
        with device.capture(1):
            memory.close()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert freed(noted) == 1
    device.allocate(8).close()
    assert freed(noted) == 2


def test_other_threads_free_at_once(noted: list[str]) -> None:
    device = CudaDevice()
    memory = device.allocate(8)
    with device.capture(1):
        thread = threading.Thread(target=memory.close)
        thread.start()
        thread.join()
        assert freed(noted) == 1
