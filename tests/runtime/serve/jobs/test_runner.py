"""Jobs in processes of their own: done, cancelled, killed, past their limits."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eventually import eventually
from numpy.typing import NDArray

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.jobs import runner as module
from bfr.runtime.serve.jobs.job import ENDED, Job, JobRequest, Status
from bfr.runtime.serve.jobs.runner import MOST_ATTEMPTS, JobRunner
from bfr.runtime.serve.jobs.store import JobStore
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import FaceOrder, Finished
from bfr.runtime.serve.systems import open_systems
from bfr.runtime.serve.workers.worker import Child

pytestmark = pytest.mark.server

PNG = encode_image(np.ones((8, 8, 3), np.uint8), ".png")


class Jobs:
    """A folder of jobs, and the runner that works through them. The faces come back black once `go` is set."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.options = ServeOptions(backend="onnxruntime-cpu", presets=("fast",), **options)
        self.store, self.go, self.asked = JobStore(folder), asyncio.Event(), asyncio.Event()
        self.go.set()
        self.orders: list[FaceOrder] = []
        self.left = 0
        self.ended: list[str] = []
        systems = open_systems(self.options)
        self.runner = JobRunner(self.options, self.store, self.black, systems, batch=2, on_end=self.ended.append)

    async def black(self, images: Sequence[NDArray[Any]], order: FaceOrder) -> AsyncGenerator[Any, None]:
        self.orders.append(order)
        done = False
        try:
            yield 0.5
            self.asked.set()
            await self.go.wait()
            done = True
            yield [Finished(Restored(np.zeros_like(one), {"network": 0.1}, "fp32"), 0.0) for one in images]
        finally:
            self.left += not done

    async def add(self, data: bytes = PNG, created: float = 1.0, **more: Any) -> Job:
        async def body() -> AsyncIterator[bytes]:
            yield data

        values = {"bundle": "mini", "preset": "fast", "seed": 3, "aligned": True, "photo": PhotoOptions()}
        job = await self.store.add(JobRequest(**{"created": created, "suffix": ".png", **values, **more}), body())
        self.runner.wake()
        return job

    def state(self, job: Job) -> str | None:
        found = self.store.get(job.id)
        return found.status.state if found else None

    async def until(self, job: Job, state: str | None) -> Job | None:
        while self.state(job) != state or (state in ENDED and not (self.store.folder / "ended" / job.id).exists()):
            await asyncio.sleep(0.02)
        return self.store.get(job.id)


