"""What the process of a job does, in this one: the faces it asks for, and its limits."""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from films import encode
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidImage, RestorationFailed
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.encode import encode_image
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import Entry, Report
from bfr.runtime.restore.batch import Restored
from bfr.runtime.serve.jobs import process
from bfr.runtime.serve.jobs.job import JobRequest
from bfr.runtime.serve.jobs.process import RemoteRestorer, Reporter, check_input, restore
from bfr.runtime.serve.options import ServeOptions
from bfr.runtime.serve.workers.wire import pack_results

OPTIONS = ServeOptions(backend="onnxruntime-cpu", presets=("fast",))


class Server:
    """The other side of the line: faces come back black, after a report of progress."""

    def __init__(self, refusal: str | None = None) -> None:
        self.refusal = refusal
        self.asked: list[tuple[int, list[int | None]]] = []
        self.shares: list[float] = []
        self.answers: list[tuple[dict[str, Any], list[NDArray[Any]]]] = []

    def send(self, content: dict[str, Any], arrays: Sequence[NDArray[Any]] = ()) -> None:
        if "share" in content:
            self.shares.append(content["share"])
            return
        self.asked.append((len(arrays), content["keys"]))
        reporter, pixels = pack_results([Restored(np.zeros_like(one), {"network": 0.1}, "fp32") for one in arrays])
        self.answers = [({"refused": self.refusal}, [])] if self.refusal else [({"share": 0.5}, [])]
        self.answers.append(({"results": reporter}, pixels))

    def receive(self) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        return self.answers.pop(0)


def setup(folder: Path, **more: Any) -> dict[str, Any]:
    values = {"preset": "fast", "seed": 3, "aligned": True, "photo": PhotoOptions(), "suffix": ".png"}
    asked = JobRequest(**{"created": 1.0, "bundle": "mini", **values, **more})
    request = {**asdict(asked), "photo": asked.photo.model_dump(mode="json")}
    return {"options": OPTIONS.model_dump(mode="json"), "request": request, "folder": str(folder), "batch": 2}


def test_a_job_writes_its_result_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "input.png").write_bytes(encode_image(np.full((32, 32, 3), 200, np.uint8), ".png"))
    server: Any = Server()
    ended = restore(server, setup(tmp_path))
    assert (ended["state"], ended["faces"], ended["error"]) == ("done", 1, None)
    assert not decode_image((tmp_path / "out" / ended["result"]).read_bytes()).pixels.any()


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "input.png").write_bytes(b"no image")
    server: Any = Server()
    ended = restore(server, setup(tmp_path))
    assert ended["state"] == "failed"
    assert ended["error"]


def test_faces_come_back_in_order_and_a_refusal_is_an_error() -> None:
    server: Any = Server()
    remote = RemoteRestorer(server, OPTIONS, bundle="mini", preset="fast", batch=4)
    steps: list[int] = []
    images = [np.full((4, 4, 3), k, np.uint8) for k in range(3)]
    results = remote.run(images, seed=1, keys=[7, 8, 9], on_step=lambda done, _: steps.append(done))
    assert len(results) == 3
    assert server.asked == [(3, [7, 8, 9])]
    assert steps[-1] == remote.plan.steps
    assert remote.run([]) == []
    refusing: Any = Server("no worker")
    with pytest.raises(RestorationFailed, match="no worker"):
        RemoteRestorer(refusing, OPTIONS, bundle="mini", preset="fast", batch=4).run(images)


def test_the_result_of_a_job_has_the_size_limit_of_a_request(tmp_path: Path) -> None:
    path = tmp_path / "flat.png"
    path.write_bytes(encode_image(np.zeros((300, 300, 3), np.uint8), ".png"))
    options = OPTIONS.model_copy(update={"max_pixels": 100_000})
    assert check_input(path, 1, options, video=False)
    with pytest.raises(InvalidImage, match="enlarge less"):
        check_input(path, 2, options, video=False)
    (tmp_path / "input.png").write_bytes(path.read_bytes())
    small = {**setup(tmp_path, photo=PhotoOptions(upscale=2), aligned=False)}
    small["options"]["max_pixels"] = 100_000
    server: Any = Server()
    with pytest.raises(InvalidImage, match="enlarge less"):
        restore(server, small)
    assert not (tmp_path / "out").exists()


def test_frames_past_the_limit_end_a_job() -> None:
    server: Any = Server()
    reporter = Reporter(server, 2)
    reporter(0.1, "film")
    reporter(0.2, "film")
    reporter(1.0, "film")  # the item itself
    with pytest.raises(InvalidImage, match="2 frames"):
        reporter(0.3, "film")


def test_a_video_has_the_key_frames_that_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[JobOptions] = []

    def done(_worker: Any, items: Any, options: JobOptions, **_more: Any) -> Report:
        asked.append(options)
        return Report((Entry(items[0].key, "restored", "result.mp4", faces=6, warped=4),), {}, {})

    monkeypatch.setattr(process, "run_job", done)
    monkeypatch.setattr(process, "check_input", lambda *_, **_more: 9)
    server: Any = Server()
    ended = restore(server, setup(tmp_path, suffix=".mp4", aligned=False, key_frames=4))
    assert (asked[0].key_frames, asked[0].seed) == (4, 3)
    assert (ended["faces"], ended["warped"]) == (6, 4)


@pytest.mark.skipif(not importlib.util.find_spec("av"), reason="PyAV is not installed")
@pytest.mark.parametrize("limit", [{"job_frames": 3}, {"job_pixels": 64 * 48 * 3}, {"max_pixels": 3000}])
def test_a_video_past_a_limit_is_refused_from_its_header(tmp_path: Path, limit: dict[str, int]) -> None:
    import av

    with av.open(str(tmp_path / "input.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        encode(film, stream, np.zeros((5, 48, 64, 3), np.uint8))
    path = tmp_path / "input.mp4"
    assert check_input(path, 1, OPTIONS, video=True) > 5
    with pytest.raises(InvalidImage, match="limit"):
        check_input(path, 1, OPTIONS.model_copy(update=limit), video=True)
    if "job_pixels" in limit:
        assert check_input(path, 1, OPTIONS.model_copy(update={"job_pixels": 64 * 48 * 5}), video=True) == 5
