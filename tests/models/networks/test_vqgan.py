"""The autoencoder's layout, as latent diffusion's configurations build it, and the quantiser's arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from near import assert_near
from small import LEVELS
from torch import Tensor, nn
from torch.nn import functional as F

import bfr.models.networks.vqgan as module
from bfr.export.onnx.graph import export_graph
from bfr.models.networks.autoencoder import AttnBlock, Downsample, Upsample
from bfr.models.networks.vqgan import VectorQuantizer, VQModel
from bfr.models.weights.checkpoint import check_layout
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.errors import InvalidOption

TINY = {**LEVELS, "z_channels": 4, "n_embed": 16, "embed_dim": 3}
# latent diffusion's vq-f4 (`vq-f4-ffhq-256.yaml`) and taming-transformers' f16 with 1,024 codes
F4: dict[str, Any] = {
    "ch": 128,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "resolution": 256,
    "z_channels": 3,
    "n_embed": 8192,
    "embed_dim": 3,
}
F16: dict[str, Any] = F4 | {
    "ch_mult": [1, 1, 2, 2, 4],
    "attn_resolutions": [16],
    "z_channels": 256,
    "n_embed": 1024,
    "embed_dim": 256,
}


def layout(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = VQModel(**options)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def build(**changes: Any) -> VQModel:
    network = VQModel(**TINY | changes).eval()
    seed_weights(network)
    return network


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_layout_of_f4_equals_the_published_configuration() -> None:
    own = layout(F4)
    assert own["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert own["encoder.down.0.block.1.conv2.weight"] == (128, 128, 3, 3)
    assert own["encoder.down.1.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert own["encoder.down.1.downsample.conv.weight"] == (256, 256, 3, 3)
    assert own["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert own["encoder.conv_out.weight"] == (3, 512, 3, 3)  # double_z is false
    assert own["decoder.conv_in.weight"] == (512, 3, 3, 3)
    assert own["decoder.up.2.block.2.norm1.weight"] == (512,)
    assert own["decoder.up.1.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert own["decoder.up.1.upsample.conv.weight"] == (256, 256, 3, 3)
    assert own["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert own["quantize.embedding.weight"] == (8192, 3)
    assert own["quant_conv.weight"] == own["post_quant_conv.weight"] == (3, 3, 1, 1)
    absent = ("encoder.down.2.downsample", "decoder.up.0.upsample", "encoder.down.0.attn", "encoder.down.0.block.0.nin")
    assert not [name for name in own if name.startswith(absent) or "temb" in name]
    # 8 tensors a residual block and 10 an attention; 2 a shortcut, a resampling and a convolution or norm of its own
    encoder, decoder = (6 + 2) * 8 + 10 + 2 * 2 + 2 * 2 + 3 * 2, (9 + 2) * 8 + 10 + 2 * 2 + 2 * 2 + 3 * 2
    assert len(own) == encoder + decoder + 1 + 4


def test_layout_of_f16_has_attention_at_16() -> None:
    own = layout(F16)
    assert own["encoder.down.4.attn.1.proj_out.weight"] == (512, 512, 1, 1)
    assert own["decoder.up.4.attn.2.norm.weight"] == (512,)
    assert own["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert not [name for name in own if ".attn.2." in name and name.startswith("encoder")]
    assert not [name for name in own if name.startswith(("encoder.down.3.attn", "decoder.up.3.attn"))]


def test_parts_hold_their_share_of_a_checkpoint() -> None:
    whole = {**build().state_dict(), "loss.discriminator.main.0.weight": torch.zeros(1), "loss.logvar": torch.zeros(1)}
    encoder, decoder = build(parts="encoder"), build(parts="decoder")
    names = set()
    for part in (encoder, decoder):
        own = part.own_weights(whole)
        check_layout(part, own, "checkpoint")
        names |= set(own)
    assert names == {name for name in whole if not name.startswith("loss.")}
    assert any(name.startswith("quantize") for name in decoder.state_dict())


def test_encoding_and_decoding_keep_the_sizes() -> None:
    network = build()
    x = random(2, 3, 16, 16)
    with torch.no_grad():
        z = network.encode(x)
        assert z.shape == (2, 3, 8, 8)
        assert (network.latent_size, network.embed_dim) == (8, 3)
        image = network.decode(z)
        assert image.shape == (2, 3, 16, 16)
        torch.testing.assert_close(network(x), image, rtol=0, atol=0)
        assert_near(network.decoder(network.post_quant_conv(network.quantize(z))), image)
        assert (network.decoder(network.post_quant_conv(z)) - image).abs().max() > 1e-2
        assert_near(torch.cat([network(one[None]) for one in x]), image)


def test_attention_equals_torchs() -> None:
    block = AttnBlock(8, 4)
    seed_weights(block)
    x = random(2, 8, 4, 5)
    with torch.no_grad():
        h = block.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (block.q, block.k, block.v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 8, 4, 5)
        assert_near(block(x), x + block.proj_out(attended))
    assert block.norm.eps == 1e-6


def test_resampling_equals_interpolation_and_the_padded_convolution() -> None:
    up, down = Upsample(2), Downsample(2)
    x = random(2, 2, 4, 6)
    with torch.no_grad():
        torch.testing.assert_close(up(x), up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), rtol=0, atol=0)
        padded = torch.zeros(2, 2, 5, 7)
        padded[:, :, :4, :6] = x
        torch.testing.assert_close(down(x), down.conv(padded), rtol=0, atol=0)


@pytest.mark.parametrize("at_once", [2048, 5])
def test_quantiser_equals_a_search_in_float64(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CODES_AT_ONCE", at_once)
    quantizer = VectorQuantizer(17, 3)
    seed_weights(quantizer)
    z = random(2, 3, 4, 5)
    points = z.double().numpy().transpose(0, 2, 3, 1)
    codes = quantizer.embedding.weight.detach().double().numpy()
    distances = ((points[..., None, :] - codes) ** 2).sum(-1)
    indices = distances.argmin(-1)
    assert len(np.unique(indices)) > 5
    with torch.no_grad():
        assert np.array_equal(quantizer.indices(z).numpy(), indices)
        assert np.abs(quantizer(z).numpy().transpose(0, 2, 3, 1) - codes[indices]).max() < 1e-5


def test_the_quantisers_gradient_is_the_identity() -> None:
    z, weight = random(1, 3, 4, 4).requires_grad_(), random(1, 3, 4, 4, seed=1)
    (gradient,) = torch.autograd.grad((VectorQuantizer(8, 3)(z) * weight).sum(), z)
    assert torch.equal(gradient, weight)


class Indices(nn.Module):
    def __init__(self, quantizer: VectorQuantizer) -> None:
        super().__init__()
        self.quantize = quantizer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantize.indices(z).float(), self.quantize(z)


@pytest.mark.export
@pytest.mark.parametrize("at_once", [2048, 8])  # equal parts: products of other shapes round equal codes differently
def test_onnx_runtime_finds_the_same_codes_and_the_first_of_equal_ones(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CODES_AT_ONCE", at_once)
    quantizer = VectorQuantizer(16, 3)
    seed_weights(quantizer)
    with torch.no_grad():
        quantizer.embedding.weight[8:] = quantizer.embedding.weight[:8]  # every code is there twice
    graph, _ = export_graph(Indices(quantizer), {"z": random(2, 3, 8, 8)}, ["indices", "codes"], tmp_path / "vq.onnx")
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 3):
        z = random(batch, 3, 8, 8, seed=batch)
        with torch.no_grad():
            z[:, :, 0] = quantizer.embedding.weight[3][:, None]  # exactly at two of them
            indices, codes = (value.numpy() for value in Indices(quantizer)(z))
        found = session.run(None, {"z": z.numpy()})
        assert np.array_equal(found[0], indices)
        assert np.abs(found[1] - codes).max() < 1e-6
        assert indices.max() < 8
        assert (indices[:, 0] == 3).all()


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"resolution": 17}, "choose a multiple of 2"),
        ({"groups": 16}, "choose another ch, or groups"),
        ({"parts": "middle"}, "choose both, encoder or decoder"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InvalidOption, match=remedy):
        build(**changes)
