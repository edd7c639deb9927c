"""The Pareto front, what is read off it, and whole runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from bfr.benchmarks.quality import pareto
from bfr.benchmarks.quality import pareto_results as r
from bfr.benchmarks.quality.faces import DegradedFace, Pictures
from bfr.benchmarks.quality.pareto_report import as_markdown, as_png
from bfr.benchmarks.quality.pareto_results import EQUAL_DB, Allowance, Candidate, Study, drift, front, read_off
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import NoiseSchedule, Preset
from bfr.runtime.errors import InvalidOption, RestorationFailed
from bfr.runtime.restore.restorer import Restorer

TRUTH = {"psnr_db": 25.0, "ssim": 0.8, "haar_psi": 0.7, "sharpness": 0.9, "correlation": 0.4}
FACTS = {
    "bundle": {"system": "tiny", "hash": "0" * 64, "image_size": 32},
    "backend": "b",
    "threads": 1,
    "machine": {"CPU": "a CPU"},
    "level": "mild",
    "degradation": "d",
    "images": 3,
    "seed": 1,
    "other_seeds": [2],
    "definition": "",
    "attribution": None,
}


def candidate(calls: int, *psnr: float, solver: str = "ddim") -> Candidate:
    preset = (
        Preset.model_validate({"solver": solver, "spacing": "time", "start": 400, "steps": calls}) if calls else None
    )
    drifts = [{"psnr_db": value, "ssim": 0.9, "haar_psi": 0.9} for value in psnr]
    samples = [{"name": f"f{i}", "drift": d, "truth": TRUTH, "seconds": 0.1 + calls} for i, d in enumerate(drifts)]
    return Candidate(preset, samples)


def results(reference: Candidate, *candidates: Candidate) -> Study:
    return Study(FACTS, reference, candidates)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], []),
        ([(3, 1.0)], [0]),
        ([(0, 1.0), (2, 3.0), (4, 2.0), (8, 4.0)], [0, 1, 3]),
        ([(8, 4.0), (2, 3.0), (4, 2.0), (0, 1.0)], [3, 1, 0]),
        ([(2, 3.0), (2, 5.0), (2, 4.0)], [1]),
        ([(2, 3.0), (2, 3.0)], [0]),
        ([(4, 3.0), (2, 3.0)], [1]),  # the same for less
    ],
)
def test_front_of_points(points: Sequence[tuple[float, float]], expected: list[int]) -> None:
    assert front(points) == expected


def test_what_is_read_off_has_the_least_drift_and_ties_go_to_fewer_calls() -> None:
    reference = candidate(100, 30, 30, 30)
    short, long = candidate(4, 31, 32, 33), candidate(8, 33, 34, 35)  # always 2 dB: no tie, far apart as faces are
    found = results(reference, candidate(0, 99, 99, 99), short, long, candidate(12, 36, 36, 36))
    assert read_off(found, Allowance(10)) is long
    assert read_off(found, Allowance(7)) is short
    assert read_off(found, Allowance(3)) is None  # the estimate is no preset
    tied = candidate(6, 33.5, 33, 35)  # 0.17 dB less, give or take 0.44
    assert read_off(results(reference, short, tied, long), Allowance(10)) is tied
    same = candidate(6, 33.6, 33, 35, solver="dpmpp-2m")
    assert read_off(results(reference, tied, same, long), Allowance(10)) is same
    assert read_off(found, Allowance(10, 1.9)) is long
    assert read_off(found, Allowance(10, 2.0)) is short  # as many dB behind as it may be


def test_the_verdict_is_paired_with_the_spread() -> None:
    # Means differ by 0.5 dB and faces by 10: paired, that is certain.
    reference, below = candidate(100, 20, 30, 40), candidate(4, 19.5, 29.4, 39.6)
    found = results(reference, below)
    assert found.difference(below).mean == pytest.approx(-0.5)
    assert not found.within_spread(below)
    assert found.within_spread(candidate(4, 19, 31.2, 39.7))


def test_drift_of_equal_pictures_is_finite() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert drift(picture, picture) == pytest.approx({"psnr_db": EQUAL_DB, "ssim": 1.0, "haar_psi": 1.0})
    far = drift(np.roll(picture, 5, axis=0), picture)
    assert all(value < 0.9 * limit for value, limit in zip(far.values(), (EQUAL_DB, 1, 1), strict=True))


def test_report_and_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, calls in (("balanced", 20), ("fast", 10)):
        monkeypatch.setitem(r.PRESETS, name, Allowance(calls))
    outside, inside = candidate(2, 25, 26, 27), candidate(20, 33, 34, 35, solver="unipc-2")
    found = results(candidate(100, 30, 31, 32), candidate(0, 20, 21, 22), outside, inside)
    text = as_markdown(found)
    assert "| balanced | 20 | 0 | unipc-2, 20 steps from t = 400, spaced in time | 20 | 34.00 ± 0.58 | within |" in text
    assert "| fast | 10 | 0 | ddim, 2 steps from t = 400, spaced in time | 2 | 26.00 ± 0.58 | outside |" in text
    assert "| the estimate itself | 0 | 21.00 ± 0.58 |" in text
    assert text.count("| -10.00 ± 0.00 | outside |") == 2  # the estimate, on the front and in the full table
    with Pillow.open(BytesIO(as_png(found))) as picture:
        assert picture.size == (1200, 840)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "faces").mkdir()
    x, y = np.meshgrid(np.arange(64), np.arange(64))
    for i in range(2):
        face = np.stack([3 * x, 2 * y + 9 * i, 128 + 100 * np.sin(x * y / (40 + i))], axis=2)
        Pillow.fromarray(face.astype(np.uint8)).save(tmp_path / "faces" / f"face_{i}.png")
    return tmp_path / "faces"


def run(folder: Path, bundle: Bundle, out: Path, *options: str) -> int:
    fixed = ["--out", str(out), "--bundle", str(bundle.folder), "--backend", "onnxruntime-cpu", "--threads", "1"]
    small = ["--solvers", "ddim,unipc-2", "--spacings", "time", "--steps", "1,2", "--etas", "0,0.5"]
    return pareto.main([str(folder), *fixed, *small, *options])


def read(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "pareto.json").read_text()))


def test_a_run(tiny_bundle: Bundle, folder: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert run(folder, tiny_bundle, out) == 0
    text = (out / "pareto.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    assert str(tmp_path) not in text + (out / "pareto.json").read_text()
    found = read(out)["candidates"]
    presets = [one["preset"] and (one["preset"]["solver"], one["preset"]["eta"], one["calls"]) for one in found]
    ddim = [("ddim", eta, steps) for eta in (0.0, 0.5) for steps in (1, 2)]
    assert presets == [None, *ddim, ("unipc-2", 0.0, 1), ("unipc-2", 0.0, 2)]
    assert {one["preset"]["start"] for one in found[1:]} == {24.0}  # what the reference diffuses to
    assert [image["name"] for image in found[-1]["images"]] == ["face_0", "face_1"]
    assert f"Images: 2, medium: {read(out)['degradation']}" in text
    assert tiny_bundle.hash in text
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_a_sampler_that_fails_is_named(
    tiny_bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = pareto.restore

    def restore(restorer: Restorer, face: DegradedFace, seed: int) -> Pictures:
        if restorer.sampler.solver == "unipc-2":
            raise RestorationFailed(f"{face.name}: the result holds NaN or Inf")
        return real(restorer, face, seed)

    monkeypatch.setattr(pareto, "restore", restore)
    assert run(folder, tiny_bundle, tmp_path / "out", "--steps", "2", "--etas", "0") == RestorationFailed.exit_code
    expected = (
        "unipc-2, 2 steps from t = 24, spaced in time: face_0: the result holds NaN or Inf. Or leave this sampler"
    )
    assert expected in capsys.readouterr().err


def test_the_reference_among_the_candidates_drifts_by_nothing(
    tiny_bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    options = ("--reference", "short", "--spacings", "ddim50", "--solvers", "ddim", "--etas", "0", "--limit", "1")
    assert run(folder, tiny_bundle, tmp_path / "out", *options) == 0
    estimate, one, same = read(tmp_path / "out")["candidates"]
    assert same["drift"]["psnr_db"]["mean"] == EQUAL_DB
    assert same["within_spread"]
    assert estimate["calls"] == 0
    assert estimate["drift"]["psnr_db"]["mean"] < EQUAL_DB
    assert one["calls"] == 1
    assert read(tmp_path / "out")["read_off"]["fast"] == same["preset"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--solvers", "euler"], "--solvers 'euler' is unknown"),
        (["--spacings", "even"], "spacing 'even' is unknown"),
        (["--steps", "0"], "steps"),
        (["--steps", "two"], "--steps 'two' is not a list of numbers"),
        (["--etas", "2"], "eta 2.0 is out of range"),
        (["--start", "5000"], "start 5000 is out of range"),
        (["--other-seeds", "12345"], "each different"),
        (["--level", "worse"], "level 'worse' is unknown"),
        (["--reference", "none"], "preset 'none' is unknown"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(
    tiny_bundle: Bundle, folder: Path, tmp_path: Path, capsys: Any, options: list[str], message: str
) -> None:
    assert run(folder, tiny_bundle, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_grids_start_where_the_reference_does(tiny_bundle: Bundle) -> None:
    published = tiny_bundle.preset("reference", spacing="ddim250", start=100)
    assert pareto.start_of(tiny_bundle, published) == pytest.approx(400)
    matched = tiny_bundle.preset("reference", spacing="ddim250", start=100, matched=True)
    assert pareto.start_of(tiny_bundle, matched) == pytest.approx(396)
    grid = tiny_bundle.preset("reference", spacing="log-snr", start=123.5, steps=3)
    assert pareto.start_of(tiny_bundle, grid) == pytest.approx(123.5)
    scaled = NoiseSchedule(beta_start=0.00085, beta_end=0.012, betas="scaled-linear")
    latent = replace(tiny_bundle, manifest=tiny_bundle.manifest.model_copy(update={"schedule": scaled}))
    assert pareto.start_of(latent, published) == pytest.approx(400)


def test_a_respacing_has_as_many_calls_as_its_start(tiny_bundle: Bundle) -> None:
    choice: dict[str, Any] = {"spacings": ["ddim50"], "starts": [400], "etas": [0, 1]}
    presets = pareto.candidates(tiny_bundle, "reference", solvers=["ddpm", "ddim"], steps=[3, 5], **choice)
    found = [(p.solver, p.eta, p.calls, p.steps) for p in presets]
    expected = [("ddpm", 0, 3), ("ddpm", 0, 5), ("ddim", 0, 3), ("ddim", 0, 5), ("ddim", 1, 3), ("ddim", 1, 5)]
    assert found == [(*each, None) for each in expected]
    with pytest.raises(InvalidOption, match="start 51"):
        pareto.candidates(tiny_bundle, "reference", solvers=["ddim"], steps=[51], **choice)
