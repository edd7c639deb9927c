import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption

torch = pytest.importorskip("torch")

from bfr.benchmarks.quality import reuse  # noqa: E402  # it needs torch
from bfr.export.pytorch.reference import load_stage  # noqa: E402


@pytest.fixture
def unet(tiny_bundle: Bundle) -> Any:
    return load_stage(tiny_bundle, "denoiser").denoiser


def inputs(seed: int) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([30.0, 70.0])


@pytest.mark.parametrize("shallow", [1, 2])
def test_a_whole_call_is_the_unets(unet: Any, shallow: int) -> None:
    reusing = reuse.ReusingUNet(unet, shallow, every=1)
    with torch.inference_mode():
        for seed in (0, 1):
            assert torch.equal(reusing(*inputs(seed)), unet(*inputs(seed)))


def test_every_second_call_reads_what_was_stored(unet: Any) -> None:
    reusing = reuse.ReusingUNet(unet, 1, every=2)
    with torch.inference_mode():
        first, second, third = (reusing(*inputs(seed)) for seed in (0, 1, 2))
        assert torch.equal(first, unet(*inputs(0)))
        assert not torch.allclose(second, unet(*inputs(1)), atol=1e-4)  # its deep part is of another image
        assert torch.equal(third, unet(*inputs(2)))
        assert torch.equal(reusing(*inputs(2)), third)  # its deep part is of this one
        reusing.begin()
        assert torch.equal(reusing(*inputs(3)), unet(*inputs(3)))


def test_the_arithmetic_saved_is_counted(unet: Any) -> None:
    whole, outermost = reuse.gflop_of(unet, 1)
    assert 0 < outermost < reuse.gflop_of(unet, 2)[1] < whole
    with pytest.raises(InvalidOption, match="choose 1 to"):
        reuse.ReusingUNet(unet, len(unet.input_blocks), every=2)


def test_trials_are_compared_at_their_arithmetic(tiny_bundle: Bundle, tmp_path: Path) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    for i in range(2):
        cv2.imwrite(str(faces / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    options = ["--bundle", str(tiny_bundle.folder), "--start", "20", "--steps", "2", "4", "--every", "2"]
    assert reuse.main([str(faces), "--out", str(tmp_path / "out"), *options]) == 0
    content = json.loads((tmp_path / "out" / "reuse.json").read_text())
    trials = {(trial["calls"], trial["every"]): trial for trial in content["trials"]}
    assert set(trials) == {(6, 1), (6, 2), (2, 1), (4, 1), (4, 2)}
    whole = trials[6, 1]["gflop"] / 6
    assert trials[4, 1]["gflop"] == pytest.approx(4 * whole)
    assert trials[4, 2]["gflop"] == pytest.approx(2 * whole + 2 * content["share"] * whole)
    assert trials[6, 1]["psnr_db"] == [100.0, 100.0]
    assert max(trials[6, 2]["psnr_db"]) < 100.0
