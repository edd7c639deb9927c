"""The recognizer's layout, as the published code builds it, and its arithmetic."""

from typing import Any

import numpy as np
import pytest
import torch
from near import assert_near
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from bfr.models.networks.arcface import Block, IResNet
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.errors import InvalidOption

TINY: dict[str, Any] = {"layers": [1, 2, 1, 1], "widths": [4, 4, 8, 8], "image_size": 32, "embedding": 6}


def faces(batch: int, size: int = 32) -> Tensor:
    return 2.0 * torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)) - 1.0


# Tensors and parameters of arcface_torch's iresnet18 ... iresnet100: each batch norm has five tensors.
@pytest.mark.parametrize(
    ("layers", "blocks", "millions"), [(18, 8, 24.03), (34, 16, 34.14), (50, 24, 43.59), (100, 49, 65.16)]
)
def test_layout_equals_the_published_networks(layers: int, blocks: int, millions: float) -> None:
    with torch.device("meta"):
        network = IResNet(layers=layers)
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 2) == millions
    own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    # conv1 bn1 prelu; per block bn1 conv1 bn2 prelu conv2 bn3; four projections of conv and bn; bn2 fc features
    assert len(own) == (1 + 5 + 1) + blocks * (5 + 1 + 5 + 1 + 1 + 5) + 4 * 6 + (5 + 2 + 5)
    assert own["conv1.weight"] == (64, 3, 3, 3)
    assert own["prelu.weight"] == (64,)
    assert own["layer1.0.downsample.0.weight"] == (64, 64, 1, 1)
    assert own["layer1.0.downsample.1.running_var"] == (64,)
    assert own["layer2.0.bn1.weight"] == (64,)
    assert own["layer2.0.conv1.weight"] == (128, 64, 3, 3)
    assert own["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert own["layer4.1.prelu.weight"] == (512,)
    assert "layer4.1.downsample.0.weight" not in own
    assert own["bn2.num_batches_tracked"] == ()
    assert own["fc.weight"] == (512, 512 * 7 * 7)
    assert own["features.running_mean"] == (512,)


def test_a_block_equals_its_arithmetic_in_float64() -> None:
    block = Block(3, 4, stride=2, project=True).eval()
    seed_weights(block)
    x = faces(2, 8)
    state = {name: value.double().numpy() for name, value in block.state_dict().items()}

    def norm(name: str, y: NDArray[np.float64]) -> NDArray[np.float64]:
        def channel(kind: str) -> NDArray[np.float64]:
            return np.asarray(state[f"{name}.{kind}"])[:, None, None]

        unit = (y - channel("running_mean")) / np.sqrt(channel("running_var") + 1e-5)
        return np.asarray(unit * channel("weight") + channel("bias"))

    def conv(name: str, y: NDArray[np.float64], stride: int, padding: int) -> NDArray[np.float64]:
        weight = torch.from_numpy(state[f"{name}.weight"])
        return np.asarray(F.conv2d(torch.from_numpy(y), weight, stride=stride, padding=padding).numpy())

    image = x.double().numpy()
    h = norm("bn2", conv("conv1", norm("bn1", image), 1, 1))
    h = np.where(h > 0, h, h * state["prelu.weight"][:, None, None])
    h = norm("bn3", conv("conv2", h, 2, 1)) + norm("downsample.1", conv("downsample.0", image, 2, 0))
    with torch.no_grad():
        assert np.abs(block(x).numpy() - h).max() < 1e-5


def test_images_of_a_batch_are_independent() -> None:
    network = IResNet(**TINY).eval()
    seed_weights(network)
    x = faces(3)
    with torch.no_grad():
        whole = network(x)
        assert whole.shape == (3, 6)
        assert_near(torch.cat([network(face[None]) for face in x]), whole)
        assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*resize"):
        IResNet(**TINY)(faces(1, 16))


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"layers": 51}, "choose one of 18, 34, 50, 100"),
        ({"layers": [1, 1]}, "four counts"),
        ({"widths": [4, 4]}, "four widths"),
        ({"layers": [1, 0, 1, 1]}, "above 0"),
        ({"image_size": 100}, "multiple of 16"),
        ({"image_size": 0}, "multiple of 16"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InvalidOption, match=remedy):
        IResNet(**TINY | changes)
