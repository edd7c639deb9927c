"""The examples of the documentation run as they stand."""

import re
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image as Pillow
import pytest

from bfr.runtime.images.decode import read_image
from bfr.runtime.video.formats import VideoInfo
from bfr.runtime.video.write import VideoWriter

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "photographs.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photograph = Path("photograph.jpg")
    with Pillow.open(
        ROOT / "docs" / "images" / photograph
    ) as image:  # half the size: faces are found in a quarter of the time
        image.reduce(2).save(photograph)
    Path("album").mkdir()
    shutil.copy(photograph, "album/a.jpg")
    Path("album/broken.png").write_bytes(b"no image")
    pixels = np.asarray(read_image(photograph).pixels, np.uint8)
    info = VideoInfo(256, 256, Fraction(25), None, None, 0, 0, "", Fraction(1, 25))
    with VideoWriter(Path("film.mp4"), ".mp4", info) as writer:
        for frame in range(3):
            writer.write(pixels, frame, Fraction(1, 25))


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(compile(EXAMPLES[number], f"{GUIDE.name}, example {number}", "exec"), names)  # noqa: S102
    printed = capsys.readouterr().out
    expected = [
        lambda: read_image(Path("restored.png")).pixels.shape == (512, 512, 3) and "[" in printed,
        lambda: Path("restored/report.html").is_file() and "1 [" in printed and "broken.png" in printed,
        lambda: printed.split()[:3] == ["3", "3", "1"] and Path("restored.mp4").is_file(),
        lambda: np.shape(names["crop"]) == (512, 512, 3),
    ]
    assert len(EXAMPLES) == len(expected)
    assert expected[number]()
