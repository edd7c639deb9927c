"""The replicas around the networks: they decode, find faces, paste them back and encode, so that a GPU never waits."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from numpy.typing import NDArray

from bfr.runtime.errors import BfrError, InvalidImage
from bfr.runtime.faces.detect import Detector, open_detector
from bfr.runtime.faces.photo import PhotoEditor
from bfr.runtime.images.decode import decode_image, header_size
from bfr.runtime.images.formats import format_of, result_suffix
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.work import Encoded, Picture, finish, prepare
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.pipeline import Prepared
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, FaceOrder, Order, Progress, Refusal
from bfr.runtime.serve.workers.batching import Finished

RestoreFaces = Callable[[Sequence[NDArray[Any]], FaceOrder], AsyncGenerator[float | list[Finished] | Refusal, None]]
"""As `FaceServer.restore`, wherever that is."""

BUDGET = 200_000_000  # pixels of images and results in memory; one may exceed it alone
T = TypeVar("T")


class PhotoServer:
    """Restores encoded images. `restore` may be called any number of times at once."""

    def __init__(self, options: ServeOptions, restore_faces: RestoreFaces, *, size: int) -> None:
        """size: of the sides of aligned faces, pixels."""
        self.options, self.size = options, size
        self._restore_faces = restore_faces
        self._threads = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), thread_name_prefix="bfr-photo")
        self._own = threading.local()
        self._room = Room(BUDGET)

    async def restore(self, data: bytes, order: Order) -> AsyncIterator[Progress | Answer | Refusal]:
        """Where the image is, now and then, and at last the restored one or why there is none."""
        try:
            pixels = _pixels(data, order, self.options.max_pixels)
            async with self._room.of(pixels), aclosing(self._restored(data, order)) as steps:
                async for step in steps:
                    yield step
        except BfrError as error:
            yield Refusal("invalid" if isinstance(error, ValueError) else "failed", str(error))

    async def _restored(self, data: bytes, order: Order) -> AsyncGenerator[Progress | Answer | Refusal, None]:
        picture = Picture("the image", lambda: data)
        yield Progress("reading")
        work = await self._in_thread(self._read, picture, data, order)
        if picture.error:
            yield Refusal("invalid", picture.error)
            return
        finished: list[Finished] = []
        if work.crops:
            yield Progress("queued")
            wanted = FaceOrder(order.preset, order.seed, order.deadline)
            begin = time.perf_counter()
            async with aclosing(self._restore_faces(work.crops, wanted)) as steps:
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
        suffix = order.suffix or result_suffix(format_of(data))
        results = [one.restored for one in finished]
        result = await self._in_thread(self._write, picture, results, order, suffix)
        batches = tuple(one.batch for one in finished if one.batch)
        faces = sum(one.pixels is not None for one in results)
        yield Answer(result.data, suffix, faces, len(results) - faces, picture.seconds, batches)

    def _read(self, picture: Picture, data: bytes, order: Order) -> Prepared[Picture]:
        """In a thread."""
        return prepare(picture, lambda: decode_image(data, max_pixels=self.options.max_pixels), self._editor(order))

    def _write(self, picture: Picture, results: Sequence[Restored], order: Order, suffix: str) -> Encoded:
        """In a thread."""
        quality = JobOptions.model_fields["quality"].default
        return finish(picture, results, self._editor(order), output=f"result{suffix}", quality=quality, metadata=True)

    def _editor(self, order: Order) -> PhotoEditor | None:
        """With a detector of this thread's own: they are not thread-safe. None for an aligned face."""
        if order.aligned:
            return None
        detector: Detector | None = getattr(self._own, "detector", None)
        if detector is None:
            detector = self._own.detector = open_detector(self.options.detector)
        return PhotoEditor(self.size, order.photo, detector=detector)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


class Room:
    """So many pixels may be in memory at once; who comes later waits. What is larger than all of it goes alone."""

    def __init__(self, pixels: int) -> None:
        self.all, self.taken = pixels, 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def of(self, pixels: int) -> AsyncIterator[None]:
        """Wait for room for an image, and hold it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.taken or self.taken + pixels <= self.all)
            self.taken += pixels
        try:
            yield
        finally:
            self.taken -= pixels
            async with self._changed:
                self._changed.notify_all()


def _pixels(data: bytes, order: Order, most: int) -> int:
    """Pixels of the image and its result together, from its header. Raises InvalidImage where either has too many."""
    if (size := header_size(data)) is None:
        return 0  # the decoder says what is wrong with it
    count, scale = size[0] * size[1], order.photo.upscale**2
    if count * scale > most:
        raise InvalidImage(
            f"the image has {size[0]} x {size[1]} pixels{f', {scale} times as many enlarged' if scale > 1 else ''}: "
            f"{most} are the limit here. Make it smaller{', or enlarge less' if scale > 1 else ''}"
        )
    return count * (1 + scale)
