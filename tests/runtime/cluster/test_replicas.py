"""What the processes of a server do, each called in this one: networks, photographs, jobs."""

import asyncio
import io
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.serve.jobs.store import MOST_ATTEMPTS, Job, JobRequest, JobStore, Status, check_folder
from bfr.runtime.serve.jobs.worker import JobServer, RemoteRestorer
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.orders import Answer, FaceOrder, Order, Progress, Refusal
from bfr.runtime.serve.workers.batching import Finished
from bfr.runtime.serve.workers.faces import FaceServer
from bfr.runtime.serve.workers.photos import PhotoServer, Room

OPTIONS = ServeOptions(presets=("fast",), batch=2, threads=1, backend="onnxruntime-cpu", detector="haar")
PHOTOGRAPH = Path(__file__).parents[3] / "docs" / "images" / "photograph.jpg"


def soon() -> float:
    return time.time() + 60


def order(**more: Any) -> Order:
    return Order(**{"preset": "fast", "seed": 3, "deadline": soon(), **more})


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


async def last(steps: AsyncIterator[Any]) -> Any:
    found = None
    async for step in steps:
        found = step
    return found


@pytest.fixture(scope="module")
def faces() -> FaceServer:
    if hasattr(os, "nice"):
        patch = pytest.MonkeyPatch()
        patch.setattr(os, "nice", lambda _: 0)  # this process is not a replica's own
        server = FaceServer(OPTIONS)
        patch.undo()
        return server
    return FaceServer(OPTIONS)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.open(preset="fast", threads=1, backend="onnxruntime-cpu")


def fresh(faces: FaceServer) -> FaceServer:
    """The same networks with a queue for a new event loop."""
    from bfr.runtime.serve.workers.batching import Batcher

    faces.batcher = Batcher(faces._run, size=OPTIONS.batch, linger=0.01)
    return faces


class TestNetworks:
    def test_faces_are_restored_as_by_a_restorer_whatever_their_neighbours(
        self, faces: FaceServer, restorer: Restorer
    ) -> None:
        images = list(np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8))
        expected = restorer.restore(images, seed=3)

        async def work() -> None:
            fresh(faces)
            answers = await asyncio.gather(
                last(faces.restore(images[:2], FaceOrder("fast", 3, soon()))),
                last(faces.restore(images[2:], FaceOrder("fast", 3, soon()))),
            )
            found = [one.restored.pixels for answer in answers for one in answer]
            for one, other in zip(found, expected, strict=True):
                assert np.array_equal(one, other)
            assert faces.describe()["backend"] == "onnxruntime-cpu"

        run(work())

    def test_a_deadline_in_the_past_costs_nothing(self, faces: FaceServer) -> None:
        async def work() -> None:
            fresh(faces)
            image = np.zeros((256, 256, 3), np.uint8)
            answer = await last(faces.restore([image], FaceOrder("fast", 3, time.time() - 1)))
            assert isinstance(answer, Refusal)
            assert answer.kind == "expired"

        run(work())

    def test_a_warm_up_that_is_not_finite_serves_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        nothing = [Restored(None, {}, "fp32", "the result holds NaN or Inf in float32")]
        monkeypatch.setattr(os, "nice", lambda _: 0)
        monkeypatch.setattr(Restorer, "run", lambda *_args, **_more: nothing)
        with pytest.raises(RestorationFailed, match="warm-up"):
            FaceServer(OPTIONS)


