"""`bfr restore --server`: files go to a server and come back, under the names and statuses of a run without one."""

import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from called import Called
from fake_server import FakeServer, Fault, fake_server
from PIL import Image as Pillow

from bfr.runtime.client import Client
from bfr.runtime.client import job as remote_job
from bfr.runtime.client.calls import file_headers
from bfr.runtime.client.job import run_remote_job
from bfr.runtime.errors import InvalidOption, RequestRefused, ServerUnavailable
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.images.result import GAP
from bfr.runtime.jobs.cards import preview_paths
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import Report
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.jobs.store import Store

KEY = "a-key-of-some-length"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as fake:
        yield fake


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for name in ("a.jpg", "a.png", "b.bmp", "sub/c.webp"):
        Pillow.fromarray(pixels).save(folder / name)
    return folder


def run(
    server: FakeServer, folder: Path, out: Path, *, retries: int = 5, preset: str | None = None, **options: Any
) -> Report:
    items = find_images([folder], videos=True, out=out)
    with Client(server.url, retries=retries, timeout=20) as client:
        return run_remote_job(client, items, JobOptions(out, **options), PhotoOptions(), preset=preset)


def statuses(report: Report) -> dict[str, str]:
    return {Path(entry.source).name: entry.status for entry in report.entries}


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_is_restored_by_the_server(server: FakeServer, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = run(server, album, out, seed=9)
    assert statuses(report) == dict.fromkeys(["a.jpg", "a.png", "b.bmp", "c.webp"], "restored")
    assert tree(out) == ["a_jpg.jpg", "a_png.png", "b.png", "report.json", "resume.jsonl", "sub/c.webp"]
    for path, kind in (("a_jpg.jpg", "JPEG"), ("b.png", "PNG"), ("sub/c.webp", "WEBP")):
        with Pillow.open(out / path) as image:
            assert (image.format, image.size) == (kind, (32, 24))
    content = json.loads((out / "report.json").read_text())
    assert {name: count for name, count in content["counts"].items() if count} == {"restored": 4}
    assert content["settings"]["bundle_hash"] == server.info()["bundle"]
    assert (content["backend"], content["server"]) == ("onnxruntime-cpu", server.url)
    assert content["network_seconds"] == pytest.approx(4 * 0.31)
    for entry in content["images"]:
        assert (entry["width"], entry["height"], entry["faces"]) == (32, 24, 1)
        assert {"queue", "network", "write"} <= entry["seconds"].keys()
    asked = {"seed": "9", "preset": "balanced", "faces": "all", "upscale": "1", "blend": "1.0"}
    for sent in server.posts():
        assert sent.query == {**asked, "keep_colour": "false", "restore_sharp": "false"}


def test_a_few_files_are_sent_at_once(server: FakeServer, album: Path, tmp_path: Path) -> None:
    server.delay = 0.3
    run(server, album, tmp_path / "out")
    assert 2 <= server.most_at_once <= remote_job.REQUESTS


def test_faces_that_are_not_there_or_sharp_or_fail(server: FakeServer, album: Path, tmp_path: Path) -> None:
    server.faces = 0
    assert set(statuses(run(server, album, tmp_path / "none")).values()) == {"no face"}
    server.sharp = 2
    assert {(entry.status, entry.sharp) for entry in run(server, album, tmp_path / "sharp").entries} == {
        ("already sharp", 2)
    }
    server.faces, server.failed, server.sharp = 2, 1, 0
    report = run(server, album, tmp_path / "part")
    assert {(entry.status, entry.error) for entry in report.entries} == {("restored", "1 of 3 faces failed")}


def test_a_file_that_is_bad_or_fails_ends_nothing(server: FakeServer, album: Path, tmp_path: Path) -> None:
    """A 500 costs its file; a 503 and a 504 are tried again."""
    (album / "text.png").write_text("no image")
    server.faults = [Fault(500, "the networks failed"), Fault(503, retry_after="0.05"), Fault(504)]
    report = run(server, album, tmp_path / "out")
    errors = " ".join(str(entry.error) for entry in report.entries if entry.status == "failed")
    assert (report.count("restored"), report.count("failed")) == (3, 2)
    assert "damaged or truncated" in errors
    assert "the networks failed" in errors
    assert not (tmp_path / "out" / "text.png").exists()


def test_a_server_that_goes_away_and_comes_back(server: FakeServer, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    server.faults, server.ready = [Fault(503, "draining", "0")] * 50, False
    with pytest.raises(ServerUnavailable, match="--resume"):
        run(server, album, out, retries=1)
    assert (out / "report.json").is_file()
    server.faults, server.ready = [], True
    assert run(server, album, out, resume=True).count("restored") == 4


def test_only_what_is_missing_or_changed_is_sent_again(server: FakeServer, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(server, album, out)
    (out / "b.png").unlink()
    os.utime(album / "a.png", ns=(0, 1))
    report = run(server, album, out, resume=True)
    assert statuses(report) == {"a.jpg": "skipped", "a.png": "restored", "b.bmp": "restored", "c.webp": "skipped"}
    assert len(server.posts()) == 6
    for options in ({"seed": 1}, {"preset": "best"}):
        with pytest.raises(InvalidOption, match="other settings"):
            run(server, album, out, resume=True, **options)


def test_comparisons_and_the_page_are_made_on_this_machine(server: FakeServer, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deep = np.random.default_rng(0).integers(0, 65_536, (24, 32), np.uint16)
    Pillow.fromarray(deep).save(album / "deep.png")
    report = run(server, album, out, compare=True, html=True, format=".jpg")
    assert report.count("restored") == 5
    with Pillow.open(out / "b.compare.png") as pair:
        assert pair.size == (64 + GAP, 24)
    assert (out / preview_paths("b")[1]).is_file()
    assert "before and after" in (out / "report.html").read_text()


def test_videos_are_jobs(server: FakeServer, album: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", []
    (album / "film.mp4").write_bytes(b"moving")
    (album / "torn.mkv").write_bytes(b"broken")
    items = find_images([album], videos=True, out=out)
    options = JobOptions(out, key_frames=4), PhotoOptions()
    with Client(server.url) as client:
        report = run_remote_job(client, items, *options, progress=lambda *progress: told.append(progress))
    film = next(entry for entry in report.entries if entry.source.endswith("film.mp4"))
    assert (film.status, film.output, film.faces, film.frames) == ("restored", "film.mp4", 6, 3)
    assert (out / "film.mp4").read_bytes() == b"gnivom"
    assert [sent.query["key_frames"] for sent in server.posts("/jobs")] == ["4", "4"]
    assert report.settings["key_frames"] == 4
    torn = next(entry for entry in report.entries if entry.source.endswith("torn.mkv"))
    assert (torn.status, torn.error) == ("failed", "the video is damaged: copy it again")
    assert len(server.deleted) == 2  # nothing is left on the server
    assert (4.5, "film") in told
    assert told[-1][0] == len(items)


def test_a_video_whose_preset_is_not_offered_any_more_is_given_up(
    server: FakeServer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Client.submit

    def restarted(client: Client, path: Path, **options: Any) -> Any:
        job = submit(client, path, **options)
        server.presets = {"best": 20}
        return job

    monkeypatch.setattr(Client, "submit", restarted)
    (album / "film.mp4").write_bytes(b"moving")
    (failed,) = (entry for entry in run(server, album, tmp_path / "out").entries if entry.error)
    assert "does not offer" in str(failed.error)
    assert len(server.deleted) == 1


def test_a_server_without_jobs_fails_videos_alone(server: FakeServer, album: Path, tmp_path: Path) -> None:
    server.jobs = False
    (album / "film.mp4").write_bytes(b"moving")
    report = run(server, album, tmp_path / "out")
    assert (report.count("restored"), report.count("failed")) == (4, 1)


def test_a_key_that_is_not_let_in_ends_the_run(server: FakeServer, album: Path, tmp_path: Path) -> None:
    server.key = KEY
    with pytest.raises(RequestRefused, match="API key"):
        run(server, album, tmp_path / "out")


@pytest.mark.parametrize(
    "options", [{"quality": 50}, {"metadata": False}, {"codec": "vp9"}, {"crf": 3}, {"crops": True}]
)
def test_what_a_server_does_not_take_is_refused(
    server: FakeServer, album: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidOption, match="cannot go to a server"):
        run(server, album, tmp_path / "out", **options)
    with pytest.raises(InvalidOption, match="not offered"):
        run(server, album, tmp_path / "out", preset="finest")
    assert not server.posts()


def test_the_command_sends_its_options_and_resumes(
    server: FakeServer, album: Path, tmp_path: Path, call: Called, monkeypatch: Any
) -> None:
    server.key, out, key_file = KEY, tmp_path / "out", tmp_path / "key"
    key_file.write_text(f"\n{KEY}\n")
    arguments = (
        "restore",
        album,
        "-o",
        out,
        "--server",
        server.url,
        *["--upscale", "2", "--format", "png", "--seed", "4"],
    )
    done = call(*arguments, "--api-key-file", key_file)
    assert (done.status, "4 images: 4 restored, 4 faces, in " in done.stdout) == (0, True), done.stderr
    with Pillow.open(out / "a_jpg.png") as image:
        assert image.size == (64, 48)
    monkeypatch.setenv("BFR_API_KEY", KEY)
    done = call(*arguments, "--resume")
    assert (done.status, "4 images: 4 skipped, 4 faces, in " in done.stdout) == (0, True)
    (album / "text.png").write_text("no image")
    monkeypatch.setenv("BFR_API_KEY", KEY)  # the command takes it out: decoders do without it
    done = call(*arguments, "--resume")
    assert (done.status, "4 skipped, 1 failed" in done.stdout) == (1, True), done.stderr
    assert "text.png: " in done.stderr


def test_aligned_faces(server: FakeServer, album: Path, tmp_path: Path, call: Called) -> None:
    arguments = ("restore", album / "a.png", "-o", tmp_path / "out", "--server", server.url, "--aligned")
    done = call(*arguments)
    assert (done.status, "1 image: 1 restored, in " in done.stdout) == (0, True)
    assert server.posts()[0].query == {"seed": "12345", "preset": "balanced", "mode": "aligned"}


@pytest.mark.parametrize(
    "options",
    [("--backend", "tensorrt"), ("--threads", "2"), ("--steps", "4"), ("--max-faces", "9"), ("--strip-metadata",)],
)
def test_options_of_this_machine_are_refused(
    server: FakeServer, album: Path, tmp_path: Path, call: Called, options: tuple[str, ...]
) -> None:
    assert f"{options[0]} cannot go with --server: leave it out" in call.refused(
        "restore", album, "-o", tmp_path / "out", "--server", server.url, *options
    )
    assert not server.seen


@pytest.mark.parametrize("content", [None, "\n"])
def test_a_key_file_without_a_key_is_refused(
    server: FakeServer, album: Path, tmp_path: Path, call: Called, content: str | None
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    arguments = ("restore", album, "-o", tmp_path / "out", "--server", server.url, "--api-key-file", file)
    assert "API key" in call.refused(*arguments)


def test_an_address_where_nobody_listens_is_said(album: Path, tmp_path: Path, call: Called, monkeypatch: Any) -> None:
    monkeypatch.setattr("bfr.runtime.client.calls.uniform", lambda *_: 0.0)
    done = call("restore", album, "-o", tmp_path / "out", "--server", "http://127.0.0.1:9")
    assert (done.status, "check the address" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


def test_results_are_what_the_server_sent(server: FakeServer, album: Path, tmp_path: Path) -> None:
    stream = BytesIO()
    Pillow.new("RGB", (8, 8), (1, 2, 3)).save(stream, "PNG")
    server.result = stream.getvalue()
    run(server, album, tmp_path / "out")
    assert np.asarray(Pillow.open(tmp_path / "out" / "b.png"))[0, 0].tolist() == [1, 2, 3]


def test_a_system_without_a_loop_has_no_presets(server: FakeServer, album: Path, tmp_path: Path) -> None:
    server.presets = {}
    assert run(server, album, tmp_path / "out").count("restored") == 4
    assert "preset" not in server.posts()[0].query


def test_names_of_any_length(server: FakeServer, album: Path, tmp_path: Path) -> None:
    long = 247 * "m" + ".png"
    (album / "a.png").rename(album / long)
    (album / "b.bmp").rename(album / f"{251 * 'n'}.bmp")
    out = tmp_path / "out"
    report = run(server, album, out, compare=True)
    assert report.count("restored") == 4
    assert (out / long).is_file()
    assert len([name for name in tree(out) if name.endswith(".compare.png")]) == 4
    assert run(server, album, out, resume=True).count("skipped") == 4


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error", "x"), KeyError("x")])
def test_any_fault_costs_its_own_file(
    server: FakeServer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write = Store.write

    def failing(self: Store, name: str, data: bytes) -> None:
        if name == "b.png":
            raise error
        write(self, name, data)

    monkeypatch.setattr(Store, "write", failing)
    report = run(server, album, tmp_path / "out")
    assert statuses(report) == {"a.jpg": "restored", "a.png": "restored", "b.bmp": "failed", "c.webp": "restored"}


def test_results_of_another_bundle_than_at_the_begin_are_refused(
    server: FakeServer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = Client.info
    monkeypatch.setattr(Client, "info", lambda self: {**info(self), "bundle": "0" * 64})
    report = run(server, album, tmp_path / "out")
    assert report.count("failed") == 4
    assert "another bundle" in str(report.entries[0].error)


def test_a_file_is_sent_as_what_it_is(tmp_path: Path) -> None:
    film = b"\0\0\0\x18ftypisom".ljust(700, b"\0")
    for name, kind in (("a.dat", "video/mp4"), ("b.mov", "video/quicktime"), ("c.jpg", "video/mp4")):
        (tmp_path / name).write_bytes(film)
        assert file_headers(tmp_path / name)["Content-Type"] == kind
