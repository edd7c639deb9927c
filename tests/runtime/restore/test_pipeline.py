"""Preparing, networks and finishing side by side: order, batches, limits, ends. All waiting is for events, not time."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import closing
from itertools import count, repeat
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bfr.runtime.restore import pipeline
from bfr.runtime.restore.batch import Finished, Restored
from bfr.runtime.restore.pipeline import Pipeline, Prepared

PATIENCE = 60  # seconds until a hanging test fails


class Networks:
    """Stands for a Restorer: gives every crop back as it came, after STEPS steps.

    log: what was asked for, in order: ("launch", k) and ("finish", k) of batch k.
    """

    STEPS = 3

    def __init__(
        self, batch: int, during: Callable[[int], None] = lambda _call: None, *, asynchronous: bool = False
    ) -> None:
        """during: called while a batch is at work, with its number, from 0. asynchronous: as a GPU."""
        self.batch, self.during, self.asynchronous = batch, during, asynchronous
        self.sizes: list[int] = []
        self.keys: list[list[int | None]] = []
        self.log: list[tuple[str, int]] = []

    def launch(self, images: Sequence[Any], *, seed: int, keys: Sequence[int | None], on_step: Any) -> Any:
        assert seed == 7
        number = len(self.sizes)
        self.sizes.append(len(images))
        self.keys.append(list(keys))
        self.log.append(("launch", number))

        def finish() -> list[Restored]:
            self.log.append(("finish", number))
            for done in [self.STEPS] if self.asynchronous else range(self.STEPS + 1):
                on_step(done, None)
            self.during(number)
            return [Restored(image, {}, "fp32") for image in images]

        return SimpleNamespace(done=False, finish=finish) if self.asynchronous else Finished(finish())


def crops(number: int, faces: int) -> list[Any]:
    """Face `i` of input `number` is the pixel (number, i, 0)."""
    return [np.array([[[number, i, 0]]], np.uint8) for i in range(faces)]


def piped(networks: Networks, prepare: Any = None, finish: Any = None, **options: Any) -> Pipeline[Any, Any, Any]:
    """Without `prepare` an input is (number, faces); without `finish` a result is the number and its faces' pixels."""
    return Pipeline(
        networks,  # type: ignore[arg-type]
        prepare or (lambda given: Prepared(given[0], crops(*given))),
        finish or (lambda number, results: (number, [tuple(result.pixels[0, 0]) for result in results])),
        seed=7,
        **options,
    )


def expected(inputs: Sequence[tuple[int, int]]) -> list[Any]:
    return [(number, [(number, i, 0) for i in range(faces)]) for number, faces in inputs]


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "what this waits for never happened"


def guarded(function: Callable[[], Any]) -> Any:
    """The result of a call, or its exception; a call that hangs fails."""
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert outcome, "it hangs"
    result, error = outcome[0]
    if error:
        raise error
    return result


def ran(line: Pipeline[Any, Any, Any], inputs: Any) -> list[Any]:
    """What a run gives; one that hangs fails."""
    found: list[Any] = guarded(lambda: list(line.run(inputs)))
    return found


def pool_threads() -> list[str]:
    """The pipeline's own; other tests of the process may have left noise being made."""
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("bfr-") and not name.startswith("bfr-noise")]


def test_results_come_in_the_order_of_the_inputs_whatever_is_ready_first() -> None:
    """The first input is the last to be read, and the last to be written, of the three that are under way."""
    prepared, finished = threading.Event(), threading.Event()
    order = []

    def prepare(given: tuple[int, int]) -> Prepared[int]:
        if given[0] == 0:
            wait(prepared)
        if given[0] == 2:
            prepared.set()
        return Prepared(given[0], crops(*given))

    def finish(number: int, results: list[Restored]) -> Any:
        if number == 0:
            wait(finished)
        order.append(number)
        if number == 2:
            finished.set()
        return number, [tuple(result.pixels[0, 0]) for result in results if result.pixels is not None]

    inputs = [(0, 2), (1, 1), (2, 3), (3, 0), (4, 1), (5, 2)]
    line = piped(Networks(2), prepare, finish, readers=3, writers=3)
    assert ran(line, inputs) == expected(inputs)
    assert order.index(2) < order.index(0)
    assert not pool_threads()


