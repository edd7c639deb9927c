"""Fault isolation: an error fails its own file, not the others."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import cv2
from numpy.typing import NDArray
from typing_extensions import Unpack

from bfr.runtime.errors import BfrError, DeviceLost, WriteFailed, explain_failure
from bfr.runtime.files import concerns_one_file
from bfr.runtime.jobs.sources import Item
from bfr.runtime.restore.batch import Finished, Pending, Restored
from bfr.runtime.restore.pipeline import FaceRestorer, LaunchOptions

# What the networks' stage may raise for an image. Others are a caller's own, as where a job is cancelled.
_FAULTS = (MemoryError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, OSError, cv2.error)


def ends_run(error: Exception) -> bool:
    """Whether every other file would fail too: the device is lost, or the output folder cannot be written."""
    return isinstance(error, DeviceLost) or (isinstance(error, WriteFailed) and not concerns_one_file(error))


def shown(show: Callable[[], None]) -> str | None:
    """Call what writes pictures beside a result; why it could not. Raises what ends the run."""
    try:
        show()
    except Exception as error:
        if ends_run(error):
            raise
        return f"the pictures beside it could not be written: {explain_failure(error)}"
    return None


def name_notes(item: Item, output: str) -> tuple[str, ...]:
    """That a result has another name than its source, if that is so."""
    last = PurePosixPath(output).name
    return () if last.startswith(PurePosixPath(item.name).name) else (f"its name is too long: the result is {last}",)


@contextmanager
def warnings_of(logger: str) -> Iterator[list[str]]:
    """Collect what the modules below a logger warn of, for the entry of a file; it is said once, with the report.

    All threads count: the modules have threads of their own, and one file goes through them at a time.
    """
    heard: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(logger)
    propagate, log.propagate = log.propagate, False
    log.addHandler(listener)
    try:
        yield heard
    finally:
        log.removeHandler(listener)
        log.propagate = propagate


class Guarded:
    """A restorer in which an error fails its own face, not the others of the batch."""

    def __init__(self, restorer: FaceRestorer) -> None:
        self.restorer = restorer

    @property
    def batch(self) -> int:
        """See the restorer."""
        return self.restorer.batch

    def launch(self, images: Sequence[NDArray[Any]], **options: Unpack[LaunchOptions]) -> Pending:
        """Launch images, see `Restorer.launch`; after a fault each image goes alone."""
        on_step, keys, inputs = options.get("on_step"), options.get("keys"), options.get("inputs") or {}
        called: list[BaseException] = []

        def step(done: int, state: Any) -> None:
            try:
                if on_step:
                    on_step(done, state)
            except BaseException as error:
                called.append(error)
                raise

        def alone(error: Exception) -> list[Restored]:
            ours = isinstance(error, _FAULTS) or type(error).__module__.startswith("onnxruntime")
            if error in called or isinstance(error, BfrError) or not ours:  # of the caller, or of more than an image
                raise error
            if len(images) == 1:
                return [Restored(None, {}, self.restorer.precision, explain_failure(error))]
            results = []
            for i, image in enumerate(images):
                options["keys"] = None if keys is None else [keys[i]]
                options["inputs"] = {name: [pictures[i]] for name, pictures in inputs.items()}
                results += self.launch([image], **options).finish()
            return results

        given: LaunchOptions = {**options, "on_step": step if on_step else None, "inputs": inputs or None}
        try:
            pending = self.restorer.launch(images, **given)
        except Exception as error:
            return Finished(alone(error))
        return _GuardedFlight(pending, alone)


@dataclass(frozen=True, slots=True)
class _GuardedFlight:
    """What was launched. alone: restores its images one by one after a fault."""

    pending: Pending
    alone: Callable[[Exception], list[Restored]]

    @property
    def done(self) -> bool:
        return self.pending.done

    def finish(self) -> list[Restored]:
        try:
            return self.pending.finish()
        except Exception as error:
            return self.alone(error)
