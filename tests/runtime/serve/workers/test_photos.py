"""What is done around the networks: decode, paste, encode, and how much of it at once."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from eventually import eventually
from numpy.typing import NDArray
from PIL import Image as Pillow

from bfr.runtime.faces.geometry import Face, template
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, FaceOrder, Finished, Group, Order, Progress, Refusal
from bfr.runtime.serve.workers import photos as module
from bfr.runtime.serve.workers.photos import Photos, Room

OPTIONS = ServeOptions(presets=("fast",), backend="onnxruntime-cpu")
PHOTOGRAPH = Path(__file__).parents[4] / "docs" / "images" / "photograph.jpg"


def order(**more: Any) -> Order:
    return Order(**{"group": Group("mini", "fast", 3), "deadline": time.monotonic() + 60, **more})


async def last(steps: AsyncGenerator[Any, None]) -> Any:
    found = None
    async for step in steps:
        found = step
    return found


async def black(faces: Sequence[NDArray[Any]], _order: FaceOrder) -> AsyncGenerator[Any, None]:
    yield 0.5
    yield [Finished(Restored(np.zeros_like(one), {"network": 0.1}, "fp32"), 0.25) for one in faces]


def black_png(side: int) -> bytes:
    return encode_image(np.zeros((side, side, 3), np.uint8), ".png")


def made(restore: Any = black, **options: Any) -> Photos:
    return Photos(OPTIONS.model_copy(update=options), restore, {"mini": 256})


class Crowd:
    """A detector that finds `count` faces, whatever it is shown."""

    name = "crowd"

    def __init__(self, count: int) -> None:
        self.count = count

    def detect(self, _pixels: NDArray[Any]) -> list[Face]:
        box = np.array([0, 0, 100, 100], np.float32)
        landmarks = (template(512) / 5).astype(np.float32)
        return [
            Face(box + (200 * i % 2000) + 200 * (i // 10), landmarks + 200 * (i // 10), 0.9) for i in range(self.count)
        ]

    def refine(self, _pixels: NDArray[Any], face: Face) -> Face:
        return face


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.open(preset="fast", threads=1, backend="onnxruntime-cpu", precision="fp32")


async def test_a_photograph_is_the_one_that_bfr_restore_makes(restorer: Restorer) -> None:
    data = PHOTOGRAPH.read_bytes()
    image = decode_image(data)
    local = PhotoRestorer(restorer, PhotoOptions(upscale=2)).restore(image.pixels, seed=3)
    expected = encode_image(local.pixels, ".jpg", like=image)

    async def networks(faces: Sequence[NDArray[Any]], order: FaceOrder) -> AsyncGenerator[Any, None]:
        results = await asyncio.to_thread(restorer.run, faces, seed=order.group.seed)
        yield [Finished(one, 0.25) for one in results]

    steps = [s async for s in made(networks).restore(data, order(photo=PhotoOptions(upscale=2)))]
    answer = steps[-1]
    assert isinstance(answer, Answer)
    assert answer.data == expected
    assert (answer.faces, answer.failed, answer.suffix) == (len(local.faces), 0, ".jpg")
    assert answer.faces >= 1
    assert {"read", "align", "queue", "network", "paste", "write"} <= set(answer.seconds)
    assert answer.seconds["queue"] == 0.25
    states = [step.state for step in steps[:-1] if isinstance(step, Progress)]
    assert states[0] == "reading"
    assert states[-1] == "writing"


async def test_an_aligned_face_in_another_format() -> None:
    data = encode_image(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8), ".png")

    photos = made()
    answer = await last(photos.restore(data, order(aligned=True, suffix=".png")))
    assert not decode_image(answer.data).pixels.any()
    other = await last(photos.restore(data, order(aligned=True, suffix=".webp")))
    assert other.data[8:12] == b"WEBP"
    assert photos.faces == photos.room.taken == 0


async def test_a_picture_without_a_face_comes_back_as_it_was() -> None:
    data = encode_image(np.full((40, 50, 3), 127, np.uint8), ".png")

    answer = await last(made().restore(data, order()))
    assert answer.data == data
    assert answer.faces == 0
    larger = await last(made().restore(data, order(photo=PhotoOptions(upscale=4), suffix=".jpg")))
    assert decode_image(larger.data).pixels.shape == (160, 200, 3)


@pytest.mark.parametrize("data", [b"GIF89a nothing that is read", PHOTOGRAPH.read_bytes()[:600], b""])
async def test_what_is_no_image_is_refused(data: bytes) -> None:
    answer = await last(made().restore(data, order()))
    assert isinstance(answer, Refusal)
    assert answer.kind == "invalid"


@pytest.mark.parametrize("where", ["decode_image", "finish"])
@pytest.mark.parametrize("error", [MemoryError(), cv2.error("OpenCV: (-4:Insufficient memory) Failed to allocate")])
async def test_memory_that_runs_out_is_the_servers_fault_and_not_the_images(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P36: a 503, after which the request may be sent again."""

    def fail(*_args: Any, **_more: Any) -> None:
        raise error

    monkeypatch.setattr(module, where, fail)

    photos = made()
    answer = await last(photos.restore(PHOTOGRAPH.read_bytes(), order()))
    assert isinstance(answer, Refusal)
    assert (answer.kind, "memory" in answer.detail) == ("failed", True)
    assert photos.faces == photos.room.taken == 0


