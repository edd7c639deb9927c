"""The faces of a photograph on several cores: OpenCV and the detector's network compute without Python's lock."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST = 8  # threads


def each(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call `work` on every item in parallel; return the results in order. Raises the error of the first failed item."""
    given = list(items)
    threads = min(len(given), os.cpu_count() or 1, MOST)
    if threads < 2:
        return [work(item) for item in given]
    with ThreadPoolExecutor(threads, thread_name_prefix="bfr-faces") as pool:
        return list(pool.map(work, given))
