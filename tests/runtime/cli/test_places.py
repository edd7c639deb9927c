"""Where `bfr restore` reads and writes: files, folders, patterns, standard input and output, and what is refused."""

import errno
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from called import Called
from interpreter import python
from PIL import Image

SIZE = (64, 48)


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Any) -> Path:
    """The working directory, with two photographs in which a face is found."""
    monkeypatch.chdir(tmp_path)
    for name in ("old.jpg", "other.png"):
        Image.new("RGB", SIZE, (60, 120, 60)).save(name)
    return tmp_path


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> io.BytesIO:
    """Give standard input `data`; returns what goes to standard output."""
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, write_through=True))
    return out


def test_one_photograph_goes_into_restored_and_is_named(call: Called, album: Path) -> None:
    before = Path("old.jpg").read_bytes()
    done = call("restore", "old.jpg")
    assert done.status == 0
    assert done.stdout.startswith("wrote restored/old.jpg\n1 image: ")
    assert Image.open("restored/old.jpg").size == SIZE
    assert Path("old.jpg").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "form"), [("new.jpg", "JPEG"), ("new.JPEG", "JPEG"), ("new.webp", "WEBP"), ("sub/new.png", "PNG")]
)
def test_an_image_suffix_names_a_file(call: Called, album: Path, name: str, form: str) -> None:
    done = call("restore", "old.jpg", "-o", name)
    assert done.status == 0, done.stderr
    assert f"wrote {name}\n" in done.stdout
    assert Image.open(name).format == form
    files = {path.as_posix() for path in Path().rglob("*") if path.is_file()}
    assert files == {"old.jpg", "other.png", name}


def test_a_folder_with_one_photograph_goes_into_a_file_too(call: Called, album: Path) -> None:
    Path("in").mkdir()
    Path("old.jpg").rename("in/old.jpg")
    assert call("restore", "in", "-o", "new.png").status == 0
    assert Image.open("new.png").size == SIZE


def test_an_existing_folder_with_such_a_name_stays_a_folder(call: Called, album: Path) -> None:
    Path("results.jpg").mkdir()
    assert call("restore", "old.jpg", "-o", "results.jpg").status == 0
    assert Path("results.jpg/old.jpg").is_file()


@pytest.mark.parametrize("format_", ["jpeg", ".jpeg", "JPG", "png", ".webp"])
def test_formats_are_named_with_and_without_a_dot(call: Called, album: Path, format_: str) -> None:
    assert call("restore", "other.png", "--format", format_).status == 0
    suffix = {"jpeg": "jpg"}.get(format_.lower().strip("."), format_.lower().strip("."))
    assert Path(f"restored/other.{suffix}").is_file()


def test_the_home_folder_is_put_in_where_shells_leave_it(
    call: Called, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(album / "home"))
    Path("home").mkdir()
    Path("other.png").rename("home/other.png")
    for words in (["~/*.png", "-o", "1"], ["old.jpg", "--out=~/2"], ["old.jpg", "-o=~/3"], ["old.jpg", "-o~/4"]):
        assert call("restore", *words).status == 0
    assert not Path("~").exists()
    assert {str(path.relative_to(album)) for path in album.rglob("*.[jp][pn]g") if path.parent != album} == {
        "home/other.png", "1/other.png", "home/2/old.jpg", "home/3/old.jpg", "home/4/old.jpg"
    }  # fmt: skip


def test_patterns_are_expanded(call: Called, album: Path) -> None:
    Image.new("RGB", SIZE).save("third.jpg")
    assert call("restore", "*.jpg").status == 0
    assert {path.name for path in Path("restored").glob("*.jpg")} == {"old.jpg", "third.jpg"}


