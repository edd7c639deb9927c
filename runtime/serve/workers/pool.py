"""The workers of a server, one a device, and the queue of faces before them."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NoReturn

from numpy.typing import NDArray

from bfr.runtime.backends.cuda.bindings import device_count
from bfr.runtime.errors import BfrError, RestorationFailed
from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.options import CPU_BATCH, ServeOptions
from bfr.runtime.serve.orders import FaceOrder, Finished, Refusal
from bfr.runtime.serve.workers.batching import Batcher, Failed, Lost
from bfr.runtime.serve.workers.worker import END, Worker, WorkerLost, ended
from bfr.runtime.timeouts import timeout

RestoreFaces = Callable[[Sequence[NDArray[Any]], FaceOrder], AsyncGenerator[float | list[Finished] | Refusal, None]]
"""As `Pool.restore`."""

TICK = 0.5  # seconds between two reports of progress
PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a worker that does not start is tried again; they double
HANGS = 120.0  # seconds, at least, after which a worker that says nothing is replaced
SLOWER = 10  # times as long as at first a worker that is started anew may take until it is warm; HANGS at least
TRIES = 4  # starts in a row that may fail before a server without any other worker ends
_log = logging.getLogger("bfr.serve")


class Pool:
    """Assigns faces to the workers. If a worker ends, the pool starts a new one and retries its faces once.

    on_batch: called with the results of a batch, the seconds that each face waited, and whether requests did.
    patience: seconds that a restart may take.
    """

    def __init__(self, options: ServeOptions) -> None:
        gpus = 0 if options.backend == "onnxruntime-cpu" else device_count()
        if not gpus and options.batch is None:
            options = options.model_copy(update={"batch": CPU_BATCH})
        self.options = options
        count = options.workers or gpus or 1
        self.workers = [Worker(options, number % max(1, gpus), number) for number in range(count)]
        self.batcher = Batcher(size=options.batch_size, linger=options.linger)
        self.restarts, self.patience = 0, HANGS
        self.on_batch: Callable[[Sequence[Restored], Sequence[float], bool], None] | None = None
        self.failure: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def running(self) -> int:
        """How many workers are warm."""
        return sum(worker.facts is not None for worker in self.workers)

    @property
    def backend(self) -> str | None:
        """The name of the backend that the workers run on, once one is warm."""
        return next((worker.facts["backend"] for worker in self.workers if worker.facts), None)

    @property
    def calls(self) -> int:
        """How many batches the warm workers have at once."""
        return sum(worker.facts["calls"] for worker in self.workers if worker.facts)

    def spawn(self) -> None:
        """Start the processes; they begin to import while the caller still does."""
        for worker in self.workers:
            worker.spawn()

    async def start(self) -> None:
        """Start the workers, and return when all are warm.

        Raises RestorationFailed if one does not start; all are ended.
        """
        self.failure, begin = asyncio.get_running_loop().create_future(), time.monotonic()
        starting = [asyncio.create_task(worker.start()) for worker in self.workers]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            await self.stop()
            raise
        self.patience = max(HANGS, SLOWER * (time.monotonic() - begin))
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self.workers]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End the workers. Faces that wait fail with Lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.batcher.fail_all(Lost("the server ends"))
        await asyncio.gather(*(worker.end() for worker in self.workers))

    async def restore(
        self, faces: Sequence[NDArray[Any]], order: FaceOrder
    ) -> AsyncGenerator[float | list[Finished] | Refusal, None]:
        """Restore faces, (S, S, 3) uint8 or uint16 RGB each. Closed before its end, the generator drops what is queued.

        Yields the share of the denoising that is done, 0 to 1, where it has changed; at last the results in the order
        of the faces, or why there are none.
        """
        ticket = self.batcher.submit(faces, order)
        try:
            last = 0.0
            while not await ticket.wait(TICK):
                if ticket.share != last:  # a request that only waits costs nothing
                    yield (last := ticket.share)
            yield ticket.results()
        except (Lost, Failed) as error:
            yield Refusal(error.kind, str(error))
        finally:
            ticket.abandon()

    async def _serve(self, worker: Worker) -> None:
        """Keep a worker busy; where it ends, start a new one and queue its faces again."""
        while True:
            if worker.facts is None:
                await self._restart(worker)
            assert worker.facts is not None  # noqa: S101
            calls = worker.facts["calls"]
            feeding = [asyncio.create_task(self._feed(worker)) for _ in range(calls)]
            watching = [asyncio.create_task(worker.listen()), asyncio.create_task(self._watch(worker))]
            try:
                await asyncio.wait({*watching, *feeding}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (*watching, *feeding):
                    task.cancel()
                ends = await asyncio.gather(*watching, *feeding, return_exceptions=True)
            for error in ends:
                if isinstance(error, Exception) and not isinstance(error, WorkerLost):
                    raise error
            lost = next(error for error in ends if isinstance(error, WorkerLost))
            status = await worker.end(0 if lost.args else END)  # nothing feeds it any more
            _log.error("worker %d was lost: %s", worker.number, lost if lost.args else ended(status))
            self.batcher.put_back([call.faces for call in worker.calls.values()], launched=calls - 1)
            worker.calls.clear()

    async def _watch(self, worker: Worker) -> NoReturn:
        """Raise WorkerLost if a worker hangs: it says nothing for longer than a request and a batch may take."""
        assert worker.facts is not None  # noqa: S101
        most = max(HANGS, self.options.timeout) + self.options.batch_size * worker.facts["warm_up_seconds"]
        while worker.silent < most:
            await asyncio.sleep(TICK)
        raise WorkerLost(f"it did not answer for {most:.0f} s")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """End the server where the task of a worker has failed, which is a bug."""
        if not task.cancelled() and (error := task.exception()) and self.failure and not self.failure.done():
            self.failure.set_exception(error)

    async def _feed(self, worker: Worker) -> None:
        """Give a worker one call after the other. While it computes another call, it gets full batches alone."""
        while True:
            faces = await self.batcher.take(full=lambda: bool(worker.calls))
            try:
                results = await worker.run(faces)
            except Failed as error:
                if len(faces) > 1:  # the fault of one of them is not the others'
                    self.batcher.put_back([faces])
                else:
                    faces[0].fail(error)
            else:
                waited = [face.begun - face.arrived for face in faces]
                for face, result, seconds in zip(faces, results, waited, strict=False):  # none where it was abandoned
                    if not face.future.done():
                        face.future.set_result(Finished(result, seconds))
                if self.on_batch and results:
                    self.on_batch(results, waited, faces[0].ticket.order.urgent)
            self.batcher.wake()

    async def _restart(self, worker: Worker) -> None:
        """Restart a worker until it runs. If no worker runs and it fails TRIES times, the server ends."""
        pause = PAUSE
        for tried in range(1, 1_000_000):
            try:
                async with timeout(self.patience):
                    await worker.start()
            except (BfrError, asyncio.TimeoutError) as error:
                reason = str(error) or f"it was not warm after {self.patience:.0f} s"
                _log.error("worker %d: %s", worker.number, reason)
                if tried >= TRIES and not self.running and self.failure and not self.failure.done():
                    self.failure.set_exception(RestorationFailed(f"no worker can be started any more: {reason}"))
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)
            else:
                self.restarts += 1
                _log.info("worker %d was restarted", worker.number)
                return
