import json
import math
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from bfr.benchmarks.publish import write_json
from bfr.benchmarks.quality import quality
from bfr.benchmarks.quality.faces import degrade, level_at, read_faces
from bfr.benchmarks.quality.geometry import MOVED, SPOILT
from bfr.benchmarks.quality.metrics import Mean, Sample, correlation, high_pass, psnr, rms, score, ssim
from bfr.benchmarks.quality.report import STAGES, Evaluation
from bfr.benchmarks.quality.sheet import Tile, contact_sheet
from bfr.models.systems.mini.degrade import LEVELS  # without `clean`
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InputNotFound, InvalidImage, InvalidOption, MissingDependency
from bfr.runtime.faces.geometry import Face, template

Image = np.ndarray


def drawn_face(size: int, turn: float = 0.0) -> Image:
    """Something with what faces have: smooth shading, edges, dark eyes, fine hair."""
    grid = np.linspace(-1, 1, size)
    x, y = np.meshgrid(grid, grid)
    face = np.stack([120 + 60 * np.exp(-2 * (x**2 + y**2)) + 20 * c * x for c in (1, 0, -1)], axis=2)
    face[x**2 + (y / 1.3) ** 2 > 0.5] = (50, 70, 90)
    hair = (y < -0.5) & (x**2 + (y / 1.3) ** 2 < 0.6)
    face[hair] = 60 + 40 * np.sin(60 * (x + turn * y))[hair][:, None]
    for eye in (-0.3, 0.3):
        face[(x - eye) ** 2 + (2 * (y + 0.15)) ** 2 < 0.02] = (30, 20, 20)
    return np.clip(face, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def face() -> Image:
    return drawn_face(256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "faces").mkdir()
    for i in range(2):
        Pillow.fromarray(drawn_face(64, turn=i)).save(tmp_path / "faces" / f"face_{i}.png")
    return tmp_path / "faces"


def test_levels_are_ordered_by_what_they_take_away(face: Image) -> None:
    inputs = [degrade("face", face, level_at(name, 256), seed=1).degraded for name in LEVELS]
    scores = [score(x, face) for x in inputs]
    for measure in ("psnr_db", "ssim", "haar_psi", "sharpness", "correlation"):
        values = [s[measure] for s in scores]
        assert values == sorted(values, reverse=True), measure
        assert len(set(values)) == 3, measure


def test_degradation_is_a_function_of_level_name_and_seed(face: Image) -> None:
    level = level_at("medium", 256)
    first = degrade("a", face, level, seed=1)
    assert np.array_equal(first.degraded, degrade("a", face, level, seed=1).degraded)
    assert not np.array_equal(first.degraded, degrade("b", face, level, seed=1).degraded)
    assert not np.array_equal(first.degraded, degrade("a", face, level, seed=2).degraded)


def test_lengths_scale_with_the_size_and_nothing_is_enlarged() -> None:
    assert level_at("severe", 256) == LEVELS["severe"]
    large, small = level_at("medium", 512), level_at("medium", 32)
    assert (large.blur, large.downsample, large.noise, large.jpeg) == ((5.0, 5.0), 8.0, 8.0, 60)
    assert small.downsample == 1.0
    with pytest.raises(InvalidOption, match="mild, medium, severe"):
        level_at("brutal", 256)


def test_psnr_by_hand() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black + np.uint8(10), black) == pytest.approx(20 * math.log10(255 / 10))
    one = black.copy()
    one[0, 0, 0] = 255  # one sample of 192 is wrong by the peak
    assert psnr(one, black) == pytest.approx(10 * math.log10(192))
    assert psnr(black, black + np.uint8(255)) == pytest.approx(0.0)  # no wrap-around of uint8
    assert psnr(black, black) == math.inf


def test_ssim_of_flat_pictures_is_its_luminance_term(face: Image) -> None:
    a, b, c1 = 100.0, 120.0, (0.01 * 255) ** 2
    flat = [np.full((16, 16, 3), level, np.uint8) for level in (a, b)]
    assert ssim(flat[0], flat[1]) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1))
    assert ssim(face, face) == pytest.approx(1.0)


def test_high_pass_of_a_wave_is_what_its_gaussian_leaves() -> None:
    """A Gaussian of sigma 1 multiplies a wave of frequency f by exp(-2 (pi f)^2)."""
    f, amplitude = 1 / 8, 50.0
    wave = 128 + amplitude * np.cos(2 * np.pi * f * np.arange(65))  # symmetrical at both ends, as the border
    picture = np.repeat(np.tile(np.rint(wave).astype(np.uint8), (65, 1))[..., None], 3, axis=2)
    left = 1 - math.exp(-2 * (math.pi * f) ** 2)
    expected = left * math.sqrt(np.mean((np.rint(wave) - 128) ** 2))
    assert rms(high_pass(picture)) == pytest.approx(expected, rel=0.01)


