"""Processes that crash, hang or raise: the modules of the standard library are the objects."""

import signal
from importlib import import_module

import pytest

from bfr.benchmarks.speed.apart import Apart, Lost
from bfr.benchmarks.speed.contender import split_name


@pytest.fixture
def there() -> Apart:
    """The module `os` of another process."""
    return Apart(import_module, "os", limit=60)


def test_calls_are_answered_in_another_process(there: Apart) -> None:
    first = there.call("getpid")
    assert first == there.call("getpid") == there._process.pid
    there.close()
    assert there._process.returncode == 0


def test_what_is_printed_there_is_no_answer(there: Apart) -> None:
    assert there.call("write", 1, b"a library says so\n") == 18
    assert there.call("system", "echo more") == 0
    there.close()


@pytest.mark.parametrize(
    ("method", "arguments", "reason"),
    [
        ("_exit", (3,), "its process ended with status 3"),
        ("abort", (), "its process was ended by SIGABRT"),
        ("getpid", (1,), r"TypeError: .*takes no arguments"),
        ("urandom", (1 << 62,), "MemoryError|OverflowError"),
    ],
)
def test_a_crash_is_a_reason(there: Apart, method: str, arguments: tuple[int, ...], reason: str) -> None:
    with pytest.raises(Lost, match=reason):
        there.call(method, *arguments)
    assert there._process.poll() is not None
    with pytest.raises(Lost):
        there.call("getpid")
    there.close()


def test_last_words_are_told(there: Apart) -> None:
    there.call("write", 2, b"CUDA error: an illegal address\n")
    with pytest.raises(Lost, match="status 1: CUDA error: an illegal address"):
        there.call("_exit", 1)


def test_a_process_that_is_killed_may_have_had_no_memory(there: Apart) -> None:
    with pytest.raises(Lost, match="SIGKILL, as where memory runs out"):
        there.call("kill", there._process.pid, signal.SIGKILL)


def test_a_hang_ends_at_the_limit() -> None:
    there = Apart(import_module, "signal", limit=60)
    there.limit = 0.2
    with pytest.raises(Lost, match=r"it took more than 0\.2 s to pause"):
        there.call("pause")
    assert there._process.poll() is not None


def test_an_object_that_cannot_be_made_says_why() -> None:
    with pytest.raises(Lost, match="backend 'no-such' is unknown"):
        Apart(split_name, "no-such", limit=60)
