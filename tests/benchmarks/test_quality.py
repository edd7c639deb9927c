import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from bfr.benchmarks.metrics import correlation, psnr, score, ssim
from bfr.benchmarks.quality import LEVELS, degrade, level_at, main
from bfr.runtime.bundle import Bundle

Capture = pytest.CaptureFixture[str]
FACE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8), (0, 0), 1.5)


def test_psnr_is_what_it_is_by_hand() -> None:
    a = np.full((4, 4, 3), 100, np.uint8)
    assert psnr(a, a + np.uint8(5)) == pytest.approx(10 * np.log10(255**2 / 25))
    assert psnr(a, a) == np.inf


def test_ssim_is_one_of_equal_pictures_and_falls() -> None:
    assert ssim(FACE, FACE) == pytest.approx(1)
    assert ssim(cv2.GaussianBlur(FACE, (0, 0), 2), FACE) < 0.9


def test_sharpness_is_one_of_the_truth_and_falls_with_blur() -> None:
    values = [score(FACE, FACE)["sharpness"]]
    values += [score(cv2.GaussianBlur(FACE, (0, 0), sigma), FACE)["sharpness"] for sigma in (0.7, 1.5, 3.0)]
    assert values[0] == pytest.approx(1)
    assert all(a > b for a, b in pairwise(values))


def test_noise_is_sharp_and_gives_itself_away_by_its_correlation() -> None:
    noise = np.random.default_rng(1).normal(0, 40, FACE.shape)
    noisy = np.clip(FACE + noise, 0, 255).astype(np.uint8)
    found = score(noisy, FACE)
    assert found["sharpness"] > 1
    assert found["correlation"] < 0.7
    assert correlation(np.ones((3, 3), np.float32), np.eye(3, dtype=np.float32)) == 0


def test_levels_are_ordered_and_scale_with_the_system() -> None:
    values = [psnr(degrade("a", FACE, LEVELS[name], 1).degraded, FACE) for name in ("mild", "medium", "severe")]
    assert values[0] > values[1] > values[2]
    assert level_at("medium", 512).blur == (5.0, 5.0)
    assert level_at("medium", 512).downsample == 8.0
    assert level_at("medium", 256) == LEVELS["medium"]


def test_a_degradation_depends_on_the_name_and_the_seed() -> None:
    level = LEVELS["medium"]
    first = degrade("a", FACE, level, 1).degraded
    assert np.array_equal(first, degrade("a", FACE, level, 1).degraded)
    assert not np.array_equal(first, degrade("b", FACE, level, 1).degraded)
    assert not np.array_equal(first, degrade("a", FACE, level, 2).degraded)


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "secret-place"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(np.roll(FACE, 40 * i, axis=0)[:64, :64]).save(folder / f"face{i}.png")
    return folder


def test_a_run_writes_numbers_tables_and_sheets(tiny_bundle: Bundle, faces: Path, tmp_path: Path) -> None:
    arguments = [str(faces), "--bundle", str(tiny_bundle.folder), "--levels", "mild,medium", "--threads", "1"]
    for out in ("one", "two"):
        assert main([*arguments, "--out", str(tmp_path / out)]) == 0
    content = json.loads((tmp_path / "one" / "quality.json").read_text())
    assert content["bundle"]["hash"] == tiny_bundle.hash
    assert len(content["evaluations"]) == 2
    text = (tmp_path / "one" / "quality.md").read_text()
    assert "secret-place" not in text.replace("quality secret-place", "")
    assert str(tmp_path) not in text
    assert "result - estimate" in text
    sheets = sorted(path.name for path in (tmp_path / "one").glob("*.png"))
    assert sheets == ["sheet_medium.png", "sheet_mild.png"]

    def scores(out: str) -> list[object]:
        evaluations = json.loads((tmp_path / out / "quality.json").read_text())["evaluations"]
        return [{k: v for k, v in image.items() if k != "seconds"} for e in evaluations for image in e["images"]]

    assert scores("one") == scores("two")


def test_a_sweep_is_one_table(tiny_bundle: Bundle, faces: Path, tmp_path: Path) -> None:
    arguments = [str(faces), "--bundle", str(tiny_bundle.folder), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main([*arguments, "--sweep", "--starts", "1,3", "--etas", "0,1"]) == 0
    content = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert [(e["preset"]["start"], e["preset"]["eta"]) for e in content["evaluations"]] == [
        (1, 0.0),
        (1, 1.0),
        (3, 0.0),
        (3, 1.0),
    ]


def test_pictures_without_a_truth(tiny_bundle: Bundle, faces: Path, tmp_path: Path) -> None:
    arguments = [str(faces), "--bundle", str(tiny_bundle.folder), "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main([*arguments, "--no-truth"]) == 0
    assert "PSNR" not in (tmp_path / "out" / "quality.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [(["--levels", "awful"], "mild"), (["--start", "999"], "allows"), (["--sweep", "--etas", "x"], "numbers")],
)
def test_bad_options(
    tiny_bundle: Bundle, faces: Path, tmp_path: Path, capsys: Capture, change: list[str], message: str
) -> None:
    assert main([str(faces), "--bundle", str(tiny_bundle.folder), "--out", str(tmp_path / "out"), *change]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_bundle: Bundle) -> None:
    assert main([str(tmp_path), "--bundle", str(tiny_bundle.folder), "--out", str(tmp_path / "out")]) == 2
    assert "aligned faces" in capsys.readouterr().err
