"""Faces side by side in threads."""

import threading

import pytest

from bfr.runtime.faces import each as module
from bfr.runtime.faces.each import each


def test_results_keep_the_order_of_the_items_and_the_calls_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    both = threading.Barrier(2, timeout=30)  # broken unless two calls wait at once
    assert each(lambda item: (both.wait(), -item)[1], range(4)) == [0, -1, -2, -3]


@pytest.mark.parametrize(("cores", "items"), [(1, 3), (None, 3), (8, 1), (8, 0)])
def test_one_core_or_one_item_needs_no_thread(monkeypatch: pytest.MonkeyPatch, cores: int | None, items: int) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: cores)
    assert each(lambda _: threading.current_thread(), iter(range(items))) == [threading.current_thread()] * items


def test_what_a_call_raises_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    with pytest.raises(ZeroDivisionError):
        each(lambda item: 1 // item, [1, 0, 2])