@pytest.mark.parametrize(
    ("side", "options", "said"),
    [
        (30_000, {}, "30000 x 30000"),  # 900 MP in some hundred kilobytes
        (5_000, {"aligned": True}, "aligned face"),
        (5_000, {"photo": PhotoOptions(upscale=4)}, "enlarge less"),
    ],
)
async def test_a_decompression_bomb_is_refused_from_its_header(side: int, options: dict[str, Any], said: str) -> None:
    stream = io.BytesIO()
    Pillow.new("1", (side, side)).save(stream, "PNG")
    answer = await last(made().restore(stream.getvalue(), order(**options)))
    assert isinstance(answer, Refusal)
    assert said in answer.detail


@pytest.mark.parametrize(("count", "kind"), [(3, None), (4, "invalid")])
async def test_a_photograph_with_too_many_faces_is_refused(
    monkeypatch: pytest.MonkeyPatch, count: int, kind: str | None
) -> None:
    monkeypatch.setattr(module, "YuNet", lambda: Crowd(count))
    data = black_png(2000)

    answer = await last(made(max_faces=3).restore(data, order()))
    assert getattr(answer, "kind", None) == kind
    if kind:
        assert "--max-faces" in answer.detail
    else:
        assert answer.faces == count


async def test_faces_past_the_budget_are_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "YuNet", lambda: Crowd(3))
    data, stay = black_png(2000), asyncio.Event()

    async def waiting(faces: Sequence[NDArray[Any]], wanted: FaceOrder) -> AsyncGenerator[Any, None]:
        await stay.wait()
        async for step in black(faces, wanted):
            yield step

    photos = made(waiting, face_queue=5)
    first = asyncio.create_task(last(photos.restore(data, order())))
    await eventually(lambda: photos.faces >= 3)
    refused = await last(photos.restore(data, order()))
    assert isinstance(refused, Refusal)
    assert refused.kind == "overload"
    stay.set()
    assert (await first).faces == 3
    assert photos.faces == 0
    assert (await last(photos.restore(data, order()))).faces == 3


async def test_a_client_that_leaves_frees_its_faces_and_room() -> None:
    closed = []

    async def endless(_faces: Any, _order: FaceOrder) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield 0.1
                await asyncio.sleep(0.01)
        finally:
            closed.append(True)

    photos = made(endless)
    data = black_png(16)
    async with aclosing(photos.restore(data, order(aligned=True))) as steps:
        async for step in steps:
            if isinstance(step, Progress) and step.share:
                break
    assert closed == [True]
    assert photos.room.taken == photos.faces == 0


async def left_while_decoding(decoding: threading.Event) -> Photos:
    """Photos whose only client, of 16 x 16 pixels, left after a thread had begun to decode."""
    photos = made()
    data = black_png(16)
    leaver = asyncio.create_task(last(photos.restore(data, order(aligned=True))))
    assert await asyncio.to_thread(decoding.wait)
    leaver.cancel()
    await asyncio.wait({leaver})
    return photos


async def test_a_client_that_leaves_while_a_thread_decodes_holds_its_room_until_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoding, go = threading.Event(), threading.Event()
    decode = module.decode_image

    def slow(*arguments: Any, **more: Any) -> Any:
        decoding.set()
        assert go.wait(20)
        return decode(*arguments, **more)

    monkeypatch.setattr(module, "decode_image", slow)

    photos = await left_while_decoding(decoding)
    assert photos.room.taken == 2 * 16 * 16
    go.set()
    await eventually(lambda: not photos.room.taken)
    assert photos.faces == 0


def test_a_thread_that_decodes_longer_than_the_server_lives_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoding, go = threading.Event(), threading.Event()

    def slow(*_: Any, **_more: Any) -> Any:
        decoding.set()
        assert go.wait(20)

    monkeypatch.setattr(module, "decode_image", slow)

    photos = asyncio.run(left_while_decoding(decoding))
    go.set()
    photos._threads.shutdown()
    assert caplog.records == []


async def test_no_more_pixels_than_the_room_are_in_memory_at_once() -> None:
    room, entered = Room(100), []

    async def visit(name: str, pixels: int) -> None:
        await room.take(pixels)
        entered.append(name)

    tasks = [asyncio.create_task(visit("large", 500))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(visit("leaver", 90)), asyncio.create_task(visit("small", 20))]
    await asyncio.sleep(0)
    assert entered == ["large"]  # alone, though it is larger than all the room
    tasks[1].cancel()
    room.give(500)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert entered == ["large", "small"]
    room.give(20)
    assert room.taken == 0
