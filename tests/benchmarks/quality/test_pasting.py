"""The benchmark of whole photographs, on a drawn one: what it pastes, where it measures, and its report."""

from typing import Any

import cv2
import numpy as np
import pytest

from bfr.benchmarks.quality import pasting as p
from bfr.benchmarks.quality.pasting_report import margins
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.faces.geometry import crop_face, template

SIZE, SIDE = 64, 128


@pytest.fixture(scope="module")
def portrait() -> p.Portrait:
    """A head before a wall; its square has 128 pixels."""
    rng = np.random.default_rng(0)
    pixels = np.full((200, 220, 3), (150, 165, 185), np.uint8)
    cv2.ellipse(pixels, (110, 95), (44, 52), 0, 0, 360, (70, 45, 30), -1)
    cv2.ellipse(pixels, (110, 106), (32, 40), 0, 0, 360, (205, 150, 125), -1)
    texture = cv2.GaussianBlur(rng.normal(0, 14, pixels.shape).astype(np.float32), (0, 0), 1.2)
    landmarks = template(SIDE) + np.array([110, 100]) - SIDE / 2
    return p.Portrait(np.clip(pixels + texture, 0, 255).astype(np.uint8), landmarks, float(SIDE))


def pasted(portrait: p.Portrait, degradation: Degradation, side: int = SIDE, upscale: int = 1) -> p.Scores:
    cell = p.make_cell(portrait, side, upscale, degradation, SIZE)
    assert cell is not None
    crop = np.asarray(crop_face(cell.photograph, cell.matrix, SIZE), np.uint8)
    restored = cell.clean(SIZE)
    return p.score(cell, {**p.paste_others(cell, crop, restored), **p.paste_own(cell, crop, restored)}, SIZE)


def test_a_cell_is_the_photograph_at_its_size(portrait: p.Portrait) -> None:
    cell = p.make_cell(portrait, 64, 2, Degradation(), SIZE)
    assert cell is not None
    assert cell.truth.shape[:2] == tuple(2 * side for side in cell.photograph.shape[:2])
    assert np.abs(np.linalg.det(cell.matrix[:, :2])) == pytest.approx(1, abs=0.05)  # 64 pixels of 64
    assert p.make_cell(portrait, 128, 2, Degradation(), SIZE) is None  # it would be enlarged


def test_noise_is_what_the_difference_keeps_and_the_others_do_not(portrait: p.Portrait) -> None:
    scores = pasted(portrait, Degradation(noise=16))
    face = {way: of["face"][0] for way, of in scores.items() if way != "truth"}
    assert face["difference"] < face["crop"] - 1.5
    assert face["pasted"] > face["crop"] - 0.5
    assert face["detail photo"] < face["pasted"] - 1.5
    assert face["detail crop"] == pytest.approx(face["crop"], abs=0.2)


def test_only_the_head_changes(portrait: p.Portrait) -> None:
    scores = pasted(portrait, Degradation(noise=16))
    assert scores["pasted"]["change"][0] < 1 < scores["published"]["change"][0]
    assert len({of["outside"][0] for way, of in scores.items() if way != "truth"}) == 1


def test_along_the_outline_the_photograph_is_replaced(portrait: p.Portrait) -> None:
    scores = pasted(portrait, Degradation(blur=(3, 3)))
    of = {way: scores[way]["outline"][0] for way in ("published", "difference", "crop", "pasted")}
    assert of["pasted"] > max(of["difference"], of["crop"]) - 0.3
    cell = p.make_cell(portrait, SIDE, 1, Degradation(blur=(3, 3)), SIZE)
    assert cell is not None
    assert of["pasted"] > p.score(cell, {"as it is": cell.enlarged()}, SIZE)["as it is"]["outline"][0] + 3


def test_what_would_have_to_be_changed_beside_the_head(portrait: p.Portrait) -> None:
    scores = pasted(portrait, Degradation(noise=16))
    assert 11 < scores["truth"]["change"][0] < 14  # 0.8 of the deviation


def test_what_lies_beyond_a_region_does_not_count(portrait: p.Portrait) -> None:
    cell = p.make_cell(portrait, SIDE, 1, Degradation(), SIZE)
    assert cell is not None
    elsewhere, inside = (cell.truth.copy() for _ in range(2))
    elsewhere[:, : cell.truth.shape[1] // 4] ^= 255  # beside the face
    inside[60:80, 100:120] ^= 255
    scores = p.score(cell, {"elsewhere": elsewhere, "inside": inside}, SIZE)
    assert scores["elsewhere"]["face"][1] == pytest.approx(1)
    assert scores["inside"]["face"][1] < 0.99


def test_margins_are_to_the_better_of_difference_and_crop() -> None:
    def cell(**psnr: float) -> dict[str, Any]:
        return {"scores": {way: {"face": [value, 0.5]} for way, value in psnr.items()}}

    cells = [cell(difference=30, crop=28, pasted=31), cell(difference=20, crop=28, pasted=27)]
    assert margins(cells, "face", 0) == [1, -1]
    assert margins(cells, "outline", 0) == []


def test_the_report(portrait: p.Portrait, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: Any) -> None:
    monkeypatch.setattr(p, "DEGRADATIONS", {"noise 8": Degradation(noise=8)})
    monkeypatch.setattr(p, "read_portraits", lambda _folder, _limit, _size: [portrait])
    assert p.main([str(tmp_path), "--sides", "64", "--size", "64", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "pasting.md").read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    for words in ("| noise 8, 64 px, x1 |", "| noise 8, 64 px, x2 |", "| face, dB |", "| as it is |"):
        assert words in text
    assert (tmp_path / "out" / "pasting.json").is_file()
