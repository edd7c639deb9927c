"""The systems of the family at a size that a test can run: the same stages, small name-seeded networks."""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from small import DENOISER, EMBEDDER, VAE
from torch import Tensor

from bfr.export.bundle import export_system
from bfr.export.options import ExportOptions
from bfr.models.systems.clrface import CLRFACE
from bfr.models.systems.clrface import networks as clrface_networks
from bfr.models.systems.difface import IDENTITY, INPAINTING, identity_networks
from bfr.models.systems.diffbfr import DIFFBFR
from bfr.models.systems.diffbfr import networks as diffbfr_networks
from bfr.models.systems.diffmac import DIFFMAC
from bfr.models.systems.diffmac import networks as diffmac_networks
from bfr.models.systems.dr2 import DR2
from bfr.models.systems.dr2 import networks as dr2_networks
from bfr.models.systems.osdface import OSDFACE
from bfr.models.systems.osdface import networks as osdface_networks
from bfr.models.systems.pgdiff import REFERENCE, reference_networks
from bfr.models.systems.pgdiff import networks as pgdiff_networks
from bfr.models.systems.system import NetworkSpec, SystemSpec
from bfr.models.weights.fetch import Download
from bfr.models.weights.seeded import write_seeded
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Licence, Preset, Sampler

SIZE = 32
DENSITY = 1 / 32  # of the weights that are not zero
SMALL = 4096  # entries; a smaller matrix (a codebook) stays as it is: thinned out, its rows would coincide


def unet(size: int = SIZE, **changes: Any) -> dict[str, Any]:
    """Parameters of a small UNet."""
    return {
        "image_size": size,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "channel_mult": [1],
        "use_scale_shift_norm": True,
        **changes,
    }


def tiny() -> SystemSpec:
    """A DifFace of two UNets, its denoiser with variance channels as the published one.

    No blocks on the way down: the middle and the way up hold every operator, and tracing takes as long as there are.
    """
    network = unet(num_res_blocks=0, channel_mult=[1, 2], num_head_channels=32)
    estimator = NetworkSpec(
        "estimator",
        "unet",
        {**network, "unshuffle": 2, "time_conditioned": False},
        Download("", "estimator.pth"),
        half=None,
    )
    denoiser = NetworkSpec(
        "step", "unet", {**network, "out_channels": 6}, Download("", "denoiser.pth"), learned_variance=True
    )
    return SystemSpec(
        name="tiny",
        title="name-seeded networks for tests",
        image_size=SIZE,
        networks={"estimator": estimator, "denoiser": denoiser},
        presets={"reference": Preset(spacing="ddim250", start=6, eta=0.5), "short": Preset(spacing="ddim50", start=2)},
        licence=Licence(name="none", url="", notice="random weights"),
    )


def inpainting() -> SystemSpec:
    """DifFace inpainting."""
    estimator, denoiser = INPAINTING.networks["estimator"], INPAINTING.networks["denoiser"]
    lama = {**estimator.parameters, "image_size": SIZE, "ngf": 8, "n_downsampling": 2, "n_blocks": 2}
    networks = {
        "estimator": replace(estimator, parameters=lama),
        "denoiser": replace(denoiser, parameters=unet(out_channels=6)),
    }
    presets = {"reference": Preset(spacing="ddim250", start=6, eta=1.0)}
    return replace(INPAINTING, name="tiny-inpainting", image_size=SIZE, networks=networks, presets=presets)


def diffbfr() -> SystemSpec:
    """DiffBFR: 16 and 32."""
    networks = diffbfr_networks(unet(16, in_channels=6), unet(in_channels=6), unet(), size=SIZE)
    texture = Sampler(solver="ddim", spacing="log-snr", start=40.5, steps=2, eta=0.5)
    reference = Preset(solver="ddim", spacing="time", start=300, steps=4, eta=1.0, stages={"denoise-texture": texture})
    return replace(DIFFBFR, name="tiny-diffbfr", image_size=SIZE, networks=networks, presets={"reference": reference})


RECOGNIZER: dict[str, Any] = {"layers": [1, 1, 1, 1], "widths": [8, 8, 16, 16], "image_size": 32, "embedding": 16}
AUTOENCODER: dict[str, Any] = {
    "ch": 16,
    "ch_mult": [1, 2],
    "num_res_blocks": 0,
    "attn_resolutions": [],
    "resolution": SIZE,
    "z_channels": 3,
    "n_embed": 64,
    "embed_dim": 3,
    "groups": 8,
}


def identity() -> SystemSpec:
    """DifFace with identity guidance; the estimator is a UNet, as mini's."""
    estimator = NetworkSpec(
        "estimator", "unet", unet(time_conditioned=False), Download("", "estimator.safetensors"), half=None
    )
    denoiser = NetworkSpec("step", "unet", unet(), Download("", "denoiser.safetensors"))
    networks = {"estimator": estimator, "denoiser": denoiser, **identity_networks(RECOGNIZER, SIZE)}
    presets = {"reference": Preset(spacing="ddim250", start=6, eta=0.5)}
    stages = guided(IDENTITY.stages, strength=0.5)
    return replace(IDENTITY, name="tiny-identity", image_size=SIZE, networks=networks, presets=presets, stages=stages)


