"""Batches across requests: who goes with whom, who goes first, who goes never."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.workers.batching import Batcher, Expired, Group, OnShare

A, B = Group("balanced", 1), Group("fast", 1)
Pixels = NDArray[Any]


def image(value: int) -> Pixels:
    return np.full((2, 2, 3), value, np.uint8)


class Networks:
    """Gives images back as they came, and remembers the batches. `hold()` keeps the next ones waiting."""

    def __init__(self, steps: int = 4) -> None:
        self.batches: list[tuple[Group, list[int]]] = []
        self.steps, self.done_steps = steps, 0
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()

    def __call__(
        self, group: Group, images: Sequence[Pixels], keys: Sequence[int | None], on_share: OnShare
    ) -> list[Restored]:
        self.batches.append((group, [int(one[0, 0, 0]) for one in images]))
        self.begun.set()
        assert self.go.wait(10)
        for k in range(self.steps):
            self.done_steps += 1
            on_share((k + 1) / self.steps)
        return [Restored(one, {"network": 0.1}, "fp32") for one in images]

    def hold(self) -> None:
        self.go.clear()
        self.begun.clear()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))


async def begun(networks: Networks) -> None:
    assert await asyncio.to_thread(networks.begun.wait, 10)


def test_faces_of_different_requests_share_a_batch_and_come_back_to_their_own() -> None:
    async def work() -> None:
        networks = Networks()
        batcher = Batcher(networks, size=4, linger=0.05)
        photograph = batcher.submit([image(k) for k in range(7)], A, seconds=10)
        portraits = [batcher.submit([image(10 + k)], A, seconds=10) for k in range(3)]
        for ticket in (photograph, *portraits):
            assert await ticket.wait(10)
        assert [len(batch) for _, batch in networks.batches] == [4, 4, 2]
        assert networks.batches[1][1] == [4, 5, 6, 10]  # the photograph's last three, and the first portrait
        values = [int(one.restored.pixels[0, 0, 0]) for one in photograph.results() if one.restored.pixels is not None]
        assert values == list(range(7))
        assert [ticket.results()[0].restored.pixels[0, 0, 0] for ticket in portraits] == [10, 11, 12]  # type: ignore[index]
        told = [one.batch for ticket in (photograph, *portraits) for one in ticket.results() if one.batch]
        assert sorted(told) == [2, 4, 4]  # each batch is told of once, and they add up to the faces
        await batcher.close()

    run(work)


def test_only_one_preset_and_seed_a_batch_and_the_oldest_first() -> None:
    async def work() -> None:
        networks = Networks()
        batcher = Batcher(networks, size=4, linger=0.02)
        tickets = [batcher.submit([image(k)], group, seconds=10) for k, group in enumerate((A, B, A, Group("fast", 2)))]
        for ticket in tickets:
            assert await ticket.wait(10)
        assert networks.batches == [(A, [0, 2]), (B, [1]), (Group("fast", 2), [3])]
        await batcher.close()

    run(work)


def test_a_job_fills_batches_and_never_goes_before_a_request() -> None:
    async def work() -> None:
        networks = Networks()
        networks.hold()
        batcher = Batcher(networks, size=2)
        first = batcher.submit([image(0)], A, seconds=10)
        await begun(networks)
        job = batcher.submit([image(k) for k in (1, 2)], A, seconds=10, urgent=False)
        request = batcher.submit([image(k) for k in (7, 8, 9)], A, seconds=10)
        networks.go.set()
        for ticket in (first, job, request):
            assert await ticket.wait(10)
        assert [batch for _, batch in networks.batches] == [[0], [7, 8], [9, 1], [2]]
        await batcher.close()

    run(work)


def test_who_waited_too_long_leaves_before_it_costs_anything() -> None:
    async def work() -> None:
        networks = Networks()
        networks.hold()
        batcher = Batcher(networks, size=1)
        first = batcher.submit([image(0)], A, seconds=10)
        await begun(networks)
        late, patient = batcher.submit([image(1)], A, seconds=0.01), batcher.submit([image(2)], A, seconds=10)
        await asyncio.sleep(0.05)
        networks.go.set()
        assert await late.wait(10)
        assert await patient.wait(10)
        with pytest.raises(Expired):
            late.results()
        assert [batch for _, batch in networks.batches] == [[0], [2]]
        assert first.results()[0].waited < 5
        await batcher.close()

    run(work)


def test_abandoned_faces_leave_the_queue_and_a_batch_that_nobody_waits_for_ends_after_its_step() -> None:
    async def work() -> None:
        networks = Networks(steps=100)
        networks.hold()
        batcher = Batcher(networks, size=2)
        running = batcher.submit([image(0), image(1)], A, seconds=10)
        await begun(networks)
        queued, other = batcher.submit([image(2)], A, seconds=10), batcher.submit([image(3)], A, seconds=10)
        running.abandon()
        queued.abandon()
        networks.go.set()
        assert await other.wait(10)
        assert [batch for _, batch in networks.batches] == [[0, 1], [3]]
        assert networks.done_steps == 1 + 100
        assert other.results()[0].batch == 1
        await batcher.close()

    run(work)


def test_a_batch_goes_on_while_somebody_waits_for_one_of_its_faces() -> None:
    async def work() -> None:
        networks = Networks(steps=10)
        networks.hold()
        batcher = Batcher(networks, size=2, linger=0.02)
        leaver, stayer = batcher.submit([image(0)], A, seconds=10), batcher.submit([image(1)], A, seconds=10)
        await begun(networks)
        leaver.abandon()
        networks.go.set()
        assert await stayer.wait(10)
        assert networks.done_steps == 10
        assert stayer.results()[0].batch == 2  # told by the one who stayed
        assert stayer.share == 1.0
        await batcher.close()

    run(work)


def test_an_error_is_told_to_all_who_wait_and_the_next_batch_goes_on() -> None:
    async def work() -> None:
        calls = 0

        def broken(_group: Group, images: Sequence[Pixels], _keys: object, _on_share: OnShare) -> list[Restored]:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise RuntimeError("the device is gone")
            return [Restored(one, {}, "fp32") for one in images]

        batcher = Batcher(broken, size=2, linger=0.02)
        ticket = batcher.submit([image(0), image(1)], A, seconds=10)
        assert await ticket.wait(10)
        with pytest.raises(RuntimeError, match="device is gone"):
            ticket.results()
        ticket.abandon()
        following = batcher.submit([image(2)], A, seconds=10)
        assert await following.wait(10)
        assert following.results()[0].restored.pixels is not None
        await batcher.close()

    run(work)


def test_a_device_that_prepares_ahead_is_given_two_batches_which_are_told_apart() -> None:
    async def work() -> None:
        networks = Networks()
        batcher = Batcher(networks, size=2, linger=0.02, ahead=2)
        ticket = batcher.submit([image(k) for k in range(5)], A, seconds=10)
        assert await ticket.wait(10)
        assert [len(batch) for _, batch in networks.batches] == [4, 1]
        assert [one.batch for one in ticket.results()] == [2, 0, 2, 0, 1]
        await batcher.close()

    run(work)
