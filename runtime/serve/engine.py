"""What a server has below HTTP: the workers, the threads around them, and the jobs."""

import asyncio

from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.http.metrics import Metrics, PoolCollector
from bfr.runtime.serve.jobs.runner import JobRunner
from bfr.runtime.serve.jobs.store import JobStore
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.workers.photos import Photos
from bfr.runtime.serve.workers.pool import Pool


class Engine:
    """The parts of a server that restore. jobs: the folder of jobs; None if the server takes none."""

    def __init__(self, options: ServeOptions, pool: Pool) -> None:
        """Make the folder of jobs. Raises InvalidOption if it cannot be written."""
        self.pool, self.options = pool, pool.options
        self.jobs = JobStore(options.jobs) if options.jobs else None
        self.runner: JobRunner | None = None
        self._working: asyncio.Task[None] | None = None

    async def start(self, front: Front) -> None:
        """Start the workers, and let requests in.

        Args:
            front: Gets the engine, and counts batches and jobs.

        Raises:
            RestorationFailed: The workers do not start.
        """
        await self.pool.start()
        sizes = {name: system.bundle.manifest.image_size for name, system in front.systems.items()}
        self.photos = Photos(self.options, self.pool.restore, sizes)
        self.pool.on_batch = front.metrics.batch
        front.metrics.registry.register(PoolCollector(self.pool))
        if self.jobs:
            self.runner = JobRunner(
                self.options,
                self.jobs,
                self.pool.restore,
                front.systems,
                batch=self.options.batch_size * self.pool.calls,
                on_end=lambda state: front.metrics.jobs_ended.labels(state).inc(),
            )
            self._working = asyncio.create_task(self.runner.run())
        front.open(self.photos.restore, self)

    async def failed(self) -> None:
        """Wait for what ends the server, and raise it."""
        waiting = {one for one in (self.pool.failure, self._working) if one}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        self.check()

    def check(self) -> None:
        """Raise what ends the server, if it has happened."""
        for one in (self.pool.failure, self._working):
            if one and one.done():
                one.result()

    async def stop(self) -> None:
        """End jobs and workers. A job that runs stays queued."""
        if self._working:
            self._working.cancel()
            await asyncio.wait({self._working})
        await self.pool.stop()

    @property
    def faces(self) -> int:
        """How many faces of requests are in flight."""
        return self.photos.faces

    @property
    def backend(self) -> str | None:
        """What the networks run on."""
        return self.pool.backend

    def wake(self) -> None:
        """Have the runner look for a job that was added."""
        if self.runner:
            self.runner.wake()

    async def cancel(self, job: str) -> None:
        """End the work on a job, by its id."""
        if self.runner:
            await self.runner.cancel(job)

    def lacking(self) -> str | None:
        """Say which part does not work now; None if all do."""
        if not self.pool.running:
            return "no worker runs the networks just now: ask again"
        if self.runner and self.jobs:
            if self._working is None or self._working.done():
                return "the jobs are not worked on: start the server anew"
            if self.runner.trouble:
                return self.runner.trouble
            if self.jobs.free() < 0:
                return "the disk of the jobs is full, or gone: delete jobs, or free some space"
        return None

    def count(self, metrics: Metrics) -> None:
        """Set the gauges that are read when metrics are rendered."""
        metrics.faces_in_flight.set(self.faces)
        if self.jobs:
            metrics.jobs.set(self.jobs.count())
