"""The replicas around the networks: they decode, find faces, paste them back and encode, so that a GPU never waits."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from io import BytesIO
from typing import Any, TypeVar

from numpy.typing import NDArray

from bfr.runtime.batch import Restored
from bfr.runtime.detect import Detector, open_detector
from bfr.runtime.encode import encode_image, format_of
from bfr.runtime.errors import BfrError, InvalidImage
from bfr.runtime.image import Image, decode_image
from bfr.runtime.metadata import size_in_header
from bfr.runtime.paste import to_grey
from bfr.runtime.photo import AlignedFace, PhotoEditor
from bfr.runtime.serve.batching import Finished
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, FaceOrder, Order, Progress, Refusal

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
        seconds: dict[str, float] = {}
        yield Progress("reading")
        image, faces = await self._in_thread(self._read, data, order, seconds)
        crops = [image.pixels] if faces is None else [face.crop for face in faces]
        finished: list[Finished] = []
        if crops:
            yield Progress("queued")
            wanted = FaceOrder(order.preset, order.seed, order.deadline)
            begin = time.perf_counter()
            async with aclosing(self._restore_faces(crops, wanted)) as steps:
                async for step in steps:
                    if isinstance(step, Refusal):
                        yield step
                        return
                    if isinstance(step, float):
                        yield Progress("restoring" if step else "queued", step)
                    else:
                        finished = step
            seconds["restore"] = time.perf_counter() - begin
            seconds["queue"] = max(one.waited for one in finished)
            for one in finished:
                for stage, value in one.restored.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + value
        results = [one.restored for one in finished]
        failed = [result for result in results if result.pixels is None]
        if failed and len(failed) == len(results):
            yield Refusal("failed", f"no face could be restored: {failed[0].error}")
            return
        yield Progress("writing", 1.0)
        encoded, suffix = await self._in_thread(self._write, data, order, image, faces, results, seconds)
        batches = tuple(one.batch for one in finished if one.batch)
        yield Answer(encoded, suffix, len(results) - len(failed), len(failed), seconds, batches)

    def _read(self, data: bytes, order: Order, seconds: dict[str, float]) -> tuple[Image, list[AlignedFace] | None]:
        """In a thread: the image, and its faces; None where it is an aligned face itself."""
        begin = time.perf_counter()
        image = decode_image(data, max_pixels=self.options.max_pixels)
        seconds["decode"] = time.perf_counter() - begin
        if order.aligned:
            return image, None
        begin = time.perf_counter()
        faces = self._photo(order).align(image.pixels)
        seconds["align"] = time.perf_counter() - begin
        return image, faces

    def _write(
        self,
        data: bytes,
        order: Order,
        image: Image,
        faces: list[AlignedFace] | None,
        results: Sequence[Restored],
        seconds: dict[str, float],
    ) -> tuple[bytes, str]:
        """In a thread: the result as a file, and its suffix."""
        source = format_of(data)
        suffix = order.suffix or source or ".png"
        begin = time.perf_counter()
        if faces is None:
            pixels: NDArray[Any] = results[0].pixels  # type: ignore[assignment]
            pixels = to_grey(pixels) if image.grey else pixels
        elif not faces and order.photo.upscale == 1 and source == suffix:
            return data, suffix  # the file itself is the best result
        else:
            pixels = self._photo(order).paste(image, faces, results).pixels
        seconds["paste"] = time.perf_counter() - begin
        begin = time.perf_counter()
        encoded = encode_image(pixels, suffix, like=image)
        seconds["encode"] = time.perf_counter() - begin
        return encoded, suffix

    def _photo(self, order: Order) -> PhotoEditor:
        """With a detector of this thread's own: they are not thread-safe."""
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
    try:
        size = size_in_header(BytesIO(data))
    except ValueError:
        size = None  # the decoder says what is wrong with it
    if size is None:
        return 0
    count, scale = size[0] * size[1], order.photo.upscale**2
    if count * scale > most:
        raise InvalidImage(
            f"the image has {size[0]} x {size[1]} pixels{f', {scale} times as many enlarged' if scale > 1 else ''}: "
            f"{most} are the limit here. Make it smaller{', or enlarge less' if scale > 1 else ''}"
        )
    return count * (1 + scale)
