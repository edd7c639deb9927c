"""Batches across requests: who goes with whom, who goes first, who goes never."""

import asyncio
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.orders import FaceOrder, Finished, Group, Sender
from bfr.runtime.serve.workers.batching import Batcher, Face, Lost, Ticket

A, B = Group("mini", "balanced", 1), Group("mini", "fast", 1)
Pixels = NDArray[Any]


def image(value: int) -> Pixels:
    return np.full((2, 2, 3), value, np.uint8)


def submit(batcher: Batcher, values: Sequence[int], group: Group = A, **more: Any) -> Ticket:
    return batcher.submit([image(value) for value in values], FaceOrder(group, **more))


def values(faces: Sequence[Face]) -> list[int]:
    return [int(face.pixels[0, 0, 0]) for face in faces]


def answer(faces: Sequence[Face]) -> None:
    for face in faces:
        if not face.future.done():
            face.future.set_result(Finished(Restored(face.pixels, {}, "fp32"), 0.0))


async def batches(batcher: Batcher) -> list[list[int]]:
    """All that wait, as one worker would get them."""
    found = []
    while len(batcher):
        faces = await batcher.take()
        found.append(values(faces))
        answer(faces)
    return found


async def test_faces_of_different_requests_share_a_batch_and_come_back_to_their_own() -> None:
    batcher = Batcher(size=4)
    tickets = [submit(batcher, range(7)), *(submit(batcher, [10 + k]) for k in range(3))]
    found = await batches(batcher)
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert sorted(chain.from_iterable(found)) == [*range(7), 10, 11, 12]
    for ticket, expected in zip(tickets, [[*range(7)], [10], [11], [12]], strict=True):
        assert await ticket.wait(10)
        results = [one.restored.pixels for one in ticket.results()]
        assert [int(one[0, 0, 0]) for one in results if one is not None] == expected


@pytest.mark.parametrize("sender", [Sender("me"), Sender("another")])
async def test_a_face_beside_a_photograph_of_many_goes_with_its_next_batch(sender: Sender) -> None:
    """It waits for the batch under way and goes with the next but one at the latest, whoever sent it."""
    batcher = Batcher(size=4)
    submit(batcher, range(144), sender=Sender("me"))
    for _ in range(5):
        answer(await batcher.take())
    submit(batcher, [200], sender=sender)
    assert 200 in [value for _ in range(2) for value in values(await batcher.take())]


async def test_a_face_of_another_group_waits_three_batches_at_most() -> None:
    batcher = Batcher(size=4)
    submit(batcher, range(144))
    answer(await batcher.take())
    submit(batcher, [200], B)
    found = [values(await batcher.take()) for _ in range(3)]
    assert [200] in found


async def test_a_sender_of_many_requests_takes_turns_with_one_of_few() -> None:
    batcher = Batcher(size=1)
    for k in range(30):
        submit(batcher, [k], sender=Sender("many"))
    answer(await batcher.take())
    submit(batcher, [200], sender=Sender("few"))
    assert 200 in [value for _ in range(2) for value in values(await batcher.take())]


async def test_a_key_of_twice_the_priority_gets_twice_the_turns() -> None:
    batcher = Batcher(size=1)
    submit(batcher, [1] * 60, sender=Sender("plain"))
    submit(batcher, [2] * 60, sender=Sender("preferred", 2.0))
    taken = [values(await batcher.take())[0] for _ in range(60)]
    assert abs(taken.count(2) - 40) <= 1


async def test_only_one_group_a_batch_and_the_oldest_first() -> None:
    batcher = Batcher(size=4)
    other = Group("mini", "fast", 2)
    for k, group in enumerate((A, B, A, other)):
        submit(batcher, [k], group, sender=Sender(str(k)))
    assert await batches(batcher) == [[0, 2], [1], [3]]


async def test_a_job_fills_batches_and_never_goes_before_a_request() -> None:
    batcher = Batcher(size=2)
    submit(batcher, [1, 2], urgent=False)
    submit(batcher, [7, 8, 9])
    assert await batches(batcher) == [[7, 8], [9, 1], [2]]


async def test_abandoned_faces_leave_the_queue() -> None:
    batcher = Batcher(size=2)
    gone = submit(batcher, [0, 1])
    gone.abandon()
    left = submit(batcher, [3])
    assert batcher._tickets == [left]  # no worker has asked for faces meanwhile
    gone = submit(batcher, [4])
    gone.abandon()
    assert len(batcher) == 1
    assert await batches(batcher) == [[3]]


async def test_faces_of_a_worker_that_ended_go_once_more_each_alone_and_first() -> None:
    batcher = Batcher(size=2)
    ticket = submit(batcher, [0, 1])
    lost = await batcher.take()
    submit(batcher, [5])
    batcher.put_back([lost])
    first = await batcher.take()
    assert values(first) == [0]
    batcher.put_back([first])  # this one ends every worker
    rest = await batches(batcher)
    assert rest == [[1], [5]]
    assert await ticket.wait(10)
    assert ticket.faces[1].future.result().restored.pixels is not None
    with pytest.raises(Lost):
        ticket.results()


async def test_a_batch_waits_to_be_filled() -> None:
    batcher = Batcher(size=2, linger=0.05)
    submit(batcher, [0])
    taking = asyncio.create_task(batcher.take())
    await asyncio.sleep(0)
    submit(batcher, range(1, 6))
    assert len(await taking) == 2


async def test_a_worker_that_computes_is_given_full_batches_alone() -> None:
    batcher, busy = Batcher(size=2), True
    taking = asyncio.create_task(batcher.take(full=lambda: busy))
    submit(batcher, [0])
    await asyncio.sleep(0.01)
    assert len(batcher) == 1
    submit(batcher, [1])
    assert values(await taking) == [0, 1]
    taking = asyncio.create_task(batcher.take(full=lambda: busy))
    submit(batcher, [2])
    await asyncio.sleep(0.01)
    assert len(batcher) == 1
    busy = False
    batcher.wake()
    assert values(await taking) == [2]


async def test_of_the_calls_of_a_lost_worker_only_the_first_counts_as_a_loss() -> None:
    batcher = Batcher(size=1)
    first, second = submit(batcher, [0]), submit(batcher, [1])
    for _ in range(2):
        calls = [await batcher.take(), await batcher.take()]
        assert [values(faces) for faces in calls] == [[0], [1]]
        batcher.put_back(calls)
    assert await batches(batcher) == [[1]]
    with pytest.raises(Lost):
        first.results()
    assert second.results()


async def test_both_calls_that_a_gpu_had_launched_count_but_for_one_that_was_there_alone() -> None:
    batcher = Batcher(size=1)
    tickets = [submit(batcher, [value]) for value in range(3)]
    losses = lambda: [ticket.faces[0].losses for ticket in tickets]  # noqa: E731
    calls = [await batcher.take() for _ in tickets]
    batcher.put_back(calls, launched=2)
    assert losses() == [1, 1, 0]  # the third waited in the worker's queue
    calls = [await batcher.take() for _ in tickets]
    batcher.put_back(calls, launched=2)
    assert losses() == [2, 1, 0]  # the second was not launched while the first was suspected
    assert await batches(batcher) == [[1], [2]]
