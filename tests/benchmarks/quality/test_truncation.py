import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from bfr.benchmarks.quality import truncation
from bfr.benchmarks.quality.truncation import Scores, compare
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset

SAMPLER = Preset(solver="dpmpp-2m", spacing="log-snr", start=10, steps=2)
STARTS = np.array([1.0, 10.0, 100.0])


def made(loss: list[float]) -> Scores:
    """Two images that gain as much sharpness with each decade of the start, and lose PSNR at rates of their own."""
    decades = np.log10(STARTS)
    return Scores(
        STARTS,
        np.array(["mild", "severe"]),
        np.array([5.0, 20.0]),
        {
            "sharpness": np.stack([decades, decades]),
            "psnr_db": np.stack([30.0 - rate * decades for rate in loss]),
            "haar_psi": np.stack([0.9 - 0.01 * rate * decades for rate in loss]),
        },
    )


def test_a_start_for_each_image_gains_where_what_moves_less_loses_more() -> None:
    """Typical is 12.5; with power 1 the starts are 4 and 16: 0.4 decades less, 0.2 more than 10."""
    found = compare(made([2.0, 1.0]), SAMPLER, 1.0)
    assert found.adapt.typical == 12.5
    assert found.constant == pytest.approx(8.0, rel=1e-2)  # as sharp: the geometric mean of 4 and 16
    assert found.psnr_db == pytest.approx([2 * np.log10(2), -np.log10(2)], abs=0.02)
    assert found.haar_psi == pytest.approx([0.02 * np.log10(2), -0.01 * np.log10(2)], abs=2e-4)
    assert sum(compare(made([1.0, 2.0]), SAMPLER, 1.0).psnr_db) < 0


def test_the_benchmark_writes_what_it_found(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    for i in range(2):
        cv2.imwrite(str(faces / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    monkeypatch.setattr(truncation, "STARTS", (5.0, 50.0))
    out = tmp_path / "out"
    assert truncation.main([str(faces), "--out", str(out), "--bundle", str(tiny_bundle.folder), "--threads", "1"]) == 0
    content = json.loads((out / "truncation.json").read_text())
    assert content["levels"] == ["mild"] * 2 + ["medium"] * 2 + ["severe"] * 2
    assert np.array(content["measures"]["psnr_db"]).shape == (6, 2)
    assert [c["adapt"]["power"] for c in content["comparisons"]] == [0.5, 1.0, 1.5, 2.0]
    assert "| 2 |" in (out / "truncation.md").read_text()
