"""DiffMAC's bottleneck and AdaIN against NumPy."""

import numpy as np
import torch

from bfr.models.stages.diffmac import AlignedUNet, Bottleneck, BottleneckStage
from bfr.models.systems.diffmac import DIFFMAC
from bfr.models.weights.seeded import seed_weights

UNET = {
    "image_size": 8,
    "in_channels": 8,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "channel_mult": [1],
}


def latents(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).transpose(0, 1)


@torch.no_grad()
def test_what_is_not_kept_is_the_mean_of_its_channel() -> None:
    network = Bottleneck(channels=4, width=8)
    seed_weights(network)
    first, latent = latents()
    found = BottleneckStage(network).eval()(first, latent).double().numpy()
    share = network.share(torch.cat([first, latent], dim=1)).double().numpy()
    values = first.double().numpy()
    expected = share * values + (1.0 - share) * values.mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert 0.0 < share.min() < share.max() < 1.0


@torch.no_grad()
def test_the_state_is_aligned_with_the_features_of_each_place() -> None:
    network = AlignedUNet(channels=4, unet=UNET).eval()
    seed_weights(network)
    seen = []
    network.unet.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    x, features = latents()
    made = network(x, torch.full((2,), 10.0), features)
    assert made.shape == x.shape
    modulation = network.modulation(features).double().numpy()
    values = x.double().numpy()
    mean, var = values.mean(axis=(2, 3), keepdims=True), values.var(axis=(2, 3), keepdims=True)
    expected = (values - mean) / np.sqrt(var + 1e-5) * (1.0 + modulation[:, :4]) + modulation[:, 4:]
    assert torch.equal(seen[0][:, :4], x)
    np.testing.assert_allclose(seen[0][:, 4:].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_it_says_that_nothing_is_published() -> None:
    assert not DIFFMAC.published
    assert "as its paper describes it" in DIFFMAC.title
