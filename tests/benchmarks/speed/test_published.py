"""The published code as a contender: a stand-in clone has the names of the published modules around our networks."""

from pathlib import Path

import numpy as np
import pytest

from bfr.benchmarks.speed.apart import Apart, Lost
from bfr.benchmarks.speed.bench import run_bench
from bfr.benchmarks.speed.options import BenchOptions
from bfr.benchmarks.speed.player import Entry, open_player
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InputNotFound

UNET = """
import torch
from timm.models.layers import DropPath, to_2tuple, trunc_normal_

from bfr.models.networks.unet import UNet

assert isinstance(DropPath(0.1), torch.nn.Identity) and to_2tuple(8) == (8, 8) == to_2tuple((8, 8))


class UNetModel(UNet):
    def forward(self, x, t=None):
        out = super().forward(x, t)
        assert t is None or (t.dtype, out.shape[1]) == (torch.int64, 6)  # variance channels too, as published
        return out
"""
DIFFUSION = """
import torch


class Loop:
    def __init__(self, kept):
        bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.kept, self.bars = kept, bars[kept].float()

    def q_sample(self, x, t):
        bar = self.bars[t].view(-1, 1, 1, 1)
        return bar.sqrt() * x + (1 - bar).sqrt() * torch.randn_like(x)

    def ddim_sample_loop(self, model, shape, *, noise, start_timesteps, device, eta):
        x = noise
        for i in reversed(range(start_timesteps)):
            bar, before = self.bars[i], self.bars[i - 1] if i else torch.ones(())
            eps = model(x, torch.tensor([self.kept[i]] * shape[0], device=device))[:, :3]
            x0 = ((x - (1 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1, 1)
            sigma = eta * ((1 - before) / (1 - bar)).sqrt() * (1 - bar / before).sqrt()
            drawn = torch.randn_like(x)
            x = before.sqrt() * x0 + (1 - before - sigma**2).sqrt() * eps + (i > 0) * sigma * drawn
        return x


def create_gaussian_diffusion(*, steps, noise_schedule, learn_sigma, timestep_respacing):
    assert (noise_schedule, learn_sigma) == ("linear", True)
    return Loop(list(range(0, steps, steps // int(timestep_respacing.removeprefix("ddim")))))
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the modules of the published code."""
    models = tmp_path / "clone" / "models"
    models.mkdir(parents=True)
    (models / "unet.py").write_text(UNET)
    (models / "script_util.py").write_text(DIFFUSION)
    return tmp_path / "clone"


def restored(entry: Entry, batch: int) -> np.ndarray:
    """What a contender makes of the benchmark's images, in a process of its own."""
    process = Apart(open_player, entry, limit=600)
    process.call("begin", batch)
    timing = process.call("restore")
    assert 0 < timing.stages["network"] < timing.seconds
    assert {"estimate", "diffuse", "denoise"} < timing.stages.keys()
    found: np.ndarray = process.call("images")
    process.close()
    return found


@pytest.mark.slow
def test_its_loop_gets_the_bundles_weights_and_noise(clone: Path, tiny_bundle: Bundle) -> None:
    sampler = tiny_bundle.preset("reference")
    assert sampler.eta > 0  # the noise takes part
    found, expected = (
        restored(Entry(tiny_bundle.folder, name, sampler, 1, 0, own), 2)
        for name, own in (("published-cpu", clone), ("eager-cpu", None))
    )
    assert found.shape == expected.shape
    assert expected.std() > 0.01
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        (Preset(solver="dpmpp-2m", spacing="log-snr", start=400, steps=3), "no sampler `dpmpp-2m"),
        (Preset(spacing="ddim250", start=6, stop=1), "choose --preset reference"),
    ],
)
def test_a_sampler_that_it_lacks_is_said(clone: Path, tiny_bundle: Bundle, sampler: Preset, reason: str) -> None:
    process = Apart(open_player, Entry(tiny_bundle.folder, "published-cpu", sampler, 1, 0, clone), limit=600)
    with pytest.raises(Lost, match=reason):
        process.call("begin", 1)


def test_other_systems_and_other_code_are_refused(clone: Path, tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(InputNotFound, match="--published names its folder"):
        run_bench(BenchOptions(bundle=tiny_bundle.folder, out=tmp_path, published=tmp_path))
    unet, entry = clone / "models" / "unet.py", Entry(tiny_bundle.folder, "published-cpu", Preset(), 1, 0, clone)
    unet.write_text("class UNetModel:\n    def __init__(self, image_size): ...")
    with pytest.raises(
        Lost, match=r"tiny is not DifFace as it was published: its estimator, .*unexpected keyword argument"
    ):
        Apart(open_player, entry, limit=600)
    unet.unlink()
    with pytest.raises(Lost, match="no clone of DifFace as it is known: No module named"):
        Apart(open_player, entry, limit=600)
