"""The faces of a photograph beside its result, and boxes drawn around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import read_image
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs import work
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import find_images

SIDE = 32


@pytest.fixture
def folder(tmp_path: Path, fakes: Any) -> Path:
    """A photograph with a face, one that cannot be restored, and a third."""
    pixels = np.full((64, 160, 3), (60, 120, 60), np.uint8)
    for left, colour in ((10, fakes.face), (64, fakes.bad_face), (118, fakes.face)):
        pixels[16 : 16 + SIDE, left : left + SIDE] = colour
    (tmp_path / "in/sub").mkdir(parents=True)
    write_image(tmp_path / "in/sub/a.png", pixels)
    return tmp_path / "in"


def run(restorer: Any, folder: Path, out: Path, fakes: Any, *, upscale: int = 1, **options: Any) -> Any:
    worker = PhotoRestorer(restorer, PhotoOptions(upscale=upscale, restore_sharp=True), detector=fakes.Squares())
    return run_job(worker, find_images([folder], videos=True, out=out), JobOptions(out, **options)).entries


def test_each_face_is_written_as_it_was_and_restored(
    small: Callable[..., Any], folder: Path, tmp_path: Path, fakes: Any
) -> None:
    run(small(), folder, tmp_path / "out", fakes, crops=True)
    faces = tmp_path / "out/sub/a.png.faces"
    assert sorted(file.name for file in faces.iterdir()) == [
        "1.png", "1.restored.png", "2.png", "3.png", "3.restored.png",
    ]  # fmt: skip
    for name, colour in (("1.png", fakes.face), ("2.png", fakes.bad_face), ("3.restored.png", fakes.restored)):
        middle = read_image(faces / name).pixels[12:20, 12:20].reshape(-1, 3).mean(axis=0)
        assert np.abs(middle - colour).max() < 20, name


@pytest.mark.parametrize("upscale", [1, 2])
def test_boxes_are_drawn_around_the_faces(
    small: Callable[..., Any], folder: Path, tmp_path: Path, fakes: Any, upscale: int
) -> None:
    run(small(), folder, tmp_path / "plain", fakes, upscale=upscale)
    run(small(), folder, tmp_path / "boxes", fakes, upscale=upscale, boxes=True)
    plain, drawn = (read_image(tmp_path / name / "sub/a.png").pixels.astype(int) for name in ("plain", "boxes"))
    for left in (10, 64, 118):
        assert (drawn[16 * upscale, left * upscale : (left + SIDE) * upscale] == 255).all()
        assert (drawn[16 * upscale : (16 + SIDE) * upscale, (left + SIDE) * upscale] == 255).all()
    changed = (drawn != plain).any(axis=2)
    assert not changed[: 14 * upscale].any()
    assert not changed[20 * upscale : 44 * upscale, 14 * upscale : 38 * upscale].any()  # inside


def test_faces_of_an_earlier_run_are_replaced(
    small: Callable[..., Any], folder: Path, tmp_path: Path, fakes: Any
) -> None:
    faces = tmp_path / "out/sub/a.png.faces"
    faces.mkdir(parents=True)
    for name in ("7.png", "7.restored.png", "notes.png"):
        (faces / name).write_bytes(b"earlier")
    run(small(), folder, tmp_path / "out", fakes, crops=True)
    assert {file.name for file in faces.iterdir()} >= {"1.png", "notes.png"}
    assert not list(faces.glob("7*"))


def test_faces_replace_no_result_and_no_input(
    small: Callable[..., Any], folder: Path, tmp_path: Path, fakes: Any
) -> None:
    """Neither the result of an earlier run's face, nor that face where it is an input, nor what a link leads to."""
    inside = folder / "sub/a.png.faces/1.png"
    inside.parent.mkdir()
    inside.write_bytes((folder / "sub/a.png").read_bytes())
    with pytest.raises(InvalidOption, match=r"sub/a.png.faces/1.png: --crops would replace it"):
        run(small(), folder, tmp_path / "out", fakes, crops=True)

    (out := tmp_path / "again").mkdir()
    inside.parent.rename(out / "a.png.faces")
    items = find_images([folder / "sub/a.png", out / "a.png.faces/1.png"])
    worker = PhotoRestorer(small(), PhotoOptions(restore_sharp=True), detector=fakes.Squares())
    with pytest.raises(InvalidOption, match=r"1.png: --crops would replace it"):
        run_job(worker, items, JobOptions(out, crops=True))

    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.png.faces").symlink_to(out / "a.png.faces")
    with pytest.raises(InvalidOption, match="into no link"):
        run_job(worker, items[:1], JobOptions(tmp_path / "links", crops=True))


def test_faces_that_cannot_be_written_leave_the_result(
    small: Callable[..., Any], folder: Path, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no encoder")

    monkeypatch.setattr(work, "write_faces", fail)
    worker = PhotoRestorer(small(), PhotoOptions(restore_sharp=True), detector=fakes.Squares())
    (entry,) = run_job(worker, find_images([folder]), JobOptions(tmp_path / "out", crops=True)).entries
    assert (entry.status, entry.output) == ("restored", "sub/a.png")
    assert "no encoder" in str(entry.error)


@pytest.mark.parametrize(
    ("flag", "shown"), [("crops", "sub/a.png.faces/1.png"), ("compare", "sub/a.compare.png"), ("html", "report_files")]
)
def test_resuming_writes_what_is_missing_beside_results(
    small: Callable[..., Any], folder: Path, tmp_path: Path, fakes: Any, flag: str, shown: str
) -> None:
    run(small(), folder, tmp_path / "out", fakes)
    for status in ("restored", "skipped"):
        (entry,) = run(small(), folder, tmp_path / "out", fakes, resume=True, **{flag: True})
        assert (tmp_path / "out" / shown).exists()
        assert entry.status == status


def test_an_aligned_face_has_neither(small: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="--crops, --boxes is for faces of photographs"):
        run_job(small(), find_images([folder]), JobOptions(tmp_path / "out", crops=True, boxes=True))
