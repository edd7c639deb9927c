"""The CPU: noise made ahead on a thread, and how many threads it takes."""

import time
from contextlib import ExitStack

import numpy as np
import pytest

from bfr.runtime.backends.host import HostNoise, check_threads, environments_threads
from bfr.runtime.diffusion.noise import fill_normal
from bfr.runtime.errors import InvalidOption

SHAPE = (3, 64, 64)


def normals(seed: int, image: int, step: int) -> np.ndarray:
    out = np.empty(SHAPE, np.float32)
    fill_normal(out, seed=seed, image=image, step=step)
    return out


def test_a_stream_that_was_left_half_way_starts_anew_unharmed(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(out: np.ndarray, *, seed: int, image: int, step: int) -> None:
        time.sleep(0.02)
        fill_normal(out, seed=seed, image=image, step=step)

    monkeypatch.setattr("bfr.runtime.backends.host.fill_normal", slow)
    with ExitStack() as owned:
        stream = HostNoise(owned, (1, *SHAPE))
        stream.begin(1, (1,), last=9)
        stream.ready(0)  # the fill of step 1 is under way
        stream.begin(2, (1,), last=1)
        for step in (0, 1):
            stream.ready(step)
            assert np.array_equal(stream.buffers[step][0], normals(2, 1, step))


def test_both_buffers_are_filled_before_the_first_is_asked_for() -> None:
    """So that the noise of the first step is made while the estimator runs."""
    with ExitStack() as owned:
        stream = HostNoise(owned, (1, *SHAPE))
        stream.begin(9, (5,), last=3)
        stream._thread.submit(lambda: None).result(timeout=30)  # what it was given until here is done
        assert np.array_equal(stream.buffers[0][0], normals(9, 5, 0))
        assert np.array_equal(stream.buffers[1][0], normals(9, 5, 1))


def test_the_noise_of_a_step_stays_at_every_position_until_the_next_is_asked_for() -> None:
    with ExitStack() as owned:
        stream = HostNoise(owned, (2, *SHAPE))
        stream.begin(9, (5, 6), last=4)
        for step in range(5):
            stream.ready(step)
            stream._thread.submit(lambda: None).result(timeout=30)
            for position, image in enumerate((5, 6)):
                assert np.array_equal(stream.buffers[step % 2][position], normals(9, image, step))
        with pytest.raises(RuntimeError, match="begin"):
            stream.ready(5)


@pytest.mark.parametrize("threads", [-1, 0, 9, 2000])
def test_threads_out_of_range(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four a core at most: thousands take minutes to start."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(InvalidOption, match="choose between 1 and 8"):
        check_threads(threads)
    for fine in (None, 1, 8):
        check_threads(fine)


@pytest.mark.parametrize(
    ("said", "threads"), [("3", 3), (" 2,1", 2), ("100000", 8), ("", None), ("0", None), ("many", None)]
)
def test_threads_of_the_environment(said: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert environments_threads() == threads
