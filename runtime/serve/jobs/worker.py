"""The worker of long jobs: one at a time, with the networks' replicas doing its faces when no request waits."""

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BfrError, RestorationFailed
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.run import run_job
from bfr.runtime.jobs.sources import Item
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.inputs import Given
from bfr.runtime.restore.loop import OnStep
from bfr.runtime.restore.plan import make_plan
from bfr.runtime.restore.restorer import DEFAULT_SEED
from bfr.runtime.serve.jobs.store import MOST_ATTEMPTS, Job, JobStore, Status
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import FaceOrder, Refusal
from bfr.runtime.serve.workers.faces import served_presets
from bfr.runtime.serve.workers.photos import RestoreFaces

POLL = 0.5  # seconds
PATIENCE = 24 * 3600.0  # seconds that a face of a job may wait: requests come first
_log = logging.getLogger("bfr.serve")


class Stopped(Exception):
    """The job was cancelled, or the server ends; in that case the job is begun anew with the next one."""


class JobServer:
    """Works through the jobs of a folder in a thread. Of several on one folder, one works and the others wait."""

    def __init__(self, options: ServeOptions, restore_faces: RestoreFaces) -> None:
        assert options.jobs is not None  # noqa: S101  (only made where there are jobs)
        self.options, self.store = options, JobStore(options.jobs)
        self._restore_faces = restore_faces
        self._bundle = Bundle.open(options.bundle or default_bundle())
        self._presets = served_presets(self._bundle, options)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="bfr-jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the step that is under way; its job stays queued."""
        self._stopping.set()
        self._thread.join(timeout=30)

    def check_health(self) -> None:
        """Raise where the thread is gone."""
        if not self._thread.is_alive() and not self._stopping.is_set():
            raise RuntimeError("the thread that works through jobs has ended")

    def _work(self) -> None:
        lock = _lock(self.store.folder, self._stopping)
        try:
            while not self._stopping.is_set():
                self.store.clean(self.options.keep_jobs * 3600)
                waiting = self.store.waiting()
                if waiting:
                    self._run(waiting[0])
                else:
                    self._stopping.wait(POLL)
        finally:
            os.close(lock)

    def _run(self, job: Job) -> None:
        status = replace(job.status, state="running", share=0.0, attempts=job.status.attempts + 1)
        try:
            if status.attempts > MOST_ATTEMPTS:
                raise RestorationFailed(f"the job ended its worker {MOST_ATTEMPTS} times: the file may be damaged")
            job.write(status)
            _log.info("job %s: begun, attempt %d", job.id, status.attempts)
            job.write(self._restored(job, status))
        except Stopped:
            if job.cancelled:
                self.store.clean(self.options.keep_jobs * 3600)
            else:  # the server ends, which is not the job's fault
                job.write(replace(status, state="queued", attempts=status.attempts - 1))
        except BfrError as error:
            job.write(replace(status, state="failed", error=_told(job, error), ended=time.time()))
        except Exception as error:  # a bug: it is reported, and the next job goes on
            _log.exception("job %s failed", job.id)
            failure = f"the server failed: {type(error).__name__}; its log has more"
            job.write(replace(status, state="failed", error=failure, ended=time.time()))

    def _restored(self, job: Job, status: Status) -> Status:
        request, told = job.request, time.monotonic()

        def progress(done: float, _name: str) -> None:
            nonlocal told
            if self._stopping.is_set() or job.cancelled:
                raise Stopped
            if time.monotonic() - told >= POLL:
                told = time.monotonic()
                job.write(replace(status, share=min(1.0, done)))

        remote = RemoteRestorer(self._bundle, self.options, request.preset, self._restore_faces)
        photo = request.photo.model_copy(update={"detector": self.options.detector})
        worker = remote if request.aligned else PhotoRestorer(remote, photo)
        options = JobOptions(out=job.out, seed=request.seed, format=request.format, max_pixels=self.options.max_pixels)
        report = run_job(worker, [Item(job.input, "result")], options, progress=progress)
        entry = report.entries[0]
        return replace(
            status,
            state="failed" if entry.status == "failed" else "done",
            share=1.0,
            error=entry.error and _told(job, entry.error),
            result=entry.output,
            faces=entry.faces,
            frames=entry.frames,
            ended=time.time(),
        )


@dataclass(frozen=True, slots=True)
class Replicas:
    """What reports say of the server's replicas, in the place of a device."""

    name: str = "remote"
    versions: Mapping[str, str] = field(default_factory=dict)


class RemoteRestorer:
    """A `FaceRestorer` whose networks are the replicas'."""

    device = Replicas()

    def __init__(self, bundle: Bundle, options: ServeOptions, preset: str, restore_faces: RestoreFaces) -> None:
        self.bundle, self.sampler = bundle, served_presets(bundle, options)[preset]
        self.precision, self.plan = bundle.precision(options.precision), make_plan(bundle, self.sampler)
        self.size, self.batch = bundle.manifest.image_size, options.batch_size * (options.replicas or 1)
        self.fixed: dict[str, NDArray[Any]] = {}
        self._preset, self._most, self._restore_faces = preset, options.batch_size, restore_faces

    def run(
        self,
        images: Sequence[NDArray[Any]],
        *,
        seed: int = DEFAULT_SEED,
        keys: Sequence[int | None] | None = None,
        on_step: OnStep | None = None,
        inputs: Mapping[str, Given] | None = None,
    ) -> list[Restored]:
        """As of `Restorer`; without `inputs`. on_step: its second argument is None."""
        del inputs
        return asyncio.run(self._run(images, seed, keys, on_step)) if images else []

    async def _run(
        self, images: Sequence[NDArray[Any]], seed: int, keys: Sequence[int | None] | None, on_step: OnStep | None
    ) -> list[Restored]:
        steps, shares = self.plan.steps, [0.0] * len(images)
        named = keys or [None] * len(images)

        async def part(begin: int) -> list[Restored]:
            end = min(len(images), begin + self._most)
            order = FaceOrder(self._preset, seed, time.time() + PATIENCE, keys=tuple(named[begin:end]), urgent=False)
            async with aclosing(self._restore_faces(images[begin:end], order)) as answers:
                async for answer in answers:
                    if isinstance(answer, Refusal):
                        raise RestorationFailed(answer.detail)
                    if not isinstance(answer, float):
                        return [one.restored for one in answer]
                    shares[begin:end] = [answer] * (end - begin)
                    if on_step:
                        on_step(min(steps - 1, int(steps * sum(shares) / len(shares))), None)
            raise RestorationFailed("the networks gave no answer")

        parts = await asyncio.gather(*(part(begin) for begin in range(0, len(images), self._most)))
        if on_step:
            on_step(steps, None)
        return [restored for results in parts for restored in results]


def _told(job: Job, error: object) -> str:
    """An error without the server's own paths."""
    return str(error).replace(f"{job.folder}/", "")


def _lock(folder: Path, stopping: threading.Event) -> int:
    """Wait until no other worker has this folder. The lock ends with the process."""
    descriptor = os.open(folder / ".worker", os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if stopping.wait(POLL):
                return descriptor
        else:
            return descriptor
