"""How long a face takes here, and how long a folder will."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.jobs import speed
from bfr.runtime.jobs.estimate import SAMPLED, Estimate, estimate
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.options import OpenOptions


@pytest.fixture
def album(tmp_path: Path, fakes: Any) -> Callable[[int], list[Any]]:
    """Photographs, every other one with a face."""

    def make(count: int) -> list[Any]:
        (tmp_path / "album").mkdir()
        for i in range(count):
            pixels = np.full((64, 64, 3), (60, 120, 60), np.uint8)
            if i % 2 == 0:
                pixels[16:48, 16:48] = fakes.face
            Image.fromarray(pixels).save(tmp_path / "album" / f"{i}.png")
        (tmp_path / "album" / "film.mp4").write_bytes(b"\0\0\0\x18ftypisom")
        return find_images([tmp_path / "album"], videos=True)

    return make


class TestEstimate:
    def test_networks_cost_what_faces_cost(
        self, small: Callable[..., Any], fakes: Any, album: Any, tmp_path: Path
    ) -> None:
        worker = PhotoRestorer(small(), detector=fakes.Squares())
        items, options = album(4), JobOptions(tmp_path / "out")
        found = estimate(worker, items, options, 1000.0)
        assert (found.images, found.sampled, found.faces, found.videos) == (4, 4, 2.0, 1)
        assert found.seconds == pytest.approx(2000, rel=0.1)
        assert found.least == found.most == found.seconds  # all were looked at
        assert not (tmp_path / "out").exists()
        assert worker.restorer.calls == []

    def test_a_part_is_looked_at(self, small: Callable[..., Any], fakes: Any, album: Any, tmp_path: Path) -> None:
        worker = PhotoRestorer(small(), detector=fakes.Squares())
        found = estimate(worker, album(4 * SAMPLED + 1), JobOptions(tmp_path / "out"), 1000.0)
        assert found.sampled == SAMPLED
        assert found.least < found.seconds < found.most

    def test_aligned_faces(self, small: Callable[..., Any], album: Any, tmp_path: Path) -> None:
        found = estimate(small(), album(3), JobOptions(tmp_path / "out"), 10.0)
        assert found.faces == 3

    def test_an_image_that_cannot_be_written_ends_nothing(
        self, small: Callable[..., Any], fakes: Any, album: Any, tmp_path: Path
    ) -> None:
        items, wide = album(2), tmp_path / "wide.png"
        Image.new("RGB", (17_000, 4)).save(wide)
        worker = PhotoRestorer(small(), PhotoOptions(upscale=4), detector=fakes.Squares())
        options = JobOptions(tmp_path / "out", format="webp")
        assert estimate(worker, [*items, *find_images([wide])], options, 10.0).faces == 1

    def test_in_words(self) -> None:
        text = str(Estimate(120, 6, 150.0, 2.0, 240.0, 180.0, 300.0, 2))
        assert text == (
            "120 images with about 150 faces: about 4 min 0 s, between 3 min 0 s and 5 min 0 s (from 6 of them, "
            "2.00 s a face); 2 videos not counted"
        )


class TestSpeed:
    @pytest.mark.usefixtures("home")
    def test_it_is_measured_once(self, small: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        restorer, opened = small(), OpenOptions()
        timed: list[Any] = []

        def take(restorer: Any) -> tuple[float, float]:
            timed.append(restorer)
            return 2.0, 0.5

        monkeypatch.setattr(speed, "_time", take)
        monkeypatch.setattr(speed, "_busy", lambda: True)
        assert speed.speed_of(restorer, opened).step == 0.5
        assert speed.kept_speed(restorer.bundle, opened) is None  # others were at work
        monkeypatch.setattr(speed, "_busy", lambda: False)
        found = speed.speed_of(restorer, opened)
        timed.clear()
        assert speed.speed_of(restorer, opened) == found
        assert speed.speed_of(restorer, OpenOptions(preset="fast")) == found
        assert timed == []
        speed.speed_of(restorer, OpenOptions(batch=2))
        assert timed
        assert found.seconds(restorer.plan) == pytest.approx(2.0 + 0.5 * restorer.plan.steps)

    @pytest.mark.usefixtures("home")
    def test_what_is_kept_and_damaged_is_measured_again(
        self, small: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        restorer, opened = small(), OpenOptions()
        monkeypatch.setattr(speed, "_busy", lambda: False)
        monkeypatch.setattr(speed, "_time", lambda _restorer: (1.0, 0.0))
        found = speed.speed_of(restorer, opened)
        speed._path(restorer.bundle, opened).write_text("[]")
        assert speed.kept_speed(restorer.bundle, opened) is None
        assert speed.speed_of(restorer, opened) == found

    def test_networks_are_counted_once(self, small: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """`network` in a result's seconds is a part of the others."""
        restorer = small()
        loop = next(iter(restorer.plan.loops))

        class Timed:
            plan, size, batch = restorer.plan, restorer.size, 2

            def __init__(self, *_: Any, **__: Any) -> None: ...

            def __enter__(self) -> "Timed":
                return self

            def __exit__(self, *_: object) -> None: ...

            def warm_up(self) -> None: ...

            def run(self, images: list[Any]) -> list[Any]:
                seconds = {"upload": 1.0, "estimate": 2.0, loop.name: 6.0, "network": 8.0}
                return [Restored(None, seconds, "fp32")] * len(images)

        monkeypatch.setattr(speed, "Restorer", Timed)
        assert speed._time(restorer) == (3.0, 6.0 / restorer.plan.steps)
