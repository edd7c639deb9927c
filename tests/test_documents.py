"""The Python of the README and of the pages of docs/, run as it stands, and the limits of the README."""

import re
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image as Pillow
import pytest

from bfr.runtime.cli.commands import COMMANDS
from bfr.runtime.video.formats import VideoInfo
from bfr.runtime.video.write import VideoWriter

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the Python blocks of a page in a folder of their own, one after the other; the names that they left."""
    monkeypatch.chdir(tmp_path)
    images = Path("docs/images")
    images.mkdir(parents=True)
    shutil.copy(ROOT / images / "astronaut.png", images)
    with Pillow.open(ROOT / images / "photograph.jpg") as image:
        image.reduce(2).save(images / "photograph.jpg")  # faces are found in a quarter of the time
    shutil.copy(images / "photograph.jpg", "IMG_2041.jpg")

    def run(page: str, blocks: int) -> dict[str, Any]:
        found = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
        assert len(found) == blocks
        names: dict[str, Any] = {}
        for number, block in enumerate(found):
            exec(compile(block, f"{page}, block {number}", "exec"), names)  # noqa: S102
        return names

    return run


def test_the_readme(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("README.md", 1)
    assert Pillow.open("restored.jpg").size == Pillow.open("docs/images/photograph.jpg").size
    assert len(names["result"].faces) == 1
    assert capsys.readouterr().out.startswith("[")


def test_the_page_on_python(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("docs/python.md", 3)
    assert (names["again"].pixels == names["photograph"].pixels).all()
    assert names["strong"].pixels.shape == (512, 512, 3)
    assert names["restored"][0].shape == names["faces"][0].shape
    assert "missing.jpg" in capsys.readouterr().out


def test_the_tutorial(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/tutorial.md", 1)
    assert capsys.readouterr().out.startswith("1 face, ")


def test_the_page_on_photographs(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = shutil.copy("docs/images/photograph.jpg", ".")
    Path("album").mkdir()
    shutil.copy(photograph, "album/a.jpg")
    Path("album/broken.png").write_bytes(b"no image")
    pixels = np.asarray(Pillow.open(photograph))
    info = VideoInfo(256, 256, Fraction(25), None, None, 0, 0, "", Fraction(1, 25))
    with VideoWriter(Path("film.mp4"), ".mp4", info) as writer:
        for frame in range(3):
            writer.write(pixels, frame, Fraction(1, 25))
    names = run("docs/photographs.md", 4)
    assert Pillow.open("restored.png").size == (512, 512)
    assert names["crop"].shape == (512, 512, 3)
    assert Path("restored/report.html").is_file()
    assert Path("restored.mp4").is_file()
    *_, counts, film = capsys.readouterr().out.splitlines()
    assert counts.startswith("1 [")
    assert "broken.png" in counts
    assert film == "3 3 1 None"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 100
    assert README.count("```python") == 1


def test_the_files_that_the_readme_links_are_there() -> None:
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_has_a_row() -> None:
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    rows = re.findall(r"^\| `bfr ([\w-]+)", page, re.MULTILINE)
    commands = [command for group in COMMANDS.values() for command in group]
    assert sorted(rows) == sorted(commands)


def test_the_readme_names_every_system() -> None:
    page = (ROOT / "docs" / "systems" / "README.md").read_text("utf-8")
    rows = page[page.index("## The systems") :].partition("\n## ")[0]
    systems = re.findall(r"`([a-z0-9-]+)`", " ".join(re.findall(r"^\| ([^|]+) \|", rows, re.MULTILINE)))
    assert {"mini", "difface", "osdface"} <= set(systems)
    assert [name for name in systems if f"`{name}`" not in README] == []