def test_identity_is_as_sharp_as_the_truth(face: Image) -> None:
    scores = score(face, face)
    assert scores["sharpness"] == pytest.approx(1.0)
    assert scores["correlation"] == pytest.approx(1.0)


def test_blur_lowers_sharpness(face: Image) -> None:
    values = [score(cv2.GaussianBlur(face, (0, 0), s), face)["sharpness"] for s in (0.5, 1.0, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)
    assert 1 > values[0] > 2 * values[-1]


def test_noise_wins_sharpness_but_not_correlation(face: Image) -> None:
    noise = np.random.default_rng(0).normal(0, 20, face.shape)
    noisy = score(np.clip(face + noise, 0, 255).astype(np.uint8), face)
    assert noisy["sharpness"] > 1
    assert noisy["correlation"] < 0.8
    alone = score(np.clip(128 + noise, 0, 255).astype(np.uint8), face)
    assert abs(alone["correlation"]) < 0.02


def test_a_flat_picture_has_no_detail(face: Image) -> None:
    flat = score(np.full_like(face, 77), face)
    assert flat["sharpness"] == pytest.approx(0, abs=1e-4)
    assert correlation(np.zeros((4, 4), np.float32), np.ones((4, 4), np.float32)) == 0.0


def test_mean_and_standard_error_by_hand() -> None:
    mean = Mean.of([1.0, 2.0, 6.0])
    assert mean.mean == pytest.approx(3.0)
    assert mean.error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert Mean.of([5.0]) == Mean(5.0, None)


def test_gains_are_paired_and_infinities_become_null(tmp_path: Path) -> None:
    def sample(name: str, *values: float) -> Sample:
        pairs = zip(STAGES, values, strict=True)
        return {"name": name, **{stage: {"psnr_db": value} for stage, value in pairs}, "seconds": 1.0}

    samples = [sample("a", 20, 22, 21), sample("b", 30, 32, math.inf)]
    evaluation = Evaluation(Preset(), samples, "mild", LEVELS["mild"])
    assert evaluation.gain("estimate", "input") == Mean(2.0, 0.0)  # each gained 2 dB, far apart as they are
    assert evaluation.mean("input", "psnr_db").error == pytest.approx(5.0)
    with np.errstate(invalid="ignore"):
        write_json(tmp_path / "x.json", evaluation.as_dict())
    assert json.loads((tmp_path / "x.json").read_text())["images"][1]["result"]["psnr_db"] is None


def test_sheet_shows_every_picture_pixel_by_pixel() -> None:
    tiles = [Tile(np.random.default_rng(i).integers(0, 256, (200, 200, 3), dtype=np.uint8)) for i in range(4)]
    png = contact_sheet(["one", "two"], [("a", tiles[:2]), ("b", tiles[2:])], title="sheet")
    sheet = np.asarray(Pillow.open(BytesIO(png)).convert("RGB"))
    for tile in tiles:
        y, x = np.argwhere((sheet[:-199, :-199] == tile.pixels[0, 0]).all(axis=2)).T
        assert any(np.array_equal(sheet[j : j + 200, i : i + 200], tile.pixels) for j, i in zip(y, x, strict=True))


def run(folder: Path, bundle: Bundle, out: Path, *options: str) -> dict[str, Any]:
    arguments = [str(folder), "--out", str(out), "--bundle", str(bundle.folder), "--backend", "onnxruntime-cpu"]
    assert quality.main([*arguments, "--threads", "1", *options]) == 0
    return dict(json.loads((out / "quality.json").read_text()))


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: without_seconds(v) for k, v in value.items() if "seconds" not in k and k not in ("command", "machine")
        }
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def test_end_to_end(tiny_bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    content = run(folder, tiny_bundle, out, "--preset", "short", "--attribution", "drawn by a test")
    assert [e["title"] for e in content["evaluations"]] == ["clean", "mild", "medium", "severe"]
    assert content["images"] == 2
    assert content["bundle"]["hash"] == tiny_bundle.hash
    for evaluation in content["evaluations"]:
        assert [image["name"] for image in evaluation["images"]] == ["face_0", "face_1"]
        assert evaluation["preset"]["start"] == 2
        values = [image["result"]["psnr_db"] for image in evaluation["images"]]
        assert evaluation["mean"]["result"]["psnr_db"]["mean"] == pytest.approx(np.mean(values))
        assert evaluation["seconds_per_image"] > 0
        with Pillow.open(out / f"sheet_{evaluation['title']}.png") as sheet:
            assert sheet.width > 4 * 192
    markdown = (out / "quality.md").read_text()
    for text in (tiny_bundle.hash, "seed 12345", "Images: 2", "## severe", "result - estimate", "drawn by a test"):
        assert text in markdown
    assert markdown in capsys.readouterr().out
    for path in (out / "quality.json", out / "quality.md"):
        assert str(tmp_path) not in path.read_text()
    again = run(folder, tiny_bundle, tmp_path / "again", "--preset", "short", "--attribution", "drawn by a test")
    assert without_seconds(again) == without_seconds(content)
    other = run(folder, tiny_bundle, tmp_path / "other", "--seed", "7", "--levels", "mild", "--sheet", "0")
    assert other["evaluations"][0]["mean"] != content["evaluations"][0]["mean"]
    assert not list((tmp_path / "other").glob("*.png"))


def test_one_face_scores_the_same_alone_as_among_others(tiny_bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    options = ("--levels", "medium", "--start", "2", "--sheet", "0")
    both = run(folder, tiny_bundle, tmp_path / "both", *options)
    one = run(folder, tiny_bundle, tmp_path / "one", *options, "--limit", "1")
    assert without_seconds(one["evaluations"][0]["images"]) == without_seconds(both["evaluations"][0]["images"][:1])


def test_a_clean_face_is_compared_with_itself(tiny_bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    content = run(folder, tiny_bundle, tmp_path / "out", "--levels", "clean", "--start", "2", "--sheet", "0")
    (evaluation,) = content["evaluations"]
    found = [image["result"]["psnr_db"] for image in evaluation["images"]]
    assert evaluation["least_db"]["result"] == min(found) < max(found)
    assert evaluation["gain_db"] is None
    assert list(evaluation["mean"]) == ["estimate", "result"]
    assert all(image["input"]["psnr_db"] is None for image in evaluation["images"])  # infinite: it is the truth
    markdown = (tmp_path / "out" / "quality.md").read_text()
    assert "| least PSNR, dB |" in markdown
    assert f"| {min(found):.2f} |" in markdown
    assert f"| result | {np.mean(found):.2f} ± " in markdown


class Still:
    """A detector that finds the same face in every picture."""

    name = "still"

    def detect(self, pixels: Image) -> list[Face]:
        return [Face(np.array([0, 0, 9, 9], np.float32), template(60).astype(np.float32), 1.0)]

    def refine(self, pixels: Image, face: Face) -> Face:
        return face


def test_geometry_is_a_table(
    tiny_bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "YuNet", Still)
    options = ("--start", "2", "--levels", "mild", "--sheet", "0", "--geometry")
    content = run(folder, tiny_bundle, tmp_path / "with", *options)
    assert list(content["evaluations"][0]["images"][0]["geometry"]) == [*STAGES, MOVED, SPOILT]
    markdown = (tmp_path / "with" / "quality.md").read_text()
    assert "| result | 2 of 2 | 0.0000 ± 0.0000 | 0.0000 | 0.00 ± 0.00 |" in markdown
    assert "detections by still" in markdown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "mild,worse"], "--levels 'worse' is unknown: choose from clean, mild, medium, severe"),
        (["--limit", "0"], "--limit 0 is out of range"),
        (["--sheet", "-1"], "--sheet -1 is out of range"),
        (["--seed", "-1"], "seed -1 is out of range"),
        (["--start", "5000"], "start 5000 is out of range"),
        (["--preset", "none"], "preset 'none' is unknown"),
        (["--solver", "euler"], "preset 'reference' does not allow this change: solver"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(
    tiny_bundle: Bundle,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert quality.main([str(folder), "--out", str(out), "--bundle", str(tiny_bundle.folder), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_wrong_folders_and_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="has no PNG"):
        read_faces(tmp_path, 32, None)
    Pillow.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "wide.png")
    with pytest.raises(InvalidImage, match="30 x 20"):
        read_faces(tmp_path, 32, None)
    with pytest.raises(InvalidImage, match="colour"):
        degrade("flat", np.zeros((32, 32, 3), np.uint8), LEVELS["mild"], seed=0)


def test_a_missing_package_is_named_with_its_extra(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    args = quality.main.parse_args([str(folder), "--out", str(tmp_path / "out")])
    with pytest.raises(MissingDependency, match=r"\[bench\]"):
        quality.benchmark(args)
