"""What is done around the networks, in threads of the server: decode, find faces, paste them back, encode."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import cv2
from PIL import Image as Pillow

from bfr.runtime.backends.host import trim_heap
from bfr.runtime.errors import BfrError, InvalidImage, explain_failure
from bfr.runtime.faces.photo import PhotoEditor
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.images.decode import Image, decode_image
from bfr.runtime.images.formats import format_of, result_suffix
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.work import Encoded, Picture, finish, prepare
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Prepared
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, FaceOrder, Finished, Order, Progress, Refusal
from bfr.runtime.serve.sizes import ALIGNED_PIXELS, LimitedEditor, check_size
from bfr.runtime.serve.workers.pool import RestoreFaces

QUALITY = JobOptions.model_fields["quality"].default
LARGE = 4_000_000  # pixels of an image and its result, after which freed memory is returned to the system
T = TypeVar("T")


class TooManyFaces(InvalidImage):
    """The faces of a photograph would exceed the budget of faces in flight: for now, it is refused."""


@dataclass(slots=True, eq=False)
class _Work:
    """A request under way.

    faces: how many of it are counted among those in flight. running: what a thread does for it.
    """

    data: bytes
    order: Order
    picture: Picture
    faces: int = 0
    running: "Future[Any] | None" = None


class Photos:
    """Restores encoded images. `restore` may be called any number of times at once.

    A request's budget of pixels and faces is released when its work has ended: a thread that decodes for a disconnected
    client continues.
    """

    def __init__(self, options: ServeOptions, restore_faces: RestoreFaces, sizes: dict[str, int]) -> None:
        """Start the threads.

        Args:
            options: The limits.
            restore_faces: See `Pool.restore`.
            sizes: Bundle -> sides of its aligned faces, pixels.
        """
        self.options, self.sizes = options, sizes
        self._restore_faces = restore_faces
        self._threads = ThreadPoolExecutor(options.photo_workers, thread_name_prefix="bfr-photo")
        self._lock = threading.Lock()
        self.room = Room(options.photo_pixels)
        self.faces = 0  # in flight
        self._large = False  # whether an image took much memory since it was last released
        self._threads.submit(Pillow.init)  # its first use imports all formats, for which the event loop would wait

    async def restore(self, data: bytes, order: Order) -> AsyncGenerator[Progress | Answer | Refusal, None]:
        """Restore an image file. Closed before its end, the generator drops what is queued.

        Yields its progress; at last the restored image, or why there is none.
        """
        try:
            most, what = self.options.max_pixels, "the image"
            if order.aligned:
                most, what = min(most, ALIGNED_PIXELS), "the aligned face"
            pixels = check_size(header_size(data), order.photo.upscale, most, what)
        except BfrError as error:
            yield Refusal("invalid", str(error))
            return
        await self.room.take(pixels)
        work = _Work(data, order, Picture("the image", lambda: data))
        try:
            async with aclosing(self._restored(work)) as steps:
                async for step in steps:
                    yield step
        except BfrError as error:
            yield _refusal(error, str(error))
        except (MemoryError, cv2.error) as error:
            yield Refusal("failed", explain_failure(error))
        finally:
            loop = asyncio.get_running_loop()
            if work.running is None or work.running.done():
                self._give_back(work, pixels)
            else:

                def give_back(_: object) -> None:
                    with suppress(RuntimeError):  # the server has ended
                        loop.call_soon_threadsafe(self._give_back, work, pixels)

                work.running.add_done_callback(give_back)

    def _give_back(self, work: _Work, pixels: int) -> None:
        with self._lock:
            self.faces -= work.faces
        self.room.give(pixels)
        self._large = self._large or pixels > LARGE
        if self._large and not self.room.taken:
            self._large = False
            self._threads.submit(trim_heap)

    async def _restored(self, work: _Work) -> AsyncGenerator[Progress | Answer | Refusal, None]:
        picture, order = work.picture, work.order
        yield Progress("reading")
        prepared = await self._in_thread(work, self._read, work)
        if picture.error:
            yield _refusal(picture.cause, picture.error)
            return
        finished: list[Finished] = []
        if prepared.crops:
            yield Progress("queued")
            wanted = FaceOrder(order.group, sender=order.sender)
            begin = time.perf_counter()
            async with aclosing(self._restore_faces(prepared.crops, wanted)) as steps:
                async for step in steps:
                    if isinstance(step, Refusal):
                        yield step
                        return
                    if isinstance(step, float):
                        yield Progress("restoring" if step else "queued", step)
                    else:
                        finished = step
            picture.seconds["restore"] = time.perf_counter() - begin
            picture.seconds["queue"] = max(one.waited for one in finished)
        yield Progress("writing", 1.0)
        suffix = order.suffix or result_suffix(format_of(work.data))
        results = [one.restored for one in finished]
        result = await self._in_thread(work, self._write, work, results, suffix)
        faces = sum(one.pixels is not None for one in results)
        failed, sharp = len(results) - faces, result.entry.sharp or 0
        yield Answer(result.data, suffix, faces, failed, picture.seconds, result.entry.notes, sharp)

    def _read(self, work: _Work) -> Prepared[Picture]:
        """In a thread."""

        def read() -> Image:
            image = decode_image(work.data, max_pixels=self.options.max_pixels)
            if work.order.aligned:
                self._admit(work, 1)
            return image

        return prepare(work.picture, read, self._editor(work))

    def _write(self, work: _Work, results: Sequence[Restored], suffix: str) -> Encoded:
        """In a thread."""
        output = f"result{suffix}"
        return finish(work.picture, results, self._editor(work), output=output, quality=QUALITY, metadata=True)

    def _admit(self, work: _Work, count: int) -> None:
        """Count the faces of a request. Raises TooManyFaces; in a thread."""
        with self._lock:
            if self.faces and self.faces + count > self.options.face_queue:
                raise TooManyFaces(
                    f"the image has {count} faces and {self.faces} are in flight, {self.options.face_queue} are the "
                    "limit here: try again later"
                )
            self.faces += count
            work.faces += count

    @cached_property
    def _detector(self) -> YuNet:
        return YuNet()

    def _editor(self, work: _Work) -> PhotoEditor | None:
        """Make an editor; None for an aligned face."""
        if work.order.aligned:
            return None
        return LimitedEditor(
            self.sizes[work.order.group.bundle],
            work.order.photo,
            detector=self._detector,
            most=self.options.max_faces,
            admit=lambda count: self._admit(work, count),
        )

    async def _in_thread(self, work: _Work, call: Callable[..., T], *arguments: Any) -> T:
        """Await a function in one of the threads. Cancelled, it leaves the thread to finish."""
        running = work.running = self._threads.submit(call, *arguments)
        return await asyncio.wrap_future(running)


class Room:
    """A budget of pixels in memory; later requests wait in order. An image above the budget is processed alone."""

    def __init__(self, pixels: int) -> None:
        self.all, self.taken = pixels, 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    async def take(self, pixels: int) -> None:
        """Wait for room for an image; `give` returns it."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(pixels)
            else:
                self._waiting = [one for one in self._waiting if one[1] is not turn]
                self._next()
            raise

    def give(self, pixels: int) -> None:
        """Give room back."""
        self.taken -= pixels
        self._next()

    def _next(self) -> None:
        while self._waiting and (not self.taken or self.taken + self._waiting[0][0] <= self.all):
            pixels, turn = self._waiting.pop(0)
            if not turn.done():
                self.taken += pixels
                turn.set_result(None)


def _refusal(error: Exception | None, detail: str) -> Refusal:
    if isinstance(error, TooManyFaces):
        return Refusal("overload", detail)
    return Refusal("invalid" if isinstance(error, ValueError) else "failed", detail)