@pytest.mark.parametrize(("faces", "sizes"), [((7, *[1] * 6), [4, 4, 4, 1]), ((9,), [4, 4, 1]), ((), []), ((0, 0), [])])
def test_batches_are_filled_across_inputs_and_a_small_rest_is_restored(faces: Sequence[int], sizes: list[int]) -> None:
    networks, inputs = Networks(4), list(enumerate(faces))
    assert ran(piped(networks), inputs) == expected(inputs)
    assert networks.sizes == sizes
    assert not pool_threads()


def test_an_input_without_faces_is_finished_before_the_next_is_read() -> None:
    """It waits for no batch."""
    finished = threading.Event()

    def prepare(given: tuple[int, int]) -> Prepared[int]:
        if given[0] == 1:
            wait(finished)
        return Prepared(given[0], crops(*given))

    def finish(number: int, results: list[Restored]) -> int:
        if number == 0:
            finished.set()
        return number

    assert ran(piped(Networks(4), prepare, finish), [(0, 0), (1, 1)]) == [0, 1]


def test_an_input_without_faces_does_not_overtake() -> None:
    order = []

    def finish(number: int, results: list[Restored]) -> int:
        order.append(number)
        return number

    inputs = [(0, 1), (1, 0), (2, 1), (3, 0), (4, 0), (5, 3), (6, 0)]
    assert ran(piped(Networks(2), finish=finish), inputs) == list(range(7))
    assert order == list(range(7))


class Flight:
    """Counts the inputs between the begin of preparing and the end of finishing."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now: dict[int, int] = {}
        self.seen: list[dict[int, int]] = []
        self.ready: dict[int, threading.Event] = {}

    def prepare(self, given: tuple[int, int]) -> Prepared[tuple[int, int]]:
        with self.lock:
            self.now[given[0]] = given[1]
            self.seen.append(dict(self.now))
        return Prepared(given, crops(given[0], 1))

    def finish(self, given: tuple[int, int], results: list[Restored]) -> int:
        with self.lock:
            del self.now[given[0]]
        return given[0]


def test_no_more_pixels_than_the_budget_are_in_flight_but_for_a_single_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a batch of four that the budget never lets fill, too: there it must not wait for ever."""
    monkeypatch.setattr(pipeline, "BUDGET", 100)
    flight, networks = Flight(), Networks(4)
    weights = [60, 40, 50, 1000, 50, 50, 30, 30, 30, 30, 60, 60]
    line = piped(networks, flight.prepare, flight.finish, pixels_of=lambda given: given[1], readers=2, writers=2)
    assert ran(line, list(enumerate(weights))) == list(range(12))
    assert all(len(seen) == 1 or sum(seen.values()) <= 100 for seen in flight.seen)
    assert any(len(seen) == 2 for seen in flight.seen)  # and yet some are there together
    assert sum(networks.sizes) == 12
    assert max(networks.sizes) <= 3


def test_reading_goes_on_to_a_limit_and_not_beyond() -> None:
    flight = Flight()
    full = threading.Event()

    def prepare(given: tuple[int, int]) -> Prepared[tuple[int, int]]:
        work = flight.prepare(given)
        if given[0] == 2 * 2 + 1 + 1:  # the seventh
            full.set()
        return work

    networks = Networks(2, during=lambda call: wait(full) if call == 0 else None)
    line = piped(networks, prepare, flight.finish)
    assert ran(line, [(number, 0) for number in range(30)]) == list(range(30))
    assert max(len(seen) for seen in flight.seen) == 2 * 2 + 1 + 1 + 1
    assert sum(networks.sizes) == 30


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("inputs", [count, lambda: repeat(None)])
def test_none_ends_an_endless_input(inputs: Callable[[], Iterator[Any]], readers: int) -> None:
    """Where the input says nothing, as for the frames of a video, the prepared things are what is counted."""
    made, lock = count(), threading.Lock()

    def prepare(given: int | None) -> Prepared[int] | None:
        with lock:
            number = next(made) if given is None else given
        return None if number >= 5 else Prepared(number, crops(number, number % 3))

    results = ran(piped(Networks(2), prepare, readers=readers), inputs())
    if readers == 1:
        assert results == expected([(number, number % 3) for number in range(5)])
    else:
        numbers = [number for number, _ in results]
        assert len(set(numbers)) == len(numbers) <= 5
        assert inputs is not count or numbers == sorted(numbers)  # else the readers number them as they come to it
    assert not pool_threads()


