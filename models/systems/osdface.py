"""OSDFace: one step of Stable Diffusion from the encoded face, without noise, prompted by what it looks like.

"One-Step Diffusion Model for Face Restoration" (arXiv 2411.17163) and its published code; see docs/systems/osdface.md.
"""

from typing import Any

from bfr.models.networks.osdface import VISUAL_EMBEDDER
from bfr.models.networks.sd import SD21_UNET, SD21_VAE
from bfr.models.systems.system import NetworkSpec, SystemSpec, own_file
from bfr.models.weights.osdface import LICENCE, SOURCES, import_osdface
from bfr.runtime.bundle.manifest import Denoise, Estimate, NoiseSchedule, Pixels, Preset

TIMESTEP = 399
PUBLISHED_PIXELS = Pixels(resize="corners", rounding="down", size="network")
STAGES = (
    Estimate(name="encode", network="encoder"),
    Estimate(name="prompt", network="embedder"),
    Denoise(network="denoiser", source="latent"),
    Estimate(name="decode", network="decoder", inputs={"latent_state": "state"}),
)


def networks(
    unet: dict[str, Any], vae: dict[str, Any], embedder: dict[str, Any], *, tokens: int, latent: int
) -> dict[str, NetworkSpec]:
    """Return the networks of an OSDFace of any size.

    Args:
        unet: Options of the denoiser.
        vae: Options of the autoencoder.
        embedder: Options of the visual embedder.
        tokens: Number of tokens of the prompt.
        latent: Side of the latents.
    """
    step = {"context": [tokens, unet["cross_attention_dim"]], "clipped": False, "channels": unet["in_channels"]}
    # The autoencoder overflows in half precision (its configuration says `force_upcast`); the embedder chooses codes,
    # and rounding would choose others.
    return {
        "encoder": NetworkSpec("vae-encoder", "vae-encoder", vae, own_file("encoder"), half=None),
        "embedder": NetworkSpec("prompt", "visual-embedder", embedder, own_file("embedder"), half=None),
        "denoiser": NetworkSpec("step-context", "sd-unet", unet, own_file("denoiser"), step, size=latent),
        "decoder": NetworkSpec("vae-decoder", "vae-decoder", vae, own_file("decoder"), half=None),
    }


OSDFACE = SystemSpec(
    name="osdface",
    title="OSDFace: One-Step Diffusion Model for Face Restoration, 512x512 (arXiv 2411.17163)",
    image_size=512,
    networks=networks(SD21_UNET, SD21_VAE, VISUAL_EMBEDDER, tokens=77, latent=64),
    stages=STAGES,
    result="restored",
    presets={
        "reference": Preset(solver="ddim", spacing="time", start=TIMESTEP, steps=1),
        "published": Preset(solver="ddim", spacing="time", start=TIMESTEP, steps=1, pixels=PUBLISHED_PIXELS),
    },
    licence=LICENCE,
    schedule=NoiseSchedule(timesteps=1000, beta_start=0.00085, beta_end=0.012, betas="scaled-linear"),
    sources=SOURCES,
    importer=import_osdface,
)
