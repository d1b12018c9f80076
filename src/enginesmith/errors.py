"""Every error Enginesmith raises on purpose. All derive from EnginesmithError.

A message says what is wrong, where (the ONNX node or the argument), why, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class EnginesmithError(Exception):
    """Base class: `except EnginesmithError` catches everything raised on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a model: `where` names the ONNX node or value."""

    where: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f" ({self.remedy})" if self.remedy else "")


class ModelError(EnginesmithError):
    """The model can't be read or built. `problems` lists all that was found, not just the first."""

    def __init__(self, summary: str, problems: Sequence[Problem] = ()) -> None:
        self.summary = summary
        self.problems = tuple(problems)
        super().__init__("\n".join([summary, *(f"  - {p}" for p in self.problems)]))


class UnsupportedError(ModelError):
    """The model is valid, but holds operators or forms of them that no kernel serves yet."""


class BuildError(EnginesmithError):
    """The build failed for a reason outside the model: compiler, cache, disk, target."""


class PlanError(EnginesmithError):
    """A plan file is damaged, of another version, made for another machine, or can't be written."""


class FeedError(EnginesmithError, ValueError):
    """The feeds of an inference don't fit the engine's inputs. Lists every misfit."""


class ContextError(EnginesmithError, RuntimeError):
    """An execution context was misused, for example by two threads at once."""


class DeviceError(EnginesmithError, RuntimeError):
    """A GPU, its driver or a library is missing, or an operation on the GPU failed. `usable`: can
    engines of this process still run on the GPU?"""

    def __init__(self, message: str, usable: bool = True) -> None:
        super().__init__(message)
        self.usable = usable