def pgdiff() -> SystemSpec:
    """PGDiff with a reference: the gradient is part of the step."""
    denoiser = NetworkSpec(
        "step", "unet", unet(out_channels=6), Download("", "denoiser.safetensors"), learned_variance=True
    )
    own = pgdiff_networks(denoiser, {"channels": 8, "blocks": 1, "growth": 4}, SIZE)
    networks = reference_networks(own, RECOGNIZER, SIZE)
    presets = {"reference": Preset(solver="ddpm-learned", spacing="ddim5", start=5)}
    return replace(REFERENCE, name="tiny-pgdiff", image_size=SIZE, networks=networks, presets=presets)


def clrface() -> SystemSpec:
    """CLR-Face: latents of 16x16."""
    irn = {"model_channels": 32, "attention_resolutions": [], "channel_mult": [1], "num_res_blocks": 1}
    networks = clrface_networks(unet(16, in_channels=6), irn, AUTOENCODER, RECOGNIZER)
    presets = {"reference": Preset(solver="dpmpp-2m", spacing="log-snr", start=500, steps=4, eta=0.5)}
    stages = guided(CLRFACE.stages, strength=0.5)
    return replace(CLRFACE, name="tiny-clr-face", image_size=SIZE, networks=networks, presets=presets, stages=stages)


def osdface() -> SystemSpec:
    """OSDFace: latents of 16x16, a prompt of 7 tokens."""
    embedder = {**EMBEDDER, "attn_resolutions": [16], "resolution": SIZE}
    networks = osdface_networks({"in_channels": 4, **DENOISER}, VAE, embedder, tokens=7, latent=16)
    presets = {"reference": OSDFACE.presets["reference"]}
    return replace(OSDFACE, name="tiny-osdface", image_size=SIZE, networks=networks, presets=presets)


def dr2() -> SystemSpec:
    """DR2: 32 to 64, with noise twice in a step and an early end."""
    own = unet(attention_resolutions=[16], channel_mult=[1, 2], num_head_channels=32, resblock_updown=True)
    sparnet = {"size": 2 * SIZE, "min_ch": 8, "max_ch": 16, "min_feat_size": 16, "res_depth": 1, "bottleneck_size": 16}
    sampler = DR2.presets["mild"].model_copy(update={"start": 8, "stop": 4})
    networks = dr2_networks({**own, "out_channels": 6}, sparnet)
    return replace(DR2, name="tiny-dr2", image_size=SIZE, networks=networks, presets={"reference": sampler})


def diffmac() -> SystemSpec:
    """DiffMAC: two loops over latents of 16x16."""
    networks = diffmac_networks(unet(16, in_channels=8, out_channels=4), VAE, latent=16, width=8)
    presets = {"reference": Preset(solver="dpmpp-2m", spacing="log-snr", start=500, steps=3)}
    return replace(DIFFMAC, name="tiny-diffmac", image_size=SIZE, networks=networks, presets=presets)


def guided(stages: Any, strength: float) -> Any:
    """Stages whose guidance is strong enough to be seen."""
    return tuple(
        stage.model_copy(update={"guidance": stage.guidance.model_copy(update={"strength": strength, "stop": 0.0})})
        if getattr(stage, "guidance", None)
        else stage
        for stage in stages
    )


MAKERS = {
    "tiny": tiny,
    "timed": tiny,
    "inpainting": inpainting,
    "diffbfr": diffbfr,
    "identity": identity,
    "pgdiff": pgdiff,
    "clrface": clrface,
    "osdface": osdface,
    "dr2": dr2,
    "diffmac": diffmac,
}


def write_weights(system: SystemSpec, folder: Path) -> None:
    """Write a system's checkpoints, name-seeded and thinned out: a matrix keeps one in 1/DENSITY of its entries."""
    write_seeded(system, folder)
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            save_file(thinned(load_file(path)), path)
        else:
            torch.save(thinned(torch.load(path)), path)


def thinned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that pack well: most entries of a large matrix zero, the others larger to keep its scale, 3 bits each."""
    for name, tensor in state.items():
        if tensor.ndim >= 2 and tensor.numel() >= SMALL and tensor.is_floating_point():
            generator = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name} kept".encode())))
            kept = torch.from_numpy(generator.random(tuple(tensor.shape)) < DENSITY)
            mantissa, exponent = torch.frexp(tensor * DENSITY**-0.5)
            state[name] = torch.where(kept, torch.ldexp((mantissa * 8).round() / 8, exponent), 0.0).to(tensor.dtype)
    return state


def export_tiny(name: str, folder: Path, **options: Any) -> Bundle:
    """Export one of MAKERS, verified; only `timed` has a time table. options: of ExportOptions."""
    system = MAKERS[name]()
    write_weights(system, folder / "weights")
    precision = ("fp32", "fp16") if name == "tiny" else ("fp32",)
    chosen = ExportOptions(**{"precision": precision, "time_table": name == "timed", **options})
    return export_system(system, folder / "weights", folder / "bundle", chosen, threads=1)
