"""A run over files: what is written, what is reported, what a bad file, a full disk and a kill leave."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from bfr.runtime.errors import DeviceLost, InvalidImage, InvalidOption, WriteFailed
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.files import atomic_path, write_bytes
from bfr.runtime.images.decode import read_image
from bfr.runtime.images.result import GAP
from bfr.runtime.install import install_command
from bfr.runtime.jobs import work
from bfr.runtime.jobs.cards import preview_paths
from bfr.runtime.jobs.ledger import LEDGER
from bfr.runtime.jobs.report import Report
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import Item, find_images, find_inputs
from bfr.runtime.restore.pipeline import Pipeline

GREEN = (60, 120, 60)
ARTIST = 0x013B
Array = NDArray[Any]
Maker = Callable[..., PhotoRestorer]


def picture(*squares: tuple[int, int, tuple[int, int, int]], size: tuple[int, int] = (96, 64)) -> Array:
    """(H, W, 3) uint8: green, with squares of 32 pixels at (left, top)."""
    pixels = np.full((size[1], size[0], 3), GREEN, np.uint8)
    for left, top, colour in squares:
        pixels[top : top + 32, left : left + 32] = colour
    return pixels


def save(path: Path, pixels: Array, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16:
        assert cv2.imwrite(str(path), np.ascontiguousarray(pixels[..., ::-1]))
    else:
        Pillow.fromarray(pixels).save(path, quality=95, **options)
    return path


def three(tmp_path: Path, fakes: Any, suffix: str = "png") -> Path:
    """A folder of three photographs with a face each."""
    for name in "abc":
        save(tmp_path / f"in/{name}.{suffix}", picture((20, 20, fakes.face)))
    return tmp_path / "in"


def exif() -> Pillow.Exif:
    data = Pillow.Exif()
    data[ARTIST] = "Ada"
    return data


def run(worker: Any, folder: Path, out: Path, **options: Any) -> Report:
    videos = isinstance(worker, PhotoRestorer)
    return run_job(worker, find_images([folder], videos=videos, out=out), JobOptions(out, **options))


def statuses(report: Report) -> dict[str, str]:
    return {Path(entry.source).name: entry.status for entry in report.entries}


def tree(folder: Path) -> list[str]:
    """The files below a folder, but for the ledger, which every run writes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LEDGER]
    return sorted(path.relative_to(folder).as_posix() for path in files)


def pool_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("bfr-read", "bfr-write"))]


def is_flat(pixels: Array, left: int, top: int, colour: Any) -> bool:
    """Whether the middle of a square is of one colour, nearly."""
    return bool((np.abs(pixels[top + 14 : top + 18, left + 14 : left + 18].astype(int) - colour) <= 2).all())


def grey_of(colour: Any) -> float:
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


@pytest.fixture
def mixed(tmp_path: Path, fakes: Any) -> Path:
    """One of each: see `test_a_mixed_folder`."""
    folder, face = tmp_path / "in", fakes.face
    save(folder / "two.jpeg", picture((0, 8, face), (56, 20, face)), exif=exif())
    save(folder / "none.jpg", picture(), exif=exif())
    save(folder / "deep.png", picture((20, 20, face)).astype(np.uint16) * 257)
    grey = np.full((64, 96), 90, np.uint8)
    grey[10:42, 30:62] = 255
    save(folder / "grey.png", grey)
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:5] = 40
    save(folder / "sub/alpha.webp", np.dstack([picture((40, 20, face)), alpha]), lossless=True, exact=True)
    save(folder / "scan.tiff", picture((40, 20, face)))
    whole = save(folder / "cut.png", picture((40, 20, face))).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    (folder / "empty.jpg").touch()
    return folder


