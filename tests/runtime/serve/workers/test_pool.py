"""Worker processes that are killed, cannot start, or hold a batch that nobody waits for any more."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eventually import eventually

from bfr.runtime.errors import RestorationFailed
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import FaceOrder, Group, Refusal
from bfr.runtime.serve.workers import pool as module
from bfr.runtime.serve.workers import worker as workers
from bfr.runtime.serve.workers.batching import Face, Failed
from bfr.runtime.serve.workers.pool import Pool
from bfr.runtime.serve.workers.worker import Child, Worker

pytestmark = pytest.mark.server

OPTIONS = ServeOptions(presets=("fast", "reference"), batch=2, threads=1, backend="onnxruntime-cpu", precision="fp32")
FAST, SLOW = Group("mini", "fast", 3), Group("mini", "reference", 3)  # one has a hundred steps
FACES = list(np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), np.uint8))


def order(group: Group = FAST) -> FaceOrder:
    return FaceOrder(group)


async def last(pool: Pool, faces: Sequence[Any], wanted: FaceOrder) -> Any:
    found: Any = None
    async for step in pool.restore(faces, wanted):
        found = step
    return found


@asynccontextmanager
async def running(**options: Any) -> AsyncGenerator[Pool, None]:
    pool = Pool(OPTIONS.model_copy(update=options))
    await pool.start()
    try:
        yield pool
    finally:
        await pool.stop()
    assert all(worker.child is None for worker in pool.workers)


def pid(pool: Pool, number: int = 0) -> int:
    child = pool.workers[number].child
    assert child is not None
    return child.process.pid


async def begun(pool: Pool) -> None:
    """Until the queue is empty: a worker has it."""
    await eventually(lambda: not len(pool.batcher))


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    with Restorer.open(preset="fast", threads=1, backend="onnxruntime-cpu", precision="fp32") as restorer:
        return restorer.restore(FACES, seed=3)


async def test_workers_share_the_faces_and_their_results_are_a_restorers(expected: list[Any]) -> None:
    sizes: list[int] = []

    async with running(workers=2, linger=0.0, batch=1) as pool:
        pool.on_batch = lambda found, *_: sizes.append(len(found))
        answers = await asyncio.gather(*(last(pool, [face], order()) for face in FACES))
        for [answer], wanted in zip(answers, expected, strict=True):
            assert np.array_equal(answer.restored.pixels, wanted)
        assert sum(sizes) == len(FACES)
        assert all(worker.busy > 0 for worker in pool.workers)
        assert all(worker.child and worker.child.resident > 10_000_000 for worker in pool.workers)
        assert pool.restarts == 0


async def test_a_killed_worker_costs_no_answer_and_a_face_that_kills_two_is_refused(expected: list[Any]) -> None:
    async with running() as pool:
        [worker] = pool.workers
        start = worker.start

        async def start_stopped() -> None:
            worker.start = start  # type: ignore[method-assign]
            await start()
            os.kill(pid(pool), signal.SIGSTOP)

        os.kill(pid(pool), signal.SIGSTOP)  # it is sent its calls, and answers none of them
        asked = [asyncio.create_task(last(pool, [face], order())) for face in FACES[:2]]
        await eventually(lambda: worker.calls)
        [call] = worker.calls.values()
        assert len(call.faces) == 2
        worker.start = start_stopped  # type: ignore[method-assign]
        os.kill(pid(pool), signal.SIGKILL)
        while not worker.calls or pool.restarts < 1:
            await asyncio.sleep(0.02)
        [again] = worker.calls.values()
        assert len(again.faces) == 1  # each goes alone now
        assert [face.losses for face in call.faces] == [1, 1]
        os.kill(pid(pool), signal.SIGKILL)
        refused, [answer] = await asyncio.gather(*asked)
        assert isinstance(refused, Refusal)
        assert refused.kind == "lost"
        assert np.array_equal(answer.restored.pixels, expected[1])
        assert pool.restarts == 2


async def test_the_next_call_is_at_hand_while_one_is_computed_and_is_no_loss(expected: list[Any]) -> None:
    async with running(batch=1) as pool:
        slow = asyncio.create_task(last(pool, FACES[:1], order(SLOW)))
        await begun(pool)
        quick = [asyncio.create_task(last(pool, [face], order())) for face in FACES[1:3]]
        await eventually(lambda: len(pool.workers[0].calls) >= 2)
        assert len(pool.batcher) == 1
        faces = [call.faces[0] for call in pool.workers[0].calls.values()]
        assert [bool(face.begun) for face in faces] == [True, False]
        os.kill(pid(pool), signal.SIGKILL)
        await eventually(lambda: pool.restarts)
        assert [face.losses for face in faces] == [1, 0]
        slow.cancel()  # its call ends after a step, and the others are not stopped with it
        answers = [answer for [answer] in await asyncio.gather(*quick)]
        assert all(np.array_equal(one.restored.pixels, face) for one, face in zip(answers, expected[1:3], strict=True))


async def test_a_face_that_comes_while_a_killed_worker_ends_goes_to_the_next_one(
    expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    end = Worker.end

    async def slowly(worker: Worker, seconds: float = 0.0) -> int:
        status = await end(worker, seconds)
        await asyncio.sleep(0.3)
        return status

    monkeypatch.setattr(Worker, "end", slowly)
    async with running() as pool:
        os.kill(pid(pool), signal.SIGKILL)
        await eventually(lambda: not pool.running)
        [answer] = await last(pool, FACES[:1], order())
        assert np.array_equal(answer.restored.pixels, expected[0])
        assert pool.restarts == 1


async def test_a_face_that_the_networks_fail_at_fails_no_other(
    expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sizes = Worker.run, []

    async def failing(worker: Worker, faces: Sequence[Face]) -> list[Restored]:
        sizes.append(len(faces))
        if any(face.pixels is FACES[1] for face in faces):
            raise Failed("no kernel for it")
        return await run(worker, faces)

    monkeypatch.setattr(Worker, "run", failing)
    async with running() as pool:
        good, bad = (pool.batcher.submit([face], order()) for face in FACES[:2])
        assert await good.wait(100)
        assert await bad.wait(100)
        assert sizes == [2, 1, 1]
        assert np.array_equal(good.results()[0].restored.pixels, expected[0])
        with pytest.raises(Failed, match="no kernel"):
            bad.results()


async def test_a_worker_that_hangs_is_replaced(expected: list[Any]) -> None:
    async with running() as pool:
        [worker] = pool.workers
        os.kill(pid(pool), signal.SIGSTOP)
        await asyncio.sleep(2 * module.TICK)  # idle, it has nothing to say
        asked = asyncio.create_task(last(pool, FACES[:1], order()))
        await eventually(lambda: worker.calls)
        assert pool.restarts == 0
        worker.heard -= 1e6
        [answer] = await asked
        assert np.array_equal(answer.restored.pixels, expected[0])
        assert pool.restarts == 1


async def test_a_worker_that_hangs_while_it_starts_anew_is_replaced(expected: list[Any]) -> None:
    async with running() as pool:
        [worker] = pool.workers
        start, hung = worker.start, []

        async def hang() -> None:
            hung.append(pool.patience)
            worker.start, pool.patience = start, 1e6  # type: ignore[method-assign]
            await asyncio.get_running_loop().create_future()

        assert pool.patience >= module.HANGS
        worker.start, pool.patience = hang, 0.01  # type: ignore[method-assign]
        os.kill(pid(pool), signal.SIGKILL)
        [answer] = await last(pool, FACES[:1], order())
        assert np.array_equal(answer.restored.pixels, expected[0])
        assert (hung, pool.restarts) == ([0.01], 1)


async def test_a_system_without_room_for_a_process_does_not_end_the_server(
    expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    full = [OSError(24, "Too many open files"), OSError(11, "Resource temporarily unavailable")]

    class Late(Child):
        def __init__(self, name: str) -> None:
            if full:
                raise full.pop()
            super().__init__(name)

    async with running() as pool:
        monkeypatch.setattr(workers, "Child", Late)
        os.kill(pid(pool), signal.SIGKILL)
        [answer] = await last(pool, FACES[:1], order())
        assert np.array_equal(answer.restored.pixels, expected[0])
        assert (full, pool.restarts) == ([], 1)


async def test_what_nobody_waits_for_is_not_worked_on() -> None:
    async with running() as pool:
        done: list[int] = []
        pool.on_batch = lambda found, *_: done.append(len(found))
        async with aclosing(pool.restore(FACES[:1], order(SLOW))) as steps:
            share = await anext(steps)
            assert isinstance(share, float)
            assert 0 < share < 1  # then the caller leaves: the batch ends after its step
        await last(pool, FACES[:1], order())
        assert done == [1]
        assert pool.restarts == 0


async def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RestorationFailed, match=str(tmp_path)):
        async with running(bundle=tmp_path):
            pass


async def test_a_worker_that_cannot_be_started_any_more_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr(module, "TRIES", 2)

    async with running() as pool:
        pool.workers[0]._setup["options"]["bundle"] = "/nowhere"
        os.kill(pid(pool), signal.SIGKILL)
        assert pool.failure is not None
        with pytest.raises(RestorationFailed, match="nowhere"):
            await pool.failure