class TestPhotographs:
    @pytest.fixture
    def photos(self, faces: FaceServer) -> Callable[[], PhotoServer]:
        return lambda: PhotoServer(OPTIONS, fresh(faces).restore, size=256)  # type: ignore[arg-type]

    def test_a_photograph_is_the_one_that_bfr_restore_makes(
        self, photos: Callable[[], PhotoServer], restorer: Restorer
    ) -> None:
        data = PHOTOGRAPH.read_bytes()
        image = decode_image(data)
        from bfr.runtime.faces.detect import Haar

        local = PhotoRestorer(restorer, PhotoOptions(upscale=2), detector=Haar()).restore(image.pixels, seed=3)
        expected = encode_image(local.pixels, ".jpg", like=image)

        async def work() -> None:
            steps = [s async for s in photos().restore(data, order(photo=PhotoOptions(upscale=2)))]
            answer = steps[-1]
            assert isinstance(answer, Answer)
            assert answer.data == expected
            assert (answer.faces, answer.failed, answer.suffix) == (len(local.faces), 0, ".jpg")
            assert answer.faces >= 1
            assert {"read", "align", "queue", "network", "paste", "write"} <= set(answer.seconds)
            assert sum(answer.batches) == answer.faces
            states = [step.state for step in steps[:-1] if isinstance(step, Progress)]
            assert states[0] == "reading"
            assert states[-1] == "writing"

        run(work())

    def test_an_aligned_face_in_another_format(self, photos: Callable[[], PhotoServer], restorer: Restorer) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
        data = encode_image(pixels, ".png")
        [expected] = restorer.restore([pixels], seed=3)

        async def work() -> None:
            answer = await last(photos().restore(data, order(aligned=True, suffix=".png")))
            assert np.array_equal(decode_image(answer.data).pixels, expected)
            other = await last(photos().restore(data, order(aligned=True, suffix=".webp")))
            assert other.data[8:12] == b"WEBP"

        run(work())

    def test_a_picture_without_a_face_comes_back_as_it_was(self, photos: Callable[[], PhotoServer]) -> None:
        data = encode_image(np.full((40, 50, 3), 127, np.uint8), ".png")

        async def work() -> None:
            answer = await last(photos().restore(data, order()))
            assert answer.data == data
            assert (answer.faces, answer.batches) == (0, ())
            larger = await last(photos().restore(data, order(photo=PhotoOptions(upscale=4), suffix=".jpg")))
            assert decode_image(larger.data).pixels.shape == (160, 200, 3)

        run(work())

    @pytest.mark.parametrize(
        ("data", "more", "word"),
        [
            (b"GIF89a nothing that is read", {}, "format"),
            (PHOTOGRAPH.read_bytes()[:600], {}, "truncated|broken|damaged|cannot"),
            (b"", {}, "empty"),
        ],
    )
    def test_what_is_no_image_is_refused(
        self, photos: Callable[[], PhotoServer], data: bytes, more: dict[str, Any], word: str
    ) -> None:
        async def work() -> None:
            answer = await last(photos().restore(data, order(**more)))
            assert isinstance(answer, Refusal)
            assert answer.kind == "invalid"

        run(work())

    def test_a_decompression_bomb_is_refused_from_its_header(self, photos: Callable[[], PhotoServer]) -> None:
        stream = io.BytesIO()
        Pillow.new("1", (30_000, 30_000)).save(stream, "PNG")  # 900 MP in some hundred kilobytes
        small = io.BytesIO()
        Pillow.new("1", (5_000, 5_000)).save(small, "PNG")

        async def work() -> None:
            answer = await last(photos().restore(stream.getvalue(), order()))
            assert isinstance(answer, Refusal)
            assert "30000 x 30000" in answer.detail
            enlarged = await last(photos().restore(small.getvalue(), order(photo=PhotoOptions(upscale=4))))
            assert isinstance(enlarged, Refusal)
            assert "enlarge less" in enlarged.detail

        run(work())

    def test_who_leaves_takes_the_faces_along(self) -> None:
        closed = []

        async def endless(_faces: Any, _order: FaceOrder) -> AsyncGenerator[Any, None]:
            try:
                while True:
                    yield 0.1
                    await asyncio.sleep(0.01)
            finally:
                closed.append(True)

        async def work() -> None:
            photos = PhotoServer(OPTIONS, endless, size=256)
            data = encode_image(np.zeros((16, 16, 3), np.uint8), ".png")
            async with aclosing(photos.restore(data, order(aligned=True))) as steps:  # type: ignore[type-var]
                async for step in steps:
                    if isinstance(step, Progress) and step.share:
                        break
            assert closed == [True]
            assert photos._room.taken == 0

        run(work())

    def test_so_many_pixels_are_in_memory_at_once(self) -> None:
        async def work() -> None:
            room, order_of_entry = Room(100), []

            async def visit(name: str, pixels: int, stay: asyncio.Event) -> None:
                async with room.of(pixels):
                    order_of_entry.append(name)
                    await stay.wait()

            first, second = asyncio.Event(), asyncio.Event()
            tasks = [asyncio.create_task(visit("large", 500, first))]
            await asyncio.sleep(0.01)
            tasks.append(asyncio.create_task(visit("small", 1, second)))
            await asyncio.sleep(0.01)
            assert order_of_entry == ["large"]  # alone, though it is larger than all the room
            first.set()
            await asyncio.sleep(0.01)
            assert order_of_entry == ["large", "small"]
            second.set()
            await asyncio.gather(*tasks)
            assert room.taken == 0

        run(work())


