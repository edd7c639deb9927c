"""Published layouts of tiny networks, converted: each tensor arrives where it belongs, strange ones are refused."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bfr.models.networks.osdface import VisualEmbedder
from bfr.models.networks.sd import VaeDecoder, VaeEncoder, merge_lora, unet
from bfr.models.systems.osdface import OSDFACE
from bfr.models.weights.locate import usable_weights
from bfr.models.weights.osdface import EMBEDDER, LORA, PROJECTION, SOURCES, UNET, VAE, import_osdface
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint

UNET_CONFIG = {**small.DENOISER, "mid_block_type": "UNetMidBlock2DCrossAttn", "use_linear_projection": False}
VAE_CONFIG = {**small.VAE, "block_out_channels": [8, 8]}
EMBEDDER_CONFIG = {**small.EMBEDDER, "z_channels": 4, "n_embed": 10, "embed_dim": 4, "tokens": 5}
LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def published() -> dict[str, dict[str, Tensor]]:
    """File -> state dict as it is published, name-seeded; the autoencoder with its attention's former names."""
    networks = {
        "unet": unet(**UNET_CONFIG),
        "encoder": VaeEncoder(**VAE_CONFIG),
        "decoder": VaeDecoder(**VAE_CONFIG),
        "embedder": VisualEmbedder(**EMBEDDER_CONFIG),
    }
    for network in networks.values():
        seed_weights(network)
    states = {name: network.state_dict() for name, network in networks.items()}
    autoencoder = {**states["encoder"], **states["decoder"]}
    for new, old in OLD.items():
        autoencoder = {
            key.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): autoencoder[key] for key in autoencoder
        }
    own = {f"vqvae_LQ.{key}": value for key, value in states["embedder"].items() if "embedding_change" not in key}
    rest = (
        "decoder.conv_in.weight",
        "post_quant_conv.bias",
        "encoder.mid.attn_1.norm2.weight",
        "encoder.down.1.attn.0.norm2.bias",
    )
    return {
        UNET.file: states["unet"],
        VAE.file: autoencoder,
        LORA.file: {
            f"unet.{LAYER}.lora_A.weight": torch.full((2, 8), 0.1),
            f"unet.{LAYER}.lora_B.weight": torch.ones(8, 2),
        },
        EMBEDDER.file: own | {f"vqvae_LQ.{key}": torch.zeros(1) for key in rest} | {"vqvae.encoder.x": torch.zeros(1)},
        PROJECTION.file: {
            key.removeprefix("embedding_change."): value
            for key, value in states["embedder"].items()
            if "embedding_change" in key
        },
    }


def write(folder: Path, files: dict[str, dict[str, Tensor]]) -> None:
    for name, state in files.items():
        if name.endswith(".safetensors"):
            save_file({key: value.clone() for key, value in state.items()}, folder / name)
        else:
            wrapped = {"state_dict": state, "epoch": 3} if name.endswith(".ckpt") else state
            torch.save(wrapped, folder / name)


def convert(folder: Path) -> dict[str, Path]:
    return import_osdface(
        folder,
        folder / "converted",
        unet_config=UNET_CONFIG,
        vae_config=VAE_CONFIG,
        embedder=EMBEDDER_CONFIG,
        rank=2,
        alpha=1.0,
    )


def test_every_tensor_arrives(tmp_path: Path) -> None:
    files = published()
    write(tmp_path, files)
    paths = convert(tmp_path)
    assert {name: path.name for name, path in paths.items()} == {
        name: f"{name}.safetensors" for name in ("encoder", "embedder", "denoiser", "decoder")
    }
    made = {"encoder": VaeEncoder(**VAE_CONFIG), "decoder": VaeDecoder(**VAE_CONFIG)}
    made |= {"embedder": VisualEmbedder(**EMBEDDER_CONFIG), "denoiser": unet(**UNET_CONFIG)}
    for name, network in made.items():
        state = load_file(paths[name])
        seed_weights(network)
        expected = dict(network.state_dict())
        if name == "denoiser":
            plain = expected[f"{LAYER}.weight"]
            expected = merge_lora(expected, files[LORA.file], 1.0, 2)
            torch.testing.assert_close(expected[f"{LAYER}.weight"], plain + 0.1, rtol=0, atol=1e-6)
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("missing", [source.file for source in SOURCES])
def test_a_missing_file_is_named_with_its_address(tmp_path: Path, missing: str) -> None:
    for source in SOURCES:
        if source.file != missing:
            (tmp_path / source.file).write_bytes(b"")
    with pytest.raises(InputNotFound, match=rf"{missing}.*https://huggingface\.co/"):
        convert(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "message"),
    [
        (UNET.file, "conv_in.bias2", "unexpected: conv_in.bias2"),
        (VAE.file, "loss.logvar", "unexpected: loss.logvar"),
        (EMBEDDER.file, "vqvae_LQ.encoder.extra", "unexpected: encoder.extra"),
        (PROJECTION.file, "conv3.weight", "unexpected: embedding_change.conv3.weight"),
        (LORA.file, "text_encoder.q.lora_A.weight", "do not belong"),
    ],
)
def test_a_tensor_too_many_is_refused(tmp_path: Path, file: str, key: str, message: str) -> None:
    files = published()
    write(tmp_path, files | {file: files[file] | {key: torch.zeros(1)}})
    with pytest.raises(InvalidCheckpoint, match=message):
        convert(tmp_path)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path, published() | {EMBEDDER.file: {"vqvae.encoder.x": torch.zeros(1)}})
    with pytest.raises(InvalidCheckpoint, match=r"vqvae_LQ\.\*.*associate_2\.ckpt"):
        convert(tmp_path)


def test_a_tensor_too_few_is_refused(tmp_path: Path) -> None:
    files = published()
    del files[VAE.file]["quant_conv.bias"]
    write(tmp_path, files)
    with pytest.raises(InvalidCheckpoint, match=r"quant_conv\.bias"):
        convert(tmp_path)
    assert not (tmp_path / "converted" / "encoder.safetensors").exists()


def test_the_authors_trees_are_imported_as_they_are(tmp_path: Path) -> None:
    """As `bfr export osdface --weights FOLDER` does: nothing is renamed, one checkpoint is Lightning's."""
    base, own = "hub/stable-diffusion-2-1-base", "OSDFace/pretrained"
    places = {
        UNET: f"{base}/unet/diffusion_pytorch_model.safetensors",
        VAE: f"{base}/vae/diffusion_pytorch_model.bin",
        LORA: f"{own}/pytorch_lora_weights.safetensors",
        EMBEDDER: f"{own}/associate_2.ckpt",
        PROJECTION: f"{own}/embedding_change_weights.pth",
    }
    files = published()
    for download, place in places.items():
        state, path = files[download.file], tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({key: value.clone() for key, value in state.items()}, path)
        else:
            lightning = {"callbacks": {Path: {"best": 1.0}}, "hparams_name": "kwargs", "state_dict": state}
            torch.save(lightning if download == EMBEDDER else state, path)
    (tmp_path / "scratch").mkdir()
    importer = partial(
        import_osdface, unet_config=UNET_CONFIG, vae_config=VAE_CONFIG, embedder=EMBEDDER_CONFIG, rank=2, alpha=1.0
    )
    made = usable_weights(replace(OSDFACE, importer=importer), tmp_path, tmp_path / "scratch")
    assert sorted(path.stem for path in made.iterdir()) == ["decoder", "denoiser", "embedder", "encoder"]
