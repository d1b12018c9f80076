"""Settings from the environment, typed; read when something is built or created, not on hot paths.

variable              meaning                                               default
ENGINESMITH_CACHE     folder of compiled kernels and timings                ~/.cache/enginesmith
ENGINESMITH_THREADS   threads of an engine                                  all CPUs it may use
ENGINESMITH_LOG       what is logged: debug, info, warning or error         warning
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from enginesmith.errors import EnginesmithError

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Knobs:
    """See the table above (ENGINESMITH_ + the field's name); `threads` is None if not set."""

    cache: Path
    threads: int | None
    log: str


def knobs(environment: Mapping[str, str] | None = None) -> Knobs:
    """The settings now. EnginesmithError names the variable whose value makes no sense."""
    env = os.environ if environment is None else environment
    threads = env.get("ENGINESMITH_THREADS", "")
    if threads and not (re.fullmatch("[0-9]{1,4}", threads) and 1 <= int(threads) <= 1024):
        raise EnginesmithError(f"ENGINESMITH_THREADS={threads!r}: set a number from 1 to 1024")
    log = env.get("ENGINESMITH_LOG", "warning").lower()
    if log not in LOG_LEVELS:
        raise EnginesmithError(f"ENGINESMITH_LOG={log!r}: set one of {', '.join(LOG_LEVELS)}")
    return Knobs(_cache_folder(env), int(threads) if threads else None, log)


def _cache_folder(env: Mapping[str, str]) -> Path:
    if folder := env.get("ENGINESMITH_CACHE", ""):
        return Path(folder).expanduser()
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache", "enginesmith").expanduser()