@pytest.mark.parametrize("place", ["input", "pixels_of", "prepare", "networks", "finish"])
def test_an_exception_anywhere_ends_the_run_and_every_thread(place: str) -> None:
    begun, ended = [], []

    def fail_in(here: str) -> None:
        if here == place:
            raise ZeroDivisionError(here)

    def inputs() -> Iterator[tuple[int, int]]:
        yield from ((number, 1) for number in range(6))
        fail_in("input")
        yield from ((number, 1) for number in range(6, 50))

    def pixels_of(given: tuple[int, int]) -> int:
        if given[0] == 6:
            fail_in("pixels_of")
        return 0

    def prepare(given: tuple[int, int]) -> Prepared[int]:
        if given[0] == 6:
            fail_in("prepare")
        return Prepared(given[0], crops(*given))

    def finish(number: int, results: list[Restored]) -> int:
        begun.append(number)
        if number == 6:
            fail_in("finish")
        ended.append(number)
        return number

    networks = Networks(2, during=lambda call: fail_in("networks") if call == 3 else None)
    results = []

    def run() -> None:
        for number in piped(networks, prepare, finish, pixels_of=pixels_of, readers=2, writers=2).run(inputs()):
            results.append(number)  # noqa: PERF402

    with pytest.raises(ZeroDivisionError, match=place):
        guarded(run)
    assert not pool_threads()
    assert results == list(range(len(results)))
    assert set(begun) - set(ended) <= {6}  # what was begun was brought to its end
    assert set(results) <= set(ended)
    assert len(ended) < 50
    if place == "finish":
        assert results == list(range(6))


def test_a_caller_that_stops_early_leaves_no_thread() -> None:
    begun, ended = [], []

    def finish(number: int, results: list[Restored]) -> int:
        begun.append(number)
        ended.append(number)
        return number

    def run() -> None:
        with closing(piped(Networks(2), finish=finish, readers=2, writers=2).run((n, 1) for n in count())) as results:
            assert next(results) == 0

    guarded(run)
    assert not pool_threads()
    assert begun == ended


def test_inputs_are_read_while_the_networks_run() -> None:
    """Input 2 is read only when the first call of the networks has begun, which ends only when it was read."""
    running, read = threading.Event(), threading.Event()

    def prepare(given: tuple[int, int]) -> Prepared[int]:
        if given[0] == 2:
            wait(running)
            read.set()
        return Prepared(given[0], crops(*given))

    def during(call: int) -> None:
        running.set()
        wait(read)

    inputs = [(number, 1) for number in range(4)]
    assert ran(piped(Networks(2, during), prepare), inputs) == expected(inputs)


def test_results_are_written_while_the_networks_run() -> None:
    """Input 0 is written only when the second call of the networks has begun, which ends only when it was written."""
    running, written = threading.Event(), threading.Event()

    def finish(number: int, results: list[Restored]) -> int:
        if number == 0:
            wait(running)
            written.set()
        return number

    def during(call: int) -> None:
        if call == 1:
            running.set()
            wait(written)

    assert ran(piped(Networks(1, during), finish=finish), [(n, 1) for n in range(3)]) == [0, 1, 2]


def patient(line: Pipeline[Any, Any, Any]) -> Pipeline[Any, Any, Any]:
    """A pipeline whose inputs are read before the networks ask for them, however busy the machine is."""
    feed = line._feed

    def and_wait() -> None:
        feed()
        futures.wait([task.prepared for task in line._tasks if task.prepared])

    line._feed = and_wait  # type: ignore[method-assign]
    return line


def test_a_gpu_gets_the_next_batch_before_the_previous_one_is_waited_for() -> None:
    networks = Networks(3, asynchronous=True)
    line = patient(piped(networks))
    inputs = [(number, 1 + number % 2) for number in range(6)]
    assert ran(line, inputs) == expected(inputs)
    assert networks.log == [
        ("launch", 0), ("launch", 1), ("finish", 0), ("launch", 2), ("finish", 1), ("finish", 2)
    ]  # fmt: skip
    assert networks.sizes == [3, 3, 3]