@asynccontextmanager
async def working(folder: Path, **options: Any) -> AsyncGenerator[Jobs, None]:
    jobs = Jobs(folder / "jobs", **options)
    running = asyncio.create_task(jobs.runner.run())
    try:
        yield jobs
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_jobs_are_done_one_after_the_other_and_one_that_fails_says_why(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        broken, good = await jobs.add(b"no image"), await jobs.add(created=2.0)
        found = await jobs.until(good, "done")
        assert found is not None
        assert found.result is not None
        assert not decode_image(found.open(found.result).read()).pixels.any()
        assert (found.status.share, found.status.faces) == (1.0, 1)
        assert not jobs.orders[0].urgent
        failed = jobs.store.get(broken.id)
        assert failed is not None
        assert failed.status.state == "failed"
        assert failed.status.error
        assert str(jobs.store.folder) not in failed.status.error
        assert jobs.ended == ["failed", "done"]


async def test_owners_of_jobs_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(tmp_path / "jobs")
    for created, owner in enumerate("aaabbc"):
        await jobs.add(created=float(created), owner=owner)
    done: list[float] = []

    async def do(job: Job) -> None:
        done.append(job.request.created)
        jobs.store.end(job, Status("done"))

    monkeypatch.setattr(jobs.runner, "_do", do)
    while await jobs.runner._look():
        pass
    assert done == [0, 3, 5, 1, 4, 2]


async def test_a_cancelled_job_stops_and_leaves_nothing(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        jobs.go.clear()
        job = await jobs.add()
        other = await jobs.add(created=2.0)
        await jobs.asked.wait()
        await jobs.runner.cancel(job.id)
        jobs.store.remove(job.id)
        assert jobs.left == 1
        jobs.go.set()
        await jobs.until(other, "done")
        assert list(jobs.store.folder.rglob(f"*{job.id}*")) == []


async def test_a_job_that_is_deleted_by_another_server_ends_though_its_process_says_nothing(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        jobs.go.clear()
        job = await jobs.add()
        await jobs.asked.wait()
        JobStore(jobs.store.folder).remove(job.id)
        await eventually(lambda: jobs.left)
        jobs.go.set()
        await jobs.until(await jobs.add(), "done")


@pytest.mark.parametrize("before", [Status("done"), Status("running", attempts=MOST_ATTEMPTS)])
async def test_a_job_that_is_deleted_as_it_ends_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Status
) -> None:
    end = JobStore.end

    def late(store: JobStore, job: Job, status: Status) -> None:
        if job.request.created == 1.0:
            store.remove(job.id)
        end(store, job, status)

    monkeypatch.setattr(JobStore, "end", late)
    jobs = Jobs(tmp_path / "jobs")
    deleted = await jobs.add()
    deleted.write(before)
    async with working(tmp_path) as jobs:
        await jobs.until(await jobs.add(created=2.0), "done")
        assert jobs.store.get(deleted.id) is None


async def test_what_this_server_does_not_offer_waits_for_one_that_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(tmp_path) as jobs:
        others = [await jobs.add(bundle="difface"), await jobs.add(preset="best")]
        for created in (2.0, 3.0):
            await jobs.until(await jobs.add(created=created), "done")
        assert [jobs.state(job) for job in others] == ["queued", "queued"]
        assert sum("does not offer" in line.message for line in caplog.records) == 2


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), None])
async def test_a_process_that_cannot_be_started_is_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    """Or that cannot import what it needs, as while the package is installed anew."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    left = MOST_ATTEMPTS + 1

    def make(name: str) -> Child:
        nonlocal left
        left -= 1
        if left > 0 and error:
            raise error
        return Child("bfr.runtime.nothing" if left > 0 else name)

    monkeypatch.setattr(module, "Child", make)
    async with working(tmp_path) as jobs:
        done = await jobs.until(await jobs.add(), "done")
        assert done is not None
        assert done.status.attempts == 1


async def test_a_job_that_has_ended_and_cannot_be_moved_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    rename, faults = Path.rename, 2

    def failing(path: Path, target: Path) -> Path:
        nonlocal faults
        if target.parent.name == "ended" and faults:
            faults -= 1
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    async with working(tmp_path) as jobs:
        job = await jobs.add()
        await eventually(lambda: not faults)
        found = await jobs.until(job, "done")
        assert found is not None
        assert (found.status.attempts, len(jobs.orders)) == (1, 1)


async def test_a_job_whose_server_ends_is_queued_again(tmp_path: Path) -> None:
    async with working(tmp_path) as jobs:
        jobs.go.clear()
        job = await jobs.add()
        await jobs.asked.wait()
    async with working(tmp_path) as jobs:
        found = jobs.store.get(job.id)
        assert found is not None
        assert found.status == Status("queued", attempts=0) or found.status.attempts == 1  # it is begun already
        done = await jobs.until(job, "done")
        assert done is not None
        assert done.status.attempts == 1


async def test_a_job_whose_process_is_killed_is_begun_anew_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[Child] = []

    class Noted(Child):
        def __init__(self, name: str) -> None:
            super().__init__(name)
            children.append(self)

    monkeypatch.setattr(module, "Child", Noted)

    async with working(tmp_path) as jobs:
        jobs.go.clear()
        job = await jobs.add()
        for _ in range(MOST_ATTEMPTS):
            await jobs.asked.wait()
            jobs.asked.clear()
            os.kill(children[-1].process.pid, signal.SIGKILL)
            jobs.go.set()
            jobs.go.clear()
        found = await jobs.until(job, "failed")
        assert found is not None
        assert f"{MOST_ATTEMPTS} times" in str(found.status.error)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"job_hours": 1e-6}, "limit"), ({"job_output": 10}, "bytes"), ({}, "full"), ({}, "did nothing for 0 s")],
)
async def test_a_job_past_a_limit_is_ended_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], word: str
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.05)

    async with working(tmp_path, **options) as jobs:
        if word == "full":
            monkeypatch.setattr(jobs.store, "free", lambda: -1)
        if "nothing" in word:
            monkeypatch.setattr(module, "HANGS", 0.0)
        jobs.go.clear()
        job = await jobs.add()
        found = await jobs.until(job, "failed")
        assert found is not None
        assert word in str(found.status.error)


async def test_a_disk_that_cannot_be_written_is_said_and_does_not_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.05)
    write = Job.write

    def full(self: Job, status: Status) -> None:
        raise OSError(28, "No space left on device")

    async with working(tmp_path) as jobs:
        monkeypatch.setattr(Job, "write", full)
        job = await jobs.add()
        await eventually(lambda: jobs.runner.trouble)
        assert "No space left" in jobs.runner.trouble
        monkeypatch.setattr(Job, "write", write)
        await jobs.until(job, "done")
        await eventually(lambda: not jobs.runner.trouble)