def request(**more: Any) -> JobRequest:
    values = {
        "created": 1.0,
        "preset": "fast",
        "seed": 3,
        "aligned": True,
        "photo": PhotoOptions(),
        "format": "same",
        "suffix": ".png",
    }
    return JobRequest(**{**values, **more})


async def body(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 100):
        yield data[begin : begin + 100]


def add(store: JobStore, data: bytes, **more: Any) -> Job:
    return asyncio.run(store.add(request(**more), body(data)))


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    begin = time.monotonic()
    while not done():
        assert time.monotonic() - begin < seconds
        time.sleep(0.02)


class TestJobs:
    @pytest.fixture
    def store(self, tmp_path: Path) -> JobStore:
        check_folder(tmp_path / "jobs")
        return JobStore(tmp_path / "jobs")

    def worker(self, store: JobStore, answer: Any = None) -> JobServer:
        """A worker whose faces come back black, or as `answer` says."""

        async def black(images: Sequence[NDArray[Any]], _order: FaceOrder) -> AsyncGenerator[Any, None]:
            yield 0.5
            yield [Finished(Restored(np.zeros_like(one), {"network": 0.1}, "fp32"), 0.0, 0) for one in images]

        return JobServer(OPTIONS.model_copy(update={"jobs": store.folder}), answer or black)

    def test_a_job_is_kept_done_described_and_deleted(self, store: JobStore) -> None:
        data = encode_image(np.full((32, 32, 3), 200, np.uint8), ".png")
        job = add(store, data)
        assert job.input.read_bytes() == data
        assert job.describe()["state"] == "queued"
        worker = self.worker(store)
        until(lambda: job.status.state == "done")
        assert job.result is not None
        assert not decode_image(job.result.read_bytes()).pixels.any()
        found = job.describe()
        assert (found["share"], found["result"], found["faces"]) == (1.0, f"/jobs/{job.id}/result", 1)
        store.remove(job)
        until(lambda: store.get(job.id) is None)
        worker.stop()

    def test_a_job_that_fails_says_why_and_the_next_one_goes_on(self, store: JobStore) -> None:
        broken, good = (
            add(store, b"no image"),
            add(store, encode_image(np.ones((8, 8, 3), np.uint8), ".png"), created=2.0),
        )
        worker = self.worker(store)
        until(lambda: good.status.state == "done")
        assert broken.status.state == "failed"
        assert broken.status.error
        assert str(store.folder) not in broken.status.error
        assert broken.describe()["result"] is None
        worker.stop()

    def test_what_a_dead_worker_left_is_done_by_the_next_one(self, store: JobStore) -> None:
        job = add(store, encode_image(np.ones((8, 8, 3), np.uint8), ".png"))
        job.write(Status("running", 0.3, attempts=1))
        worker = self.worker(store)
        until(lambda: job.status.state == "done")
        assert job.status.attempts == 2
        worker.stop()

    def test_a_job_that_ends_its_worker_again_and_again_is_given_up(self, store: JobStore) -> None:
        job = add(store, encode_image(np.ones((8, 8, 3), np.uint8), ".png"))
        job.write(Status("running", attempts=MOST_ATTEMPTS))
        worker = self.worker(store)
        until(lambda: job.status.state == "failed")
        assert "times" in str(job.status.error)
        worker.stop()

    def test_a_cancelled_job_stops_and_one_whose_server_ends_is_queued_again(self, store: JobStore) -> None:
        async def endless(_images: Any, _order: FaceOrder) -> AsyncGenerator[Any, None]:
            share = 0.0
            while True:
                yield (share := min(0.9, share + 0.01))
                await asyncio.sleep(0.01)

        job = add(store, encode_image(np.ones((8, 8, 3), np.uint8), ".png"))
        other = add(store, encode_image(np.ones((8, 8, 3), np.uint8), ".png"), created=2.0)
        worker = self.worker(store, endless)
        until(lambda: job.status.state == "running")
        store.remove(job)
        assert job.describe()["state"] == "cancelled"
        until(lambda: store.get(job.id) is None)
        until(lambda: other.status.state == "running")
        worker.stop()
        assert other.status == Status("queued", attempts=0)
        following = self.worker(store)
        until(lambda: other.status.state == "done")
        following.stop()

    def test_an_upload_that_breaks_off_leaves_nothing(self, store: JobStore) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"half"
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            asyncio.run(store.add(request(), broken()))
        assert store.jobs() == []
        assert list(store.folder.iterdir()) == []

    @pytest.mark.parametrize("name", ["..", "../..", "/etc", "a" * 32 + "/..", "A" * 32, "", "\0" * 32, ".worker"])
    def test_only_an_id_is_ever_looked_for(self, store: JobStore, name: str) -> None:
        assert store.get(name) is None

    def test_a_result_is_a_file_of_its_own_job(self, store: JobStore, tmp_path: Path) -> None:
        job = add(store, b"x")
        job.write(Status("done", result="../../outside.png", ended=1.0))
        (tmp_path / "outside.png").write_bytes(b"secret")
        found = store.get(job.id)
        assert found is not None
        assert found.result is None

    def test_what_ended_long_ago_is_deleted(self, store: JobStore) -> None:
        old, new = add(store, b"x"), add(store, b"y")
        old.write(Status("done", ended=time.time() - 100))
        new.write(Status("done", ended=time.time()))
        store.clean(50)
        assert [job.id for job in store.jobs()] == [new.id]

    def test_of_two_workers_on_one_folder_one_works(self, store: JobStore) -> None:
        first = self.worker(store)
        until((store.folder / ".worker").exists)
        time.sleep(0.1)
        second = self.worker(store)
        job = add(store, encode_image(np.ones((8, 8, 3), np.uint8), ".png"))
        until(lambda: job.status.state == "done")
        assert job.status.attempts == 1
        first.stop()
        second.stop()

    def test_a_folder_that_cannot_be_written_is_refused_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidOption, match="--jobs"):
            check_folder(tmp_path / "file")

    def test_faces_of_a_job_are_asked_for_in_batches_and_come_back_in_order(self) -> None:
        asked: list[tuple[int, tuple[int | None, ...] | None, bool]] = []

        async def echo(images: Sequence[NDArray[Any]], order: FaceOrder) -> AsyncGenerator[Any, None]:
            asked.append((len(images), order.keys, order.urgent))
            yield 0.5
            yield [Finished(Restored(one + 1, {}, "fp32"), 0.0, 0) for one in images]

        from bfr.runtime.bundle.bundle import Bundle, default_bundle

        remote = RemoteRestorer(Bundle.open(default_bundle()), replace_options(OPTIONS, replicas=2), "fast", echo)
        assert remote.batch == 4
        steps: list[int] = []
        images = [np.full((4, 4, 3), k, np.uint8) for k in range(3)]
        results = remote.run(images, seed=1, keys=[7, 8, 9], on_step=lambda done, _: steps.append(done))
        assert [int(one.pixels[0, 0, 0]) for one in results if one.pixels is not None] == [1, 2, 3]
        assert sorted(asked) == [(1, (9,), False), (2, (7, 8), False)]
        assert steps[-1] == remote.plan.steps
        assert remote.run([]) == []


def replace_options(options: ServeOptions, **more: Any) -> ServeOptions:
    return options.model_copy(update=more)


def test_the_serve_yaml_makes_the_same_options_again() -> None:
    import yaml

    from bfr.runtime.cluster.deploy import serve_yaml

    options = replace_options(OPTIONS, max_replicas=3, keys=("ab" * 32,), jobs=Path("/shared/jobs"))
    config = yaml.safe_load(serve_yaml(options, host="0.0.0.0", port=80))  # noqa: S104
    application = config["applications"][0]
    assert ServeOptions(**application["args"]) == replace_options(options, max_replicas=None)
    assert application["deployments"][0]["autoscaling_config"]["max_replicas"] == 3
    assert "num_gpus" not in application["deployments"][0]["ray_actor_options"]
    gpu = yaml.safe_load(serve_yaml(replace_options(options, backend="auto"), host="::", port=80))
    assert gpu["applications"][0]["deployments"][0]["ray_actor_options"]["num_gpus"] == 1