class TestStandardInputAndOutput:
    def test_an_image_goes_through(self, call: Called, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = piped(monkeypatch, Path("other.png").read_bytes())
        done = call("restore", "-", "-o", "-")
        assert done.status == 0, done.stderr
        image = Image.open(io.BytesIO(out.getvalue()))
        assert (image.format, image.size) == ("PNG", SIZE)
        assert "1 image: " in done.stderr
        assert {path.name for path in Path().iterdir()} == {"old.jpg", "other.png"}

    def test_the_format_is_the_one_asked_for(self, call: Called, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = piped(monkeypatch, b"")
        assert call("restore", "other.png", "-o", "-", "--format", "webp").status == 0
        assert Image.open(io.BytesIO(out.getvalue())).format == "WEBP"

    @pytest.mark.parametrize(
        ("where", "file"), [([], "restored/stdin.jpg"), (["-o", "out"], "out/stdin.jpg"), (["-o", "x.png"], "x.png")]
    )
    def test_standard_input_goes_into_a_file(
        self, call: Called, album: Path, monkeypatch: pytest.MonkeyPatch, where: list[str], file: str
    ) -> None:
        piped(monkeypatch, Path("old.jpg").read_bytes())
        assert call("restore", "-", *where).status == 0
        assert Image.open(file).size == SIZE

    @pytest.mark.parametrize(
        ("data", "message"), [(b"", "standard input is empty"), (b"words" * 9, "standard input holds no image of PNG")]
    )
    def test_what_is_no_image_is_refused(
        self, call: Called, album: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, message: str
    ) -> None:
        piped(monkeypatch, data)
        assert message in call.refused("restore", "-", "-o", "-")

    @pytest.mark.parametrize(
        ("stream", "places", "message"),
        [
            ("stdin", ["-", "-o", "new.jpg"], "pipe one in"),
            ("stdout", ["old.jpg", "-o", "-"], "is closed: name a file"),
        ],
    )
    def test_a_stream_that_is_closed(
        self, call: Called, album: Path, monkeypatch: pytest.MonkeyPatch, stream: str, places: list[str], message: str
    ) -> None:
        monkeypatch.setattr(sys, stream, None)  # as Python has it after `<&-` and `>&-`
        assert message in call.refused("restore", *places)

    def test_a_terminal_gets_no_image(self, call: Called, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert "redirect it" in call.refused("restore", "old.jpg", "-o", "-")


def test_a_folder_that_is_a_link_to_itself_or_to_nothing(call: Called, album: Path) -> None:
    Path("loop").symlink_to("loop")
    Path("lost").symlink_to("nowhere")
    for name in ("loop", "lost"):
        assert f"{name} is a link to nothing" in call.refused("restore", ".", "-o", name)
    Path("linked").symlink_to("old.jpg")
    assert "linked is a file" in call("restore", ".", "-o", "linked").stderr


def test_a_current_folder_that_was_deleted(call: Called, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = album / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    said = call.refused("restore", album / "old.jpg", "-o", "out")
    assert said == "error: the current folder was deleted: change to another one\n"


def test_no_folder_for_temporary_files(call: Called, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")  # as Python's own

    monkeypatch.setattr(tempfile, "gettempdir", none)
    said = call.refused("restore", "old.jpg", "-o", "-")
    assert said == "error: no folder for temporary files can be written: set TMPDIR to one that can\n"


def test_what_a_killed_run_left_beside_a_file_is_deleted(call: Called, album: Path) -> None:
    script = (
        "import os, pathlib; from bfr.runtime.files import scratch_folder\n"
        "with scratch_folder(pathlib.Path('new.jpg')) as folder:\n"
        "    (folder / 'half.jpg').touch(); os._exit(9)"
    )
    python(script, status=9)
    assert {path.name for path in Path().iterdir()} > {"old.jpg", "other.png"}
    assert call("restore", "old.jpg", "-o", "new.jpg").status == 0
    assert {path.name for path in Path().iterdir()} == {"old.jpg", "other.png", "new.jpg"}


def test_a_standard_output_that_is_full_is_a_failure(
    call: Called, album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys.stdout, "write", fail)
    done = call("restore", "old.jpg")
    assert done.status == 1
    assert "No space left on device" in done.stderr
    assert Image.open("restored/old.jpg").size == SIZE


class TestNothingIsReplaced:
    def test_in_a_folder(self, call: Called, album: Path, opened: list[Any]) -> None:
        assert call("restore", "old.jpg", "other.png").status == 0
        first = Path("restored/old.jpg").read_bytes()
        Path("restored/other.png").unlink()
        opened.clear()
        said = call.refused("restore", "old.jpg", "other.png")
        assert "old.jpg in " in said
        assert "--overwrite" in said
        assert opened == []
        assert not Path("restored/other.png").exists()
        assert call("restore", "old.jpg", "--overwrite", "--format", "png").status == 0
        assert Path("restored/old.jpg").read_bytes() == first

    def test_overwrite_and_resume_go_on(self, call: Called, album: Path) -> None:
        Path("restored").mkdir()
        Path("restored/old.jpg").write_bytes(b"mine")
        for flags in ([], ["--resume"]):  # there is no earlier run to resume
            assert call("restore", "old.jpg", *flags).status == 2
            assert Path("restored/old.jpg").read_bytes() == b"mine"
        assert call("restore", "old.jpg", "--overwrite").status == 0
        assert Image.open("restored/old.jpg").size == SIZE
        done = call("restore", "old.jpg", "--resume")
        assert "1 skipped" in done.stdout
        assert "wrote" not in done.stdout

    def test_a_file(self, call: Called, album: Path) -> None:
        Path("new.jpg").write_bytes(b"mine")
        assert "new.jpg exists" in call.refused("restore", "old.jpg", "-o", "new.jpg")
        assert Path("new.jpg").read_bytes() == b"mine"
        assert call("restore", "old.jpg", "-o", "new.jpg", "--overwrite").status == 0
        assert Image.open("new.jpg").size == SIZE

    @pytest.mark.parametrize("name", ["old.jpg", "link.jpg", "hard.jpg"])
    def test_an_input_not_even_with_overwrite(self, call: Called, album: Path, name: str) -> None:
        before = Path("old.jpg").read_bytes()
        Path("link.jpg").symlink_to("old.jpg")
        Path("hard.jpg").hardlink_to("old.jpg")
        assert "is the input" in call.refused("restore", "old.jpg", "-o", name, "--overwrite")
        assert Path("old.jpg").read_bytes() == before

    def test_by_a_bulk_run(self, call: Called, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("ray")
        Path("out").mkdir()
        Path("out/old.jpg").write_bytes(b"mine")
        said = call.refused("batch", "old.jpg", "other.png", "-o", "out")
        assert "old.jpg in " in said
        assert "--overwrite" in said
        assert [path.name for path in Path("out").iterdir()] == ["old.jpg"]

    def test_by_inpainting(self, call: Called, album: Path) -> None:
        Path("restored").mkdir()
        Path("restored/old.png").write_bytes(b"mine")
        assert "old.png in " in call.refused("inpaint", "old.jpg")
        assert Path("restored/old.png").read_bytes() == b"mine"


def test_what_is_printed(call: Called, album: Path) -> None:
    done = call("restore", "old.jpg", "--quiet")
    assert (done.status, done.stdout) == (0, "")
    assert "restoring" not in done.stderr
    done = call("restore", "old.jpg", "other.png", "--overwrite", "--json")
    report = json.loads(done.stdout)
    assert [Path(image["source"]).name for image in report["images"]] == ["old.jpg", "other.png"]
    assert report == json.loads(Path("restored/report.json").read_text())
    done = call("restore", "old.jpg", "other.png", "--overwrite", "--verbose")
    assert "other.png: " in done.stderr
    assert "-> other.png" in done.stderr


def test_a_decoder_does_not_print_for_itself(call: Called, album: Path) -> None:
    exif = Image.Exif()
    exif.update({0x010F: "Camera", 0x0132: "2020:01:01 00:00:00"})
    Image.new("RGB", SIZE).save("cut.jpg", exif=exif.tobytes()[:-9])
    for flags in ([], ["--verbose"]):
        with warnings.catch_warnings(record=True) as printed:
            warnings.simplefilter("always")
            done = call("restore", "cut.jpg", "-o", f"out{len(flags)}", "--upscale", "2", *flags)
        assert "EXIF data are broken" in done.stderr
        assert bool(printed) == bool(flags)


def test_a_photograph_without_a_face_says_what_to_do(call: Called, album: Path, fakes: Any) -> None:
    done = call("restore", "old.jpg", "other.png")
    assert done.status == 0
    assert "no face was found in old.jpg, other.png, in any orientation: they were kept as they are" in done.stderr
    done = call("restore", "old.jpg", "-o", "large", "--upscale", "2")
    assert "in any orientation: it was only enlarged" in done.stderr


class TestSeveralPresets:
    def test_each_has_a_folder_and_one_page_shows_all(self, call: Called, album: Path, opened: Any) -> None:
        done = call("restore", "old.jpg", "other.png", "--preset", "fast,reference", "--html", "--json")
        assert done.status == 0, done.stderr
        assert [one["preset"] for one in opened] == ["fast", "reference"]
        assert list(json.loads(done.stdout)) == ["fast", "reference"]
        page = Path("restored/report.html").read_text()
        for preset in ("fast", "reference"):
            assert Path(f"restored/{preset}/old.jpg").is_file()
            assert f'<a href="{preset}/old.jpg">{preset}</a>' in page
            assert f'src="{preset}/report_files/' in page
        assert page.count('<div class="frame row">') == 2
        assert "--overwrite" in call.refused("restore", "old.jpg", "--preset", "fast,reference")

    def test_the_estimate_of_each(
        self, call: Called, album: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bfr.runtime.jobs.speed._time", lambda _restorer: (0.0, 10.0))
        done = call("restore", "old.jpg", "--estimate", "--preset", "fast,reference", "--json")
        assert done.status == 0, done.stderr
        assert {preset: one["images"] for preset, one in json.loads(done.stdout).items()} == {"fast": 1, "reference": 1}
        assert call("restore", "old.jpg", "--estimate").stdout.startswith("1 image with about ")
        assert not Path("restored").exists()
