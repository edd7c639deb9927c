"""DR2 and its enhancer: a diffusion loop that removes degradation, ended early, then SPARNet (arXiv 2303.06885).

The published code's values; see docs/systems/dr2.md.
"""

from typing import Any

from bfr.models.networks.sparnet import SPARNET_HD
from bfr.models.systems.system import NetworkSpec, SystemSpec, guided_unet, resize
from bfr.models.weights.fetch import Download
from bfr.runtime.bundle.manifest import Denoise, Diffuse, Estimate, Licence, Preset

WHERE = "DR2's readme (https://github.com/Kaldwin0106/DR2_Drgradation_Remover) names where it is, under Download"
STAGES: tuple[Estimate | Diffuse | Denoise, ...] = (
    Estimate(name="sign", network="signed", inputs={"image": "degraded"}, outputs={"resized": "signed"}),
    Diffuse(source="signed"),
    Denoise(network="denoiser", strength=8.0),
    Estimate(name="enhance", network="enhancer"),
)


def networks(unet: dict[str, Any], sparnet: dict[str, Any]) -> dict[str, NetworkSpec]:
    """The networks of a DR2 of any size: options of UNet, with learned variance, and of SPARNet."""
    side, target = int(unet["image_size"]), int(sparnet["size"])
    larger = {"target": target, "source": side}
    files = Download("", "DR2_FFHQ.pkl"), Download("", "SPARNetHD_FFHQ_DR2aug.pth")
    return {
        "signed": resize(side, side),
        "denoiser": NetworkSpec("step-learned-refined", "unet", unet, files[0], {"size": side}, learned_variance=True),
        "enhancer": NetworkSpec("enhancer", "sparnet", sparnet, files[1], larger, half=None),
    }


def preset(factor: int, stop: int) -> Preset:
    """The published sampler of (N, tau), the factor of the low-pass and the last index of 100.

    The loop begins above tau, by a number of indices that the published code has for each N.
    """
    above = {1: 5, 2: 10, 4: 20, 8: 25}.get(factor, 30)
    start = min(stop + above, 99) + 1
    return Preset(solver="ddpm-learned", spacing="100", start=start, stop=stop, matched=True, guidance=float(factor))


DR2 = SystemSpec(
    name="dr2",
    title="DR2 and SPARNetHD: Diffusion-based Robust Degradation Remover, 256x256 to 512x512 (arXiv 2303.06885)",
    image_size=256,
    networks=networks(
        guided_unet(256, 128, [1, 1, 2, 2, 4, 4], [16], outputs=6, blocks=1, resblock_updown=True), SPARNET_HD
    ),
    stages=STAGES,
    result="restored",
    presets={"reference": preset(8, 35), "mild": preset(4, 22), "severe": preset(16, 35)},
    licence=Licence(
        name="MIT (DR2's code); of the weights none is stated",
        url="https://github.com/Kaldwin0106/DR2_Drgradation_Remover/blob/main/LICENSE",
        notice="DR2's code is MIT, Copyright 2023 ZXWang. Ask its authors, and SPARNet's, before you use the weights.",
    ),
    by_hand={"DR2_FFHQ.pkl": WHERE, "SPARNetHD_FFHQ_DR2aug.pth": WHERE},
)
