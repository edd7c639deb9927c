"""DiffMAC: two latent loops, the second from what a bottleneck keeps of the first (arXiv 2403.10098).

Neither code nor weights are published. The stages are those of the paper's description; what its public text does not
settle is ours, see docs/systems/diffmac.md: the networks' widths and layers, times and steps of the presets.
"""

from typing import Any

from bfr.models.networks.sd import SD21_VAE
from bfr.models.systems.system import NetworkSpec, SystemSpec, guided_unet, own_file, unpublished
from bfr.runtime.bundle.manifest import Denoise, Diffuse, Estimate, NoiseSchedule, Preset

STAGES: tuple[Estimate | Diffuse | Denoise, ...] = (
    Estimate(name="encode", network="encoder"),
    Estimate(name="align", network="aligner"),
    Diffuse(name="diffuse-first", source="latent"),
    Denoise(name="denoise-first", network="first", conditions={"context": "features"}, result="first"),
    Estimate(name="compress", network="bottleneck"),
    Diffuse(name="diffuse-second", source="compressed"),
    Denoise(name="denoise-second", network="second", conditions={"context": "compressed"}),
    Estimate(name="decode", network="decoder", inputs={"latent_state": "state"}),
)


def networks(unet: dict[str, Any], vae: dict[str, Any], *, latent: int, width: int) -> dict[str, NetworkSpec]:
    """Return the networks of a DiffMAC of any size.

    Args:
        unet: Options of both UNets.
        vae: Options of the autoencoder.
        latent: Side of the latents.
        width: Channels inside aligner and bottleneck.
    """
    channels = int(vae["latent_channels"])
    step = {"context": [channels, latent, latent], "clipped": False, "channels": channels}
    small = {"channels": channels, "width": width}

    def one(kind: str, architecture: str, parameters: dict[str, Any], name: str, **more: Any) -> NetworkSpec:
        return NetworkSpec(kind, architecture, parameters, own_file(name), half=None, **more)

    def denoiser(name: str) -> NetworkSpec:
        parameters = {"channels": channels, "unet": unet}
        return NetworkSpec("step-context", "diffmac-unet", parameters, own_file(name), step, size=latent)

    return {
        "encoder": one("vae-encoder", "vae-encoder", vae, "encoder"),
        "aligner": one("aligner", "diffmac-features", small, "aligner", size=latent),
        "first": denoiser("first"),
        "bottleneck": one("bottleneck", "diffmac-bottleneck", small, "bottleneck", size=latent),
        "second": denoiser("second"),
        "decoder": one("vae-decoder", "vae-decoder", vae, "decoder"),
    }


DIFFMAC = SystemSpec(
    name="diffmac",
    title="DiffMAC: Diffusion Manifold Hallucination Correction, 512x512, as its paper describes it (arXiv 2403.10098)",
    image_size=512,
    networks=networks(
        guided_unet(64, 160, [1, 2, 4, 4], [32, 16, 8], inputs=8, outputs=4),
        SD21_VAE,
        latent=64,
        width=64,
    ),
    stages=STAGES,
    result="restored",
    presets={
        "reference": Preset(solver="ddim", spacing="time", start=999, steps=50),
        "fast": Preset(solver="dpmpp-2m", spacing="log-snr", start=500, steps=10),
    },
    licence=unpublished("2403.10098"),
    schedule=NoiseSchedule(timesteps=1000, beta_start=0.00085, beta_end=0.012, betas="scaled-linear"),
    published=False,
)
