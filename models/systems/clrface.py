"""CLR-Face: conditional denoising in the latents of a VQ autoencoder, guided towards an identity (arXiv 2402.06106).

Neither code nor weights are published; we had the abstract and summaries of the paper. The stages are those
of its method: the degraded image's latent conditions the denoiser; an identity recovery network makes the face whose
embedding the recognizer's gradient pulls towards, through a learnable mask over the latents. What could not be read is
ours, see docs/systems/clr-face.md: the networks' sizes, the schedule and the presets, the strength of guidance.
"""

from typing import Any

from bfr.models.systems.difface import ARCFACE, RECOGNIZER
from bfr.models.systems.system import NetworkSpec, SystemSpec, guided_unet, own_file, unpublished
from bfr.runtime.bundle.manifest import Denoise, Diffuse, Estimate, Guidance, Preset

AUTOENCODER: dict[str, Any] = {  # latent diffusion's vq-f4
    "ch": 128,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "resolution": 512,
    "z_channels": 3,
    "n_embed": 8192,
    "embed_dim": 3,
}
UNET = guided_unet(128, 160, [1, 2, 2, 4], [16, 8], inputs=6, num_head_channels=32)
IRN: dict[str, Any] = {
    "model_channels": 64,
    "attention_resolutions": [16],
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "num_head_channels": 32,
}
STAGES = (
    Estimate(name="encode", network="encoder"),
    Estimate(name="recover", network="recoverer"),
    Diffuse(source="latent"),
    Denoise(
        network="denoiser",
        conditions={"condition": "latent"},
        guidance=Guidance(network="guide", strength=0.1, stop=20.0, inputs={"target": "identity"}),
    ),
    Estimate(name="decode", network="decoder", inputs={"latent_state": "state"}),
)


def networks(
    unet: dict[str, Any], irn: dict[str, Any], autoencoder: dict[str, Any], recognizer: dict[str, Any]
) -> dict[str, NetworkSpec]:
    """The networks of a CLR-Face of any size, by the parameters of their parts."""
    vq, latent = own_file("autoencoder"), int(unet["image_size"])
    both = {"recognizer": recognizer, "autoencoder": autoencoder}
    return {
        "encoder": NetworkSpec("encoder", "vqmodel", {**autoencoder, "parts": "encoder"}, vq, half=None),
        "recoverer": NetworkSpec(
            "recoverer",
            "clrface-recoverer",
            {**both, "irn": irn},
            {"irn": own_file("irn"), "distance.recognizer": ARCFACE, "distance.autoencoder": vq},
            size=latent,
            half=None,
        ),
        "denoiser": NetworkSpec(
            "step-concat", "unet", unet, own_file("denoiser"), {"channels": 3, "clipped": False}, size=latent
        ),
        "guide": NetworkSpec(
            "guide",
            "clrface-guide",
            both,
            {"recognizer": ARCFACE, "autoencoder": vq, "latent_mask": own_file("mask")},
            {"normalize": True, "clipped": False},
            size=latent,
            half=None,
        ),
        "decoder": NetworkSpec("decoder", "vqmodel", {**autoencoder, "parts": "decoder"}, vq, size=latent, half=None),
    }


CLRFACE = SystemSpec(
    name="clr-face",
    title="CLR-Face: Conditional Latent Refinement for Blind Face Restoration, 512x512 (arXiv 2402.06106)",
    image_size=512,
    networks=networks(UNET, IRN, AUTOENCODER, RECOGNIZER),
    stages=STAGES,
    result="restored",
    presets={
        "reference": Preset(solver="ddim", spacing="time", start=999, steps=50, eta=0.5),
        "fast": Preset(solver="dpmpp-2m", spacing="log-snr", start=999, steps=15),
    },
    licence=unpublished("2402.06106"),
    published=False,
)
