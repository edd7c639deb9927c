"""SwinIR, LaMa and the UNet against the published code's outputs and layouts."""

import pytest
import torch
from near import assert_near
from published import build, description, golden, seeded


@pytest.mark.parametrize("name", ["tiny_lama", "tiny_swinir", "tiny_unet", "tiny_unet_updown"])
def test_output_equals_the_published_code_for_every_image_of_a_batch(name: str) -> None:
    network, (*inputs, y) = seeded(name), golden(name)
    with torch.no_grad():
        assert_near(network(*inputs), y)
        assert_near(torch.cat([network(*(value[i : i + 1] for value in inputs)) for i in range(len(y))]), y)
        assert_near(network(*(value.flip(0) for value in inputs)), y.flip(0))


@pytest.mark.parametrize(
    ("name", "image_size"),
    [
        ("layout_swinir_restoration512_L1", 512),
        ("layout_lama_inpainting256", 256),
        ("layout_iddpm_ffhq512_ema500000", 512),
        ("layout_iddpm_ffhq256_ema750000", 256),
    ],
)
def test_layout_equals_the_published_checkpoint(name: str, image_size: int) -> None:
    with torch.device("meta"):
        network = build(name)
    own = {key: [list(value.shape), str(value.dtype)[6:]] for key, value in network.state_dict().items()}
    assert own == description(name)["state_dict"]
    assert network.image_size == image_size