def test_a_result_is_not_kept_back_where_nothing_can_be_launched() -> None:
    """Input 1 is read only when the result of input 0 was written."""
    written = threading.Event()

    def prepare(given: tuple[int, int]) -> Prepared[int]:
        if given[0] == 1:
            wait(written)
        return Prepared(given[0], crops(*given))

    def finish(number: int, results: list[Restored]) -> int:
        written.set()
        return number

    networks = Networks(1, asynchronous=True)
    assert ran(piped(networks, prepare, finish), [(0, 1), (1, 1)]) == [0, 1]
    assert networks.log == [("launch", 0), ("finish", 0), ("launch", 1), ("finish", 1)]


def test_slow_writing_breaks_no_batch_up() -> None:
    """What the device works on does not count as read ahead: the next batch fills while the previous one is written."""
    networks, released = Networks(2, asynchronous=True), threading.Event()

    def finish(number: int, results: list[Restored]) -> int:
        wait(released)
        return number

    def during(call: int) -> None:
        if call == 2:
            released.set()

    networks.during = during
    line = patient(piped(networks, finish=finish))
    assert ran(line, [(number, 1) for number in range(8)]) == list(range(8))
    assert networks.sizes == [2, 2, 2, 2]


def test_two_batches_at_most_are_under_way_and_no_input_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BUDGET", 100)
    flight, networks = Flight(), Networks(2, asynchronous=True)
    line = piped(networks, flight.prepare, flight.finish, pixels_of=lambda given: given[1], readers=2)
    assert ran(line, [(number, 30) for number in range(12)]) == list(range(12))
    assert all(sum(seen.values()) <= 100 for seen in flight.seen)
    under_way = 0
    for what, _ in networks.log:
        under_way += 1 if what == "launch" else -1
        assert 0 <= under_way <= 2
    assert sum(networks.sizes) == 12


def test_whoever_ends_the_run_by_a_step_ends_it_before_the_next_launch() -> None:
    class Cancelled(Exception):
        pass

    def stop(done: int, numbers: list[int]) -> None:
        if numbers == [1]:
            raise Cancelled

    networks = Networks(1, asynchronous=True)
    with pytest.raises(Cancelled):
        ran(piped(networks, on_step=stop), [(n, 1) for n in range(9)])
    assert networks.log[-1] == ("finish", 1)
    assert len(networks.sizes) <= 3
    assert not pool_threads()


def test_keys_reach_the_networks_beside_their_crops() -> None:
    def prepare(given: tuple[int, list[int] | None]) -> Prepared[int]:
        number, keys = given
        return Prepared(number, crops(number, 2), keys)

    networks = Networks(3)
    inputs = [(0, [10, 11]), (1, None), (2, [12, 13])]
    assert ran(piped(networks, prepare), inputs) == expected([(0, 2), (1, 2), (2, 2)])
    assert networks.keys == [[10, 11, None], [None, 12, 13]]


@pytest.mark.parametrize(("asynchronous", "steps"), [(False, range(4)), (True, [3])])
def test_steps_are_told_with_the_inputs_of_the_batch(asynchronous: bool, steps: Sequence[int]) -> None:
    """A GPU tells of a batch when it is done."""
    told: list[tuple[int, list[int]]] = []
    line = piped(Networks(2, asynchronous=asynchronous), on_step=lambda *step: told.append(step))
    ran(line, [(0, 1), (1, 2)])
    assert told == [(done, numbers) for numbers in ([0, 1], [1]) for done in steps]


def test_what_is_finished_is_let_go_even_where_an_earlier_input_is_not() -> None:
    """One writer holds the first input until the other has written all the rest."""

    class Payload:
        def __init__(self, number: int) -> None:
            self.number, self.pixels = number, np.zeros(10)

    inputs = 60
    alive: weakref.WeakSet[Payload] = weakref.WeakSet()
    last = threading.Event()
    most: list[int] = []
    lock = threading.Lock()

    def prepare(number: int) -> Prepared[Payload]:
        payload = Payload(number)
        with lock:
            alive.add(payload)
            most.append(len(alive))
        return Prepared(payload, crops(number, 1))

    def finish(payload: Payload, results: list[Restored]) -> int:
        if payload.number == 0:
            wait(last)
        if payload.number == inputs - 1:
            last.set()
        return payload.number

    line = piped(Networks(1), prepare, finish, writers=2)
    assert ran(line, range(inputs)) == list(range(inputs))
    assert max(most) <= 2 * 1 + 1 + 2 + 1 + 2  # the pipeline's limit, and one that each writer is about to drop
