"""SPARNet: weights under spectral normalization, and sizes; the network itself is compared in tests/golden/dr2_*."""

import pytest
import torch

from bfr.models.networks.sparnet import SPARNET_HD, SPARNet
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.errors import InvalidCheckpoint

TINY = {"size": 32, "min_ch": 8, "max_ch": 16, "min_feat_size": 8, "res_depth": 1, "bottleneck_size": 16}


def network() -> SPARNet:
    made = SPARNet(**TINY).eval()
    seed_weights(made)
    return made


def test_weights_under_spectral_normalization_are_those_that_torch_computes_with() -> None:
    made = network()
    plain = torch.nn.utils.spectral_norm(torch.nn.Conv2d(3, 8, 3)).eval()
    state = {name: value for name, value in made.state_dict().items() if name != "encoder.0.conv2d.weight"} | {
        f"encoder.0.conv2d.{name}": value for name, value in plain.state_dict().items() if name != "bias"
    }
    own = made.own_weights(state)
    assert own.keys() == made.state_dict().keys()
    plain(torch.zeros(1, 3, 8, 8))  # sets `weight`
    torch.testing.assert_close(own["encoder.0.conv2d.weight"], plain.weight, rtol=1e-6, atol=0)
    assert torch.equal(own["out_conv.conv2d.weight"], made.state_dict()["out_conv.conv2d.weight"])
    del state["encoder.0.conv2d.weight_v"]
    with pytest.raises(InvalidCheckpoint, match="weight_v"):
        made.own_weights(state)


@torch.no_grad()
def test_each_image_is_enhanced_by_itself() -> None:
    images = 2.0 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1.0
    made = network()
    together = made(images)
    assert together.shape == images.shape
    for i in range(2):
        torch.testing.assert_close(made(images[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


def test_the_published_size() -> None:
    with torch.device("meta"):
        layout = SPARNet(**SPARNET_HD).state_dict()
    assert sum(value.numel() for value in layout.values()) == 85_793_412
    assert layout["encoder.4.conv2.conv2d.weight"].shape == (512, 512, 3, 3)
    assert layout["decoder.3.att_func.b1_5.conv2d.weight"].shape == (64, 102, 3, 3)
