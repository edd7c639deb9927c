"""Reading, restoring and writing at once: while the networks run, the next inputs are prepared and results written.

The networks run in the caller's thread, in batches across inputs; the rest runs in other threads. On a GPU, the next
batch is launched before the pipeline waits for the previous one.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from numpy.typing import NDArray
from typing_extensions import Unpack

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Precision, Preset
from bfr.runtime.restore.batch import Pending, Restored
from bfr.runtime.restore.inputs import Given
from bfr.runtime.restore.loop import OnStep
from bfr.runtime.restore.plan import Plan

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")

BUDGET = 100_000_000  # pixels in flight; one input may exceed it alone


class DeviceFacts(Protocol):
    """Facts about the device for reports."""

    @property
    def name(self) -> str:
        """Name of the backend."""
        ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of its libraries, by name."""
        ...


class LaunchOptions(TypedDict, total=False):
    """What `launch` and `run` take beside the images, see `Restorer.run`."""

    seed: int
    keys: Sequence[int | None] | None
    on_step: OnStep | None
    inputs: Mapping[str, Given] | None


class FaceRunner(Protocol):
    """Runs aligned faces in batches."""

    @property
    def batch(self) -> int:
        """Faces that run at once, at most."""
        ...

    def launch(self, images: Sequence[NDArray[Any]], **options: Unpack[LaunchOptions]) -> Pending:
        """See `Restorer.launch`."""
        ...