def test_a_mixed_folder(photo: Maker, mixed: Path, tmp_path: Path, fakes: Any) -> None:
    out = tmp_path / "out"
    report = run(photo(batch=2), mixed, out, seed=9)
    assert statuses(report) == {
        "cut.png": "failed",
        "deep.png": "restored",
        "empty.jpg": "failed",
        "grey.png": "restored",
        "none.jpg": "no face",
        "scan.tiff": "restored",
        "alpha.webp": "restored",
        "text.png": "failed",
        "two.jpeg": "restored",
    }
    assert tree(out) == ["deep.png", "grey.png", "none.jpg", "report.json", "scan.png", "sub/alpha.webp", "two.jpg"]
    assert (out / "none.jpg").read_bytes() == (mixed / "none.jpg").read_bytes()
    two, deep, grey, alpha, scan = (
        read_image(out / name) for name in ("two.jpg", "deep.png", "grey.png", "sub/alpha.webp", "scan.png")
    )
    assert is_flat(two.pixels, 0, 8, fakes.restored)
    assert is_flat(two.pixels, 56, 20, fakes.restored)
    assert (np.abs(two.pixels[:4, 44:52].astype(int) - GREEN) <= 3).all()
    assert Pillow.open(out / "two.jpg").getexif()[ARTIST] == "Ada"
    assert deep.pixels.dtype == np.uint16
    assert is_flat(deep.pixels // 257, 20, 20, fakes.restored)
    assert (deep.pixels[:8, :8] == np.array(GREEN) * 257).all()
    assert grey.grey
    assert is_flat(grey.pixels, 30, 10, grey_of(fakes.restored))
    assert alpha.alpha is not None
    assert (alpha.alpha[:5] == 40).all()
    assert (alpha.alpha[5:] == 255).all()
    assert is_flat(scan.pixels, 40, 20, fakes.restored)

    written = json.loads((out / "report.json").read_text())
    counts = {name: count for name, count in written["counts"].items() if count}
    assert counts == {"restored": 5, "no face": 1, "failed": 3}
    assert written["settings"]["seed"] == 9
    assert written["settings"]["photo"]["upscale"] == 1
    assert written["settings"]["detector"] == "squares"
    assert written["settings"]["background"] == "lanczos"
    entries = {Path(image["source"]).name: image for image in written["images"]}
    assert [entries[name]["faces"] for name in ("two.jpeg", "none.jpg", "text.png")] == [2, 0, None]
    assert (entries["two.jpeg"]["output"], entries["alpha.webp"]["output"]) == ("two.jpg", "sub/alpha.webp")
    assert (entries["two.jpeg"]["width"], entries["two.jpeg"]["height"]) == (96, 64)
    assert {"read", "align", "network", "paste", "write"} <= entries["two.jpeg"]["seconds"].keys()
    assert "network" not in entries["none.jpg"]["seconds"]
    assert "cut.png" in entries["cut.png"]["error"]
    network = sum(image["seconds"].get("network", 0) for image in written["images"])
    assert written["network_seconds"] == pytest.approx(network, abs=0.002)


def test_aligned_faces(small: Callable[..., Any], mixed: Path, tmp_path: Path, fakes: Any) -> None:
    """Every image that can be read is a face, whole."""
    out = tmp_path / "out"
    report = run(small(4), mixed, out)
    counted = {status: report.count(status) for status in ("restored", "no face", "skipped", "failed")}  # type: ignore[arg-type]
    assert counted == {"restored": 6, "no face": 0, "skipped": 0, "failed": 3}
    for name, mode in (("deep.png", None), ("grey.png", "L"), ("none.jpg", "RGB"), ("sub/alpha.webp", "RGBA")):
        image = read_image(out / name)
        assert image.pixels.shape == (64, 96, 3)
        colour = grey_of(fakes.restored) if mode == "L" else np.array(fakes.restored)
        assert (np.abs(image.pixels // (257 if mode is None else 1) - colour) <= 2).all()
        assert image.pixels.dtype == (np.uint16 if mode is None else np.uint8)
        if mode:
            assert Pillow.open(out / name).mode == mode
    settings = json.loads((out / "report.json").read_text())["settings"]
    assert not {"photo", "detector", "background"} & settings.keys()


@pytest.mark.parametrize(("image_format", "pillow"), [(".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP")])
def test_results_have_the_format_that_is_asked_for(
    photo: Maker, tmp_path: Path, fakes: Any, image_format: str, pillow: str
) -> None:
    for name in ("face.jpg", "face.png", "none.tif"):
        save(tmp_path / "in" / name, picture((20, 20, fakes.face)) if name.startswith("face") else picture())
    report = run(photo(), tmp_path / "in", tmp_path / "out", format=image_format)
    outputs = [entry.output for entry in report.entries]
    assert outputs == [f"face_jpg{image_format}", f"face_png{image_format}", f"none{image_format}"]
    assert {Pillow.open(tmp_path / "out" / str(output)).format for output in outputs} == {pillow}


class TestWithoutFaces:
    """P14: kept byte for byte where nothing else was asked for."""

    @pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.webp"])
    def test_it_is_copied(self, photo: Maker, tmp_path: Path, name: str) -> None:
        source = save(tmp_path / "in" / name, picture(), exif=exif())
        (entry,) = run(photo(), source, tmp_path / "out").entries
        assert (entry.status, entry.faces, entry.width, entry.height) == ("no face", 0, 96, 64)
        assert (tmp_path / "out" / str(entry.output)).read_bytes() == source.read_bytes()

    def test_without_metadata_it_is_encoded_anew(self, photo: Maker, tmp_path: Path) -> None:
        source = save(tmp_path / "a.jpg", picture(), exif=exif())
        run(photo(), source, tmp_path / "out", metadata=False)
        with Pillow.open(tmp_path / "out/a.jpg") as image:
            assert not image.getexif()
        assert (np.abs(read_image(tmp_path / "out/a.jpg").pixels.astype(int) - GREEN) <= 3).all()

    @pytest.mark.parametrize(("name", "real", "result"), [("a.jpg", "PNG", "a.png"), ("a.png", "JPEG", "a.jpg")])
    def test_a_result_is_what_its_content_says(
        self, photo: Maker, tmp_path: Path, name: str, real: str, result: str
    ) -> None:
        Pillow.fromarray(picture()).save(tmp_path / name, format=real)
        (entry,) = run(photo(), tmp_path / name, tmp_path / "out").entries
        assert (entry.status, entry.output) == ("no face", result)
        assert Pillow.open(tmp_path / "out" / result).format == real

    def test_it_is_enlarged(self, photo: Maker, tmp_path: Path) -> None:
        (entry,) = run(photo(upscale=2), save(tmp_path / "a.png", picture()), tmp_path / "out").entries
        assert (entry.status, entry.width, entry.height) == ("no face", 192, 128)
        assert read_image(tmp_path / "out/a.png").pixels.shape == (128, 192, 3)

    def test_a_background_network_is_applied(self, photo: Maker, tmp_path: Path) -> None:
        class Inverse:
            name = "inverse"

            def enlarge(self, pixels: Array, upscale: int) -> Array:
                return 255 - pixels

        source = save(tmp_path / "a.png", picture())
        run(photo(background=Inverse()), source, tmp_path / "out")
        assert np.array_equal(read_image(tmp_path / "out/a.png").pixels, 255 - picture())
        assert json.loads((tmp_path / "out/report.json").read_text())["settings"]["background"] == "inverse"


class TestNotFinite:
    """P6: no image is written from NaN."""

    def test_a_photograph_of_one_good_and_one_bad_face(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        pixels = picture((0, 8, fakes.face), (60, 20, fakes.bad_face))
        (entry,) = run(photo(batch=2), save(tmp_path / "a.png", pixels), tmp_path / "out").entries
        assert (entry.status, entry.faces) == ("restored", 1)
        assert str(entry.error).startswith("1 of 2 faces failed: ")
        result = read_image(tmp_path / "out/a.png").pixels
        assert is_flat(result, 0, 8, fakes.restored)
        assert np.array_equal(result[20:52, 60:92], pixels[20:52, 60:92])

    def test_nothing_is_written_where_all_faces_fail(
        self, photo: Maker, small: Callable[..., Any], tmp_path: Path, fakes: Any
    ) -> None:
        source = save(tmp_path / "in/a.png", picture((0, 8, fakes.bad_face), (60, 20, fakes.bad_face)))
        save(tmp_path / "in/b.png", picture((30, 8, fakes.face)))
        report = run(photo(batch=3), tmp_path / "in", tmp_path / "out", html=True, compare=True)
        assert statuses(report) == {"a.png": "failed", "b.png": "restored"}
        assert "NaN" in str(report.entries[0].error)
        assert report.entries[0].output is None
        assert not [name for name in tree(tmp_path / "out") if name.startswith("a")]
        save(source, np.full((32, 32, 3), fakes.bad_face, np.uint8))
        report = run(small(), source, tmp_path / "aligned")
        assert statuses(report) == {"a.png": "failed"}
        assert tree(tmp_path / "aligned") == ["report.json"]


def test_an_image_that_the_detector_refuses_is_a_failed_one(
    photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Any, pixels: Array) -> Any:
        if pixels.shape[0] == 1:
            raise InvalidImage("too thin")
        return []

    monkeypatch.setattr(fakes.Squares, "detect", refuse)
    for name, size in (("a.png", (9, 1)), ("b.png", (9, 9))):
        save(tmp_path / "in" / name, picture(size=size))
    report = run(photo(), tmp_path / "in", tmp_path / "out")
    assert [(entry.status, entry.error) for entry in report.entries] == [("failed", "too thin"), ("no face", None)]


def test_an_image_over_the_limit_of_pixels_fails_alone(photo: Maker, tmp_path: Path) -> None:
    for name, size in (("a.png", (100, 101)), ("b.png", (100, 100))):
        save(tmp_path / "in" / name, picture(size=size))
    report = run(photo(), tmp_path / "in", tmp_path / "out", max_pixels=10_000)
    assert statuses(report) == {"a.png": "failed", "b.png": "no face"}


def test_a_result_that_its_format_cannot_hold_costs_no_network(
    photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in/a.png", picture((20, 20, fakes.face), size=(9_000, 64)))
    worker = photo(upscale=2)
    monkeypatch.setattr(worker, "align", None)
    (entry,) = run(worker, tmp_path / "in", tmp_path / "out", format=".webp").entries
    assert "18000 x 128 pixels do not fit into .webp, at most 16383 a side" in str(entry.error)


def test_names_that_collide_do_not_overwrite_each_other(photo: Maker, tmp_path: Path) -> None:
    for i, name in enumerate(("a.jpg", "a.png", "A.webp", "sub/a.jpg")):
        save(tmp_path / "in" / name, picture() + np.uint8(i))
    report = run(photo(), tmp_path / "in", tmp_path / "out")
    assert sorted(str(entry.output) for entry in report.entries) == [
        "A_webp.webp",
        "a_jpg.jpg",
        "a_png.png",
        "sub/a.jpg",
    ]
    for entry in report.entries:
        assert (tmp_path / "out" / str(entry.output)).read_bytes() == Path(entry.source).read_bytes()


def test_a_comparison_shows_the_input_beside_the_result(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    source = save(tmp_path / "in/sub/a.png", picture((20, 20, fakes.face)))
    run(photo(upscale=2), tmp_path / "in", tmp_path / "out", compare=True)
    pair = read_image(tmp_path / "out/sub/a.compare.png").pixels
    result = read_image(tmp_path / "out/sub/a.png").pixels
    assert pair.shape == (128, 2 * 192 + GAP, 3)
    assert np.array_equal(pair[:, 192 + GAP :], result)
    assert (pair[:, 192 : 192 + GAP] == 255).all()
    assert np.abs(pair[::2, :192:2].astype(int) - read_image(source).pixels)[:10].max() <= 2


def test_a_comparison_replaces_no_result_and_no_input(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    save(tmp_path / "a.png", picture((20, 20, fakes.face)))
    other = save(tmp_path / "a.compare.png", picture()).read_bytes()
    run(photo(), tmp_path, tmp_path / "out", compare=True)
    assert (tmp_path / "out/a.compare.png").read_bytes() == other  # a result: the copy of the other input
    assert len(tree(tmp_path / "out")) == 5  # two results, two comparisons, the report
    run(photo(), tmp_path, tmp_path, compare=True, format="jpg")
    assert (tmp_path / "a.compare.png").read_bytes() == other
    assert (tmp_path / "a.compare.compare.png").is_file()


def test_a_file_that_changes_under_way_is_not_copied_unread(
    photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, worker = save(tmp_path / "in/a.png", picture()), photo()

    def change(_detector: Any, _pixels: Array) -> list[Any]:
        source.write_bytes(b"half of another picture")
        return []

    monkeypatch.setattr(fakes.Squares, "detect", change)
    (entry,) = run(worker, tmp_path / "in", tmp_path / "out").entries
    assert entry.status == "failed"
    assert "was changed after it was read" in str(entry.error)
    assert tree(tmp_path / "out") == ["report.json"]


def test_results_beside_their_sources_are_not_restored_again(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    save(tmp_path / "sub/a.png", picture((20, 20, fakes.face)))
    options: dict[str, Any] = {"format": "jpg", "compare": True, "crops": True, "html": True}
    run(photo(), tmp_path, tmp_path, **options)
    before = tree(tmp_path)
    again = run(photo(), tmp_path, tmp_path, resume=True, **options)
    assert statuses(again) == {"a.png": "skipped"}
    assert tree(tmp_path) == before
    found = find_inputs([tmp_path / "**/*"], out=tmp_path)
    assert [item.name for item in found.items] == ["sub/a"]
    assert found.passed_over[str(tmp_path / "sub/a.jpg")].startswith("a result of an earlier run")


class TestNames:
    """P28: no name leads out of the output folder, and one that would costs only its own file."""

    @pytest.mark.parametrize("name", ["../a", "/etc/a", "a\\b", "a\0b", "x/../../a", "a\nb"])
    def test_a_hostile_name_fails_alone(self, photo: Maker, tmp_path: Path, name: str) -> None:
        bad, good = save(tmp_path / "bad.png", picture()), save(tmp_path / "good.png", picture())
        report = run_job(photo(), [Item(bad, name), Item(good, "good")], JobOptions(tmp_path / "in" / "out"))
        assert [entry.status for entry in report.entries] == ["failed", "no face"]
        assert "rename" in str(report.entries[0].error)
        assert tree(tmp_path) == ["bad.png", "good.png", "in/out/good.png", "in/out/report.json"]

    def test_names_that_are_only_odd(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        names = ["[/red] {x} %s.png", "<img src=x>.png", "-rf.png", "a b…é.png", " .png", "A: 10:30.png"]
        for name in names:
            save(tmp_path / "in" / name, picture((20, 20, fakes.face)))
        report = run(photo(), tmp_path / "in", tmp_path / "out", html=True, compare=True)
        assert report.count("restored") == len(names)
        assert set(names) <= set(tree(tmp_path / "out"))
        page = (tmp_path / "out/report.html").read_text()
        assert "<img src=x>" not in page

    @pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
    def test_a_name_that_is_no_text(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        source = save(tmp_path / "in/x.png", picture((20, 20, fakes.face)))
        source.rename(source.with_name("\udcff.png"))
        report = run(photo(), tmp_path / "in", tmp_path / "out", html=True)
        assert (report.entries[0].status, report.entries[0].error) == ("restored", None)

    def test_a_link_out_of_the_output_folder_is_not_followed(self, photo: Maker, tmp_path: Path) -> None:
        save(tmp_path / "in/sub/a.png", picture())
        save(tmp_path / "in/b.png", picture())
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
        report = run(photo(), tmp_path / "in", tmp_path / "out")
        assert statuses(report) == {"a.png": "failed", "b.png": "no face"}
        assert tree(tmp_path / "elsewhere") == []

    def test_an_output_folder_inside_the_input_is_not_read(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        save(tmp_path / "a.png", picture((20, 20, fakes.face)))
        for _ in range(2):
            report = run(photo(), tmp_path, tmp_path / "out", compare=True, html=True)
            assert statuses(report) == {"a.png": "restored"}
        assert statuses(run(photo(), tmp_path, tmp_path / "out", resume=True)) == {"a.png": "skipped"}

    def test_a_result_never_replaces_an_input(self, photo: Maker, tmp_path: Path) -> None:
        source = save(tmp_path / "a.png", picture())
        before = source.read_bytes()
        with pytest.raises(InvalidOption, match="output"):
            run(photo(), source, tmp_path)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/a.png").hardlink_to(source)
        with pytest.raises(InvalidOption, match="output"):
            run(photo(), source, tmp_path / "out")
        assert source.read_bytes() == before
        assert tree(tmp_path) == ["a.png", "out/a.png"]

    def test_a_source_that_is_gone_fails_alone(self, photo: Maker, tmp_path: Path) -> None:
        save(tmp_path / "out/b.png", picture())
        items = [Item(tmp_path / "gone.png", "a"), Item(save(tmp_path / "b.png", picture()), "b")]
        report = run_job(photo(), items, JobOptions(tmp_path / "out"))
        assert [entry.status for entry in report.entries] == ["failed", "no face"]


def full_for(monkeypatch: pytest.MonkeyPatch, *parts: str) -> None:
    """Writing ends with a full disk, half-way, for temporary files whose name holds one of `parts`."""
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if any(part in self.name for part in parts):
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)


class TestFullDisk:
    """P15."""

    def test_nothing_partial_stays_and_the_report_says_what_was_finished(
        self, photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "out"
        full_for(monkeypatch, ".b.png.")
        with pytest.raises(WriteFailed, match="full") as caught:
            run(photo(), three(tmp_path, fakes), out)
        assert str(out) in str(caught.value)
        names = tree(out)
        assert {"a.png", "report.json"} <= set(names) <= {"a.png", "c.png", "report.json"}
        written = json.loads((out / "report.json").read_text())
        assert {image["output"] for image in written["images"]} == set(names) - {"report.json"}
        assert not pool_threads()
        monkeypatch.undo()
        report = run(photo(), tmp_path / "in", out, resume=True)
        assert report.count("failed") == 0
        assert statuses(report)["a.png"] == "skipped"
        assert statuses(report)["b.png"] == "restored"

    def test_where_the_report_does_not_fit_either(
        self, photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full_for(monkeypatch, "report.json")
        with pytest.raises(WriteFailed, match=r"report\.json"):
            run(photo(), three(tmp_path, fakes), tmp_path / "out")
        assert tree(tmp_path / "out") == []


class TestResume:
    """P13. What the ledger takes over and what it does not is in test_ledger.py."""

    @pytest.fixture
    def folder(self, tmp_path: Path, fakes: Any) -> Path:
        return three(tmp_path, fakes, "jpg")

    @pytest.fixture
    def out(self, photo: Maker, folder: Path, tmp_path: Path) -> Path:
        """What a run over the folder leaves."""
        run(photo(), folder, tmp_path / "out")
        return tmp_path / "out"

    def test_what_is_there_is_skipped_as_it_was_reported(self, photo: Maker, folder: Path, tmp_path: Path) -> None:
        (folder / "b.jpg").write_text("no image")
        first, out = run(photo(), folder, tmp_path / "out"), tmp_path / "out"
        before = (out / "a.jpg").stat().st_mtime_ns
        save(folder / "b.jpg", picture())
        (out / "c.jpg").unlink()
        worker = photo()
        report = run(worker, folder, out, resume=True)
        assert statuses(report) == {"a.jpg": "skipped", "b.jpg": "no face", "c.jpg": "restored"}
        assert report.entries[0] == dataclasses.replace(first.entries[0], status="skipped")
        assert report.entries[0].faces == 1
        assert (out / "a.jpg").stat().st_mtime_ns == before
        assert len(worker.restorer.calls) == 1  # type: ignore[attr-defined]  # the face of c.jpg
        again = run(photo(), folder, out, resume=True)
        assert again.count("skipped") == 3
        assert [entry.faces for entry in again.entries] == [1, 0, 1]
        assert json.loads((out / "report.json").read_text())["network_seconds"] == 0

    def test_other_settings_are_refused_and_named(self, photo: Maker, folder: Path, out: Path) -> None:
        before = {path: path.read_bytes() for path in out.rglob("*")}
        with pytest.raises(InvalidOption) as caught:
            run(photo(upscale=2, blend=0.5), folder, out, resume=True, seed=1, quality=80)
        for changed in ("seed: 12345 then, 1", "quality: 95 then, 80", "photo.upscale: 1 then, 2", "photo.blend: 1.0"):
            assert changed in str(caught.value)
        assert {path: path.read_bytes() for path in out.rglob("*")} == before

    def killed(self, worker: Any, folder: Path, out: Path, name: str, copy: Path, **options: Any) -> None:
        """`copy` becomes what a run that is killed when it has written `name` would leave in `out`."""

        def write(path: Path, *arguments: Any, **named: Any) -> None:
            write_bytes(path, *arguments, **named)
            if path == out / name:
                shutil.copytree(out, copy)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bfr.runtime.jobs.store.write_bytes", write)
            patch.setattr("os.cpu_count", lambda: 1)  # one writer: nothing overtakes
            run(worker, folder, out, **options)

    def test_after_a_kill_the_last_result_is_made_again(self, photo: Maker, folder: Path, tmp_path: Path) -> None:
        """Nothing is known of the one that was just written."""
        out, copy = tmp_path / "out", tmp_path / "copy"
        self.killed(photo(), folder, out, "b.jpg", copy, seed=3)
        assert tree(copy) == ["a.jpg", "b.jpg", "report.json"]
        with pytest.raises(InvalidOption, match=r"seed.*3.*4"):
            run(photo(), folder, copy, resume=True, seed=4)
        report = run(photo(), folder, copy, resume=True, seed=3)
        assert statuses(report) == {"a.jpg": "skipped", "b.jpg": "restored", "c.jpg": "restored"}
        assert tree(copy) == tree(out)

    def test_a_kill_during_a_resumed_run_keeps_what_was_known(
        self, photo: Maker, folder: Path, out: Path, tmp_path: Path
    ) -> None:
        (out / "b.jpg").unlink()
        (out / "c.jpg").unlink()
        self.killed(photo(), folder, out, "b.jpg", tmp_path / "copy", resume=True)
        report = run(photo(), folder, tmp_path / "copy", resume=True)
        assert (report.entries[0].status, report.entries[0].faces) == ("skipped", 1)

    def test_results_of_a_run_before_the_killed_one_are_not_taken(
        self, photo: Maker, folder: Path, out: Path, tmp_path: Path
    ) -> None:
        """They were made with other settings, and would pass for those of the run that goes on."""
        copy = tmp_path / "copy"
        self.killed(photo(), folder, out, "a.jpg", copy, quality=20)
        report = run(photo(), folder, copy, resume=True, quality=20)
        assert report.count("failed") == 0
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            assert (copy / name).read_bytes() == (out / name).read_bytes()

    def test_a_failed_image_is_tried_again_though_an_older_result_lies_there(
        self, photo: Maker, folder: Path, out: Path
    ) -> None:
        good = (folder / "b.jpg").read_bytes()
        (folder / "b.jpg").write_text("no image")
        assert statuses(run(photo(), folder, out))["b.jpg"] == "failed"
        (folder / "b.jpg").write_bytes(good)
        assert statuses(run(photo(), folder, out, resume=True))["b.jpg"] == "restored"

    def test_what_changed_is_made_anew(self, photo: Maker, folder: Path, out: Path) -> None:
        """A source, a source of the same size, a result; and without the ledger all of it."""
        made = (out / "a.jpg").read_bytes()
        (out / "a.jpg").write_bytes(bytes(len(made)))
        save(folder / "b.jpg", picture())
        for path in (out / "a.jpg", folder / "c.jpg"):
            os.utime(path, ns=(0, 1))
        report = run(photo(), folder, out, resume=True)
        assert statuses(report) == {"a.jpg": "restored", "b.jpg": "no face", "c.jpg": "restored"}
        assert (out / "a.jpg").read_bytes() == made
        assert run(photo(), folder, out, resume=True).count("skipped") == 3
        (out / LEDGER).unlink()
        assert run(photo(), folder, out, resume=True).count("skipped") == 0

    def test_a_result_of_another_source_is_not_skipped(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        for folder in ("one", "two"):
            source = save(tmp_path / folder / "a.png", picture((20, 20, fakes.face)))
            report = run(photo(), source, tmp_path / "out", resume=True)
            assert [(entry.source, entry.status) for entry in report.entries] == [(str(source), "restored")]

    def test_a_failure_in_part_is_remembered(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        source = save(tmp_path / "a.png", picture((0, 8, fakes.face), (60, 20, fakes.bad_face)))
        (first,) = run(photo(), source, tmp_path / "out").entries
        (again,) = run(photo(), source, tmp_path / "out", resume=True).entries
        assert (again.status, again.error) == ("skipped", first.error)

    def test_what_a_killed_run_left_half_written_is_removed(
        self, photo: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save(tmp_path / "in/sub/a.png", picture())
        left = []
        for name in ("x.png", "sub/x.mp4"):
            with atomic_path(tmp_path / "out" / name) as temporary:
                temporary.touch()
                left.append(temporary)
        for path in left:
            path.touch()
        monkeypatch.setattr("bfr.runtime.files._alive", lambda _pid, _name: False)
        run(photo(), tmp_path / "in", tmp_path / "out")
        assert tree(tmp_path / "out") == sorted(["report.json", "sub/a.png", "sub/x.mp4", "x.png"])


def test_the_page_and_its_previews_also_on_resume(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    out = tmp_path / "out"
    for name in ("a.png", "sub/b.jpg", "none.jpg"):
        save(tmp_path / "in" / name, picture() if name == "none.jpg" else picture((20, 20, fakes.face)))
    (tmp_path / "in/bad.png").write_text("no image")
    run(photo(upscale=2), tmp_path / "in", out, html=True)
    for name in ("a", "sub/b", "none"):
        for path in preview_paths(name):
            with Pillow.open(out / path) as shown:
                assert (shown.format, shown.size) == ("WEBP", (192, 128))
    page = (out / "report.html").read_text()
    for name in ("a", "sub/b", "none"):
        assert all(path in page for path in preview_paths(name))
    assert "bad.png" in page
    (out / "sub/b.jpg").unlink()
    (out / "report.html").unlink()
    report = run(photo(upscale=2), tmp_path / "in", out, html=True, resume=True)
    assert report.count("skipped") == 2
    page = (out / "report.html").read_text()
    for name in ("a", "sub/b", "none"):
        assert all(path in page for path in preview_paths(name))


def test_items_that_are_found_on_the_way_and_what_is_none(photo: Maker, tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture())
    options = JobOptions(tmp_path / "out")
    report = run_job(photo(), (item for item in find_images([tmp_path])), options)  # type: ignore[arg-type]
    assert statuses(report) == {"a.png": "no face"}
    with pytest.raises(InvalidOption, match="is no Item: give what find_images returns"):
        run_job(photo(), ["a.png"], options)  # type: ignore[list-item]
    with pytest.raises(InvalidOption, match="options are JobOptions, not of type str"):
        run_job(photo(), [], "out")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="open a Restorer first"):
        run_job("mini", [], options)  # type: ignore[arg-type]


def test_progress_counts_up_to_the_number_of_inputs(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    """By the steps of the faces that are done: a group's bar moves, and never back."""
    face = fakes.face
    save(tmp_path / "in/a.png", picture(*((40 * i, 8, face) for i in range(7)), size=(280, 64)))
    save(tmp_path / "in/b.png", picture())
    save(tmp_path / "in/c.png", picture((20, 20, face)))
    told: list[float] = []
    items = find_images([tmp_path / "in"])
    run_job(photo(), items, JobOptions(tmp_path / "out"), progress=lambda done, _name: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 3
    assert 6 / 7 < max(done for done in told if done < 1) < 1
    assert len(told) > 7 * 2


def test_videos_need_photographs_and_pyav(
    photo: Maker, small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either fails the video alone."""
    (tmp_path / "v.mp4").touch()
    items = [Item(tmp_path / "v.mp4", "v"), Item(save(tmp_path / "a.png", picture()), "a")]
    report = run_job(small(), items, JobOptions(tmp_path / "aligned"))
    assert [entry.status for entry in report.entries] == ["failed", "restored"]
    assert "--aligned" in str(report.entries[0].error)
    for module in ("restore", "read", "write", "streams"):
        monkeypatch.delitem(sys.modules, f"bfr.runtime.video.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "av", None)
    report = run_job(photo(), items, JobOptions(tmp_path / "photos"))
    assert [entry.status for entry in report.entries] == ["failed", "no face"]
    assert install_command("video") in str(report.entries[0].error)


@pytest.mark.parametrize("found", [True, False])
def test_an_interrupt_leaves_a_report_and_no_thread(photo: Maker, tmp_path: Path, fakes: Any, found: bool) -> None:
    """Between two steps of the networks, and where there is nothing for them."""
    for i in range(20):
        save(tmp_path / f"in/{i}.png", picture((20, 20, fakes.face)) if found else picture())

    def progress(done: float, _name: str) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as caught:
        run_job(photo(), find_images([tmp_path / "in"]), JobOptions(out), progress=progress)
    assert not pool_threads()
    del caught
    written = json.loads((out / "report.json").read_text())
    assert {image["output"] for image in written["images"]} == set(tree(out)) - {"report.json"}
    assert 1 <= len(written["images"]) < 20


def test_an_input_counts_the_pixels_of_its_result(
    photo: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its header alone; a file without one counts none."""
    counted = []
    save(tmp_path / "in/a.png", picture())
    (tmp_path / "in/b.png").write_text("no image")
    items = find_images([tmp_path / "in"])
    begin = Pipeline.__init__

    def begun(self: Any, *arguments: Any, pixels_of: Callable[[Item], int], **options: Any) -> None:
        counted.extend([pixels_of(item) for item in items])
        begin(self, *arguments, pixels_of=pixels_of, **options)

    monkeypatch.setattr(Pipeline, "__init__", begun)
    run_job(photo(upscale=2), items, JobOptions(tmp_path / "out"))
    assert counted == [192 * 128, 0]


class TestFaults:
    """Whatever is raised for one file is that file's failure, and says what it is."""

    @pytest.mark.parametrize(
        ("error", "text"),
        [
            (cv2.error("OpenCV: (-215:Assertion failed) !ssize.empty()"), "Assertion failed"),
            (cv2.error("OpenCV: (-4:Insufficient memory) Failed to allocate 9 bytes"), "does not fit into memory"),
            (MemoryError(), "does not fit into memory"),
            (OSError(errno.EIO, "Input/output error", "b.png"), "b.png cannot be used: Input/output error"),
            (RuntimeError("odd\nand more"), "odd; report this"),
            (KeyError("x"), "KeyError"),
        ],
    )
    @pytest.mark.parametrize("stage", ["read", "align", "run", "paste", "encode"])
    def test_one_file_fails_alone(
        self,
        photo: Maker,
        tmp_path: Path,
        fakes: Any,
        monkeypatch: pytest.MonkeyPatch,
        stage: str,
        error: Exception,
        text: str,
    ) -> None:
        worker, calls = photo(batch=3), iter(range(99))

        def second(call: Callable[..., Any]) -> Callable[..., Any]:
            """It fails the second time, and for the networks wherever there is more than a face or the second one."""

            def failing(*arguments: Any, **options: Any) -> Any:
                if next(calls) == 1 or (stage == "run" and len(arguments[0]) > 1):
                    raise error
                return call(*arguments, **options)

            return failing

        where, name = {
            "read": (work, "decode_image"),
            "encode": (work, "encode_noted"),
            "align": (worker, "align"),
            "paste": (worker, "paste"),
            "run": (worker.restorer, "launch"),
        }[stage]
        monkeypatch.setattr("os.cpu_count", lambda: 1)  # one reader and one writer: in the order of the files
        monkeypatch.setattr(where, name, second(getattr(where, name)))
        report = run(worker, three(tmp_path, fakes), tmp_path / "out")
        assert (report.count("restored"), report.count("failed")) == (2, 1)
        assert text in str(next(entry.error for entry in report.entries if entry.status == "failed"))

    def test_a_lost_device_ends_the_run(
        self, photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lost(*_arguments: Any, **_options: Any) -> None:
            raise DeviceLost("an illegal address")

        for name in ("align", "paste"):
            worker = photo()
            monkeypatch.setattr(worker, name, lost)
            with pytest.raises(DeviceLost):
                run(worker, three(tmp_path, fakes), tmp_path / "out")
        assert not pool_threads()

    @pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EINVAL, errno.EISDIR, errno.EACCES])
    def test_a_name_that_cannot_be_written(
        self, photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        rename = os.replace

        def refuse(source: Path, target: Path) -> None:
            if target.name == "b.png":
                raise OSError(number, os.strerror(number), str(target))
            rename(source, target)

        monkeypatch.setattr(os, "replace", refuse)
        report = run(photo(), three(tmp_path, fakes), tmp_path / "out")
        assert statuses(report) == {"a.png": "restored", "b.png": "failed", "c.png": "restored"}
        assert tree(tmp_path / "out") == ["a.png", "c.png", "report.json"]

    def test_a_comparison_that_cannot_be_written_costs_itself_alone(
        self, photo: Maker, tmp_path: Path, fakes: Any
    ) -> None:
        (tmp_path / "out/b.compare.png").mkdir(parents=True)
        report = run(photo(), three(tmp_path, fakes), tmp_path / "out", compare=True)
        assert report.count("restored") == 3
        assert "the pictures beside it could not be written" in str(report.entries[1].error)


@pytest.mark.skipif(sys.platform == "win32", reason="names are counted in other units there")
@pytest.mark.parametrize("letter", ["m", "\u00e9", "\U0001f600"])
@pytest.mark.parametrize("spare", [0, 1, 5, 13, 21, 28])
@pytest.mark.parametrize("image_format", ["same", ".webp"])
def test_names_of_any_length(
    photo: Maker, tmp_path: Path, fakes: Any, letter: str, spare: int, image_format: str
) -> None:
    """Results and comparisons of names up to 255 bytes; what another suffix makes too long is shortened, and said."""
    face, room = picture((20, 20, fakes.face)), 255 - 4 - spare
    stem = letter * (room // len(letter.encode()))
    stem += "x" * (room - len(stem.encode()))
    for suffix in (".png", ".bmp"):  # a collision: each gets its suffix
        save(tmp_path / "short" / f"a{suffix}", face)
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "short" / f"a{suffix}", tmp_path / "in" / f"{stem}{suffix}")
    save(tmp_path / "in/z.png", face)
    out = tmp_path / "out"
    report = run(photo(), tmp_path / "in", out, format=image_format, compare=True, html=True)
    assert report.count("restored") == 3
    outputs = [str(entry.output) for entry in report.entries]
    assert len(set(outputs)) == 3
    for entry in report.entries:
        assert len(os.fsencode(str(entry.output))) <= 255
        assert (out / str(entry.output)).is_file()
        kept = Path(str(entry.output)).stem.startswith(Path(entry.source).stem)
        assert kept or "too long" in entry.notes[0]
    assert not [name for name in tree(out) if name.endswith(".part")]
    again = run(photo(), tmp_path / "in", out, format=image_format, resume=True)
    assert again.count("skipped") == 3


def test_what_is_passed_over_is_in_the_report(photo: Maker, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png", picture())
    (tmp_path / "in/notes.txt").write_bytes(b"words")
    found = find_inputs([tmp_path / "in"], out=tmp_path / "out")
    run_job(photo(), found.items, JobOptions(tmp_path / "out"), passed_over=found.passed_over)
    (one,) = json.loads((tmp_path / "out/report.json").read_text())["passed_over"]
    assert Path(one["source"]).name == "notes.txt"
    assert "convert it" in one["reason"]


def test_what_is_reduced_is_noted(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    """Once for each, where the result has less than its source; not where the file is kept byte for byte."""
    for name, pixels in (("animated.webp", picture((20, 20, fakes.face))), ("kept.webp", picture())):
        save(tmp_path / "in" / name, pixels, save_all=True, append_images=[Pillow.fromarray(255 - pixels)])
    face = picture((20, 20, fakes.face))
    save(tmp_path / "in/pages.tif", face, save_all=True, append_images=[Pillow.fromarray(255 - face)])
    report = run(photo(), tmp_path / "in", tmp_path / "out")
    assert {Path(entry.source).name: entry.notes for entry in report.entries} == {
        "animated.webp": ("the first of its 2 frames is used",),
        "kept.webp": (),
        "pages.tif": ("the first of its 2 pages is used",),
    }
    written = json.loads((tmp_path / "out/report.json").read_text())
    assert written["images"][0]["notes"] == ["the first of its 2 frames is used"]


def test_what_a_video_loses_is_noted(
    photo: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its modules' warnings stand in the report, once, without what is an error of it; and nothing of a copy."""
    restore = pytest.importorskip("bfr.runtime.video.restore")
    from bfr.runtime.video.restore import Film

    log = logging.getLogger("bfr.runtime.video.read")
    sources = [tmp_path / name for name in ("a.mp4", "b.mp4")]

    def fake(_photo: Any, source: Path, target: Path, **_options: Any) -> Film:
        log.warning("%s is transparent in places: that is lost", source)
        log.warning("%s: its sound (mp3) is re-encoded", source)
        log.warning("%s ends after 1.00 s: what can be decoded is used", source)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"film")
        return Film(4, 4, frames=9, faces=source == sources[0], error="the source ends after 1.00 s")

    monkeypatch.setattr(restore, "restore_video", fake)
    for source in sources:
        source.write_bytes(b"film")
    report = run_job(photo(), find_images(sources, videos=True), JobOptions(tmp_path / "out"))
    assert [entry.notes for entry in report.entries] == [
        ("is transparent in places: that is lost", "its sound (mp3) is re-encoded"),
        (),
    ]
    assert caplog.messages == []
    assert log.propagate
    assert not logging.getLogger("bfr.runtime.video").handlers


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
def test_a_caller_may_end_a_run_by_its_progress(
    photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever its progress raises is not the file's fault."""

    class Enough(RuntimeError):
        pass

    def progress(_done: float, _name: str) -> None:
        raise Enough

    def fake(*_arguments: Any, progress: Callable[[float], None], **_options: Any) -> None:
        progress(0.5)

    monkeypatch.setattr(pytest.importorskip("bfr.runtime.video.restore"), "restore_video", fake)
    save(tmp_path / "a.png", picture((20, 20, fakes.face))).rename(tmp_path / name)
    items = [Item(tmp_path / name, "a")]
    with pytest.raises(Enough):
        run_job(photo(), items, JobOptions(tmp_path / "out"), progress=progress)
    assert not pool_threads()
