"""The same work in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable


def side_by_side(work: Callable[[int], None], count: int) -> list[BaseException]:
    """Call `work(i)` for i < count, each in a thread of its own; what they raised."""
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