class FaceRestorer(FaceRunner, Protocol):
    """Restores aligned faces: a `Restorer`, or one whose networks run in a server's processes."""

    def run(self, images: Sequence[NDArray[Any]], **options: Unpack[LaunchOptions]) -> list[Restored]:
        """See `Restorer.run`."""
        ...

    bundle: Bundle
    sampler: Preset
    precision: Precision
    plan: Plan
    size: int
    fixed: dict[str, NDArray[Any]]

    @property
    def device(self) -> DeviceFacts:
        """The device that runs the networks."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Prepared(Generic[P]):
    """An input made ready.

    Attributes:
        payload: Whatever `finish` needs.
        crops: What the networks restore, (H, W, 3) RGB each; may be empty.
        keys: Keys of their noise; None for keys from their own pixels.
        inputs: Pictures for the system's other inputs, by name.
    """

    payload: P
    crops: Sequence[NDArray[Any]] = ()
    keys: Sequence[int] | None = None
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _InFlight(Generic[P, R]):
    """One input: first `prepared` is set, then `work`, then `finished`; each is freed after use."""

    pixels: int
    prepared: "Future[Prepared[P] | None] | None"
    work: Prepared[P] | None = None
    results: list[Restored] = field(default_factory=list)
    finished: "Future[R] | None" = None

    @property
    def restored(self) -> bool:
        return self.work is not None and len(self.results) == len(self.work.crops)


class Pipeline(Generic[T, P, R]):
    """Runs inputs through prepare, the networks, and finish; at most BUDGET pixels are in flight."""

    def __init__(
        self,
        restorer: FaceRunner,
        prepare: Callable[[T], Prepared[P] | None],
        finish: Callable[[P, list[Restored]], R],
        *,
        seed: int,
        pixels_of: Callable[[T], int] = lambda _input: 0,
        readers: int = 1,
        writers: int = 1,
        ahead: int = 0,
        on_step: Callable[[int, list[P]], None] | None = None,
    ) -> None:
        """Prepare a run. `prepare` and `finish` are started in the order of the inputs.

        Args:
            restorer: Runs the networks.
            prepare: Called in a reader's thread; None from it ends the run.
            finish: Called in a writer's thread.
            seed: Seed of the noise.
            pixels_of: Returns the pixels that an input will hold in memory.
            readers: Number of threads that prepare.
            writers: Number of threads that finish.
            ahead: Further inputs to prepare while a batch runs, where some need no networks.
            on_step: Called after each denoising step of a batch with its number, from 0, and the inputs that are in
                it; of a batch on a GPU once, when it is done, with the last number.
        """
        self.restorer, self.seed = restorer, seed
        self._prepare, self._finish, self._pixels_of, self._on_step = prepare, finish, pixels_of, on_step
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="bfr-read")
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix="bfr-write")
        self._most = 2 * restorer.batch + readers + writers + 1 + ahead
        self._inputs: Iterator[T] = iter(())
        self._next: tuple[T, int] | None = None  # an input and its pixels
        self._ended = False
        self._tasks: deque[_InFlight[P, R]] = deque()
        self._running: tuple[list[_InFlight[P, R]], Pending] | None = None  # the inputs of a batch, one for each face

    def run(self, inputs: Iterable[T]) -> Generator[R, None, None]:
        """Yield what `finish` returned, in the order of the inputs. An exception in any thread ends the run.

        A caller that may stop early must close the generator (`contextlib.closing`), which ends the threads.
        """
        self._inputs = iter(inputs)
        self._advance()
        faces: deque[tuple[_InFlight[P, R], int]] = deque()
        try:
            while True:
                if self._collect(faces):
                    self._launch([faces.popleft() for _ in range(min(self.restorer.batch, len(faces)))])
                self._start_finishing()
                while self._tasks and (head := self._tasks[0].finished) and (head.done() or not self._busy(faces)):
                    self._tasks.popleft()
                    yield head.result()
                if not self._tasks and self._ended:
                    return
        finally:
            for pool in (self._readers, self._writers):
                pool.shutdown(cancel_futures=True)

    def _busy(self, faces: Sequence[object]) -> bool:
        """Return whether any input is not restored yet."""
        return bool(faces or self._running) or not self._ended or any(task.prepared for task in self._tasks)

    def _advance(self) -> None:
        try:
            upcoming = next(self._inputs)
        except StopIteration:
            self._next, self._ended = None, True
        else:
            self._next = upcoming, self._pixels_of(upcoming)

    def _feed(self) -> None:
        """Start preparing as many inputs as may be in flight."""
        while not self._ended and self._next is not None:
            flying = [task for task in self._tasks if task.finished is None or not task.finished.done()]
            upcoming, pixels = self._next
            beside = {id(task) for task in self._running[0]} if self._running else ()  # else no next batch fills
            if flying and (
                len(flying) - len(beside) >= self._most or sum(task.pixels for task in flying) + pixels > BUDGET
            ):
                return
            self._tasks.append(_InFlight(pixels, self._readers.submit(self._prepare, upcoming)))
            self._advance()

    def _collect(self, faces: "deque[tuple[_InFlight[P, R], int]]") -> bool:
        """Wait for a batch of faces, or for all that can come; return False if other work comes first."""
        while len(faces) < self.restorer.batch:
            self._start_finishing()
            self._feed()
            if self._tasks and (head := self._tasks[0].finished) and head.done():
                return False
            task = next((task for task in self._tasks if task.prepared), None)
            if task is not None and task.prepared:
                if self._running and not task.prepared.done():
                    self._deliver()  # nothing can be launched yet
                    continue
                task.work, task.prepared = task.prepared.result(), None
                if task.work is None:
                    self._end(task)
                else:
                    faces.extend((task, i) for i in range(len(task.work.crops)))
                continue
            if self._running and not faces:
                self._deliver()
                continue
            writing = [task.finished for task in self._tasks if task.finished and not task.finished.done()]
            if faces or self._ended or not writing:
                return bool(faces)
            wait(writing, return_when=FIRST_COMPLETED)  # the budget is used up: read on after a write
        return True

    def _end(self, last: "_InFlight[P, R]") -> None:
        self._ended = True
        while (task := self._tasks.pop()) is not last:
            if task.prepared:
                task.prepared.cancel()

    def _launch(self, faces: "list[tuple[_InFlight[P, R], int]]") -> None:
        """Launch a batch, then deliver the previous one, and this one if it is done already."""
        works = [(task.work, i) for task, i in faces if task.work is not None]
        names = {name for work, _ in works for name in work.inputs}
        launched = self.restorer.launch(
            [work.crops[i] for work, i in works],
            seed=self.seed,
            keys=[None if work.keys is None else work.keys[i] for work, i in works],
            on_step=self._stepped([work.payload for work, _ in works]),
            **({"inputs": {name: [work.inputs.get(name) for work, _ in works] for name in names}} if names else {}),
        )
        self._deliver()
        self._running = [task for task, _ in faces], launched
        if launched.done:
            self._deliver()

    def _deliver(self) -> None:
        """Wait for the batch in flight and assign its results to their inputs."""
        if self._running:
            (tasks, launched), self._running = self._running, None
            for task, result in zip(tasks, launched.finish(), strict=True):
                task.results.append(result)

    def _stepped(self, payloads: list[P]) -> OnStep:
        def on_step(done: int, _state: object) -> None:
            self._feed()
            if self._on_step:
                self._on_step(done, payloads)

        return on_step

    def _start_finishing(self) -> None:
        """Submit restored inputs to the writers, in order."""
        for task in self._tasks:
            if task.finished is not None:
                continue
            if not task.restored or task.work is None:
                return
            task.finished = self._writers.submit(self._finish, task.work.payload, task.results)
            task.work, task.results = None, []  # their memory ends with the writer's call
