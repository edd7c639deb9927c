"""DiffBFR: two cascaded conditional denoisers and an unconditional one for texture (arXiv 2305.04517).

Neither code nor weights are published. The stages are those of the paper's method: each denoiser of the identity
restoration module reads the degraded image as channels beside its state and starts from a noised image at a truncated
time; the texture enhancement module starts its result again at a fractional time. What the paper's public text does
not settle is ours, see docs/systems/diffbfr.md: sizes and widths of the networks, times and steps of the presets.
"""

from typing import Any

from bfr.models.systems.system import NetworkSpec, SystemSpec, guided_unet, own_file, resize, unpublished
from bfr.runtime.bundle.manifest import Denoise, Diffuse, Estimate, Preset, Sampler

STAGES = (
    Estimate(name="shrink", network="shrink", inputs={"image": "degraded"}, outputs={"resized": "low_quality"}),
    Estimate(name="signed", network="signed", inputs={"image": "degraded"}, outputs={"resized": "quality"}),
    Diffuse(name="diffuse-low", source="low_quality"),
    Denoise(name="denoise-low", network="low", conditions={"condition": "low_quality"}, result="low_restored"),
    Estimate(name="enlarge", network="enlarge", inputs={"image": "low_restored"}, outputs={"resized": "enlarged"}),
    Diffuse(name="diffuse-high", source="enlarged"),
    Denoise(name="denoise-high", network="high", conditions={"condition": "quality"}, result="estimate"),
    Diffuse(name="diffuse-texture", source="estimate"),
    Denoise(name="denoise-texture", network="texture"),
)


def networks(
    low: dict[str, Any], high: dict[str, Any], texture: dict[str, Any], *, size: int
) -> dict[str, NetworkSpec]:
    """The networks of a DiffBFR of any size: UNet parameters of its three denoisers; size: of the images."""
    small = int(low["image_size"])

    def denoiser(name: str, parameters: dict[str, Any], side: int, *, concat: bool) -> NetworkSpec:
        kind, options = ("step-concat", {"channels": 3}) if concat else ("step", {})
        return NetworkSpec(kind, "unet", parameters, own_file(name), options, size=side)

    return {
        "shrink": resize(size, small),
        "signed": resize(size, size),
        "low": denoiser("low", low, small, concat=True),
        "enlarge": resize(small, size, low=-1.0),
        "high": denoiser("high", high, size, concat=True),
        "texture": denoiser("texture", texture, size, concat=False),
    }


DIFFBFR = SystemSpec(
    name="diffbfr",
    title="DiffBFR: Bootstrapping Diffusion Model Towards Blind Face Restoration, 512x512 (arXiv 2305.04517)",
    image_size=512,
    networks=networks(
        guided_unet(128, 128, [1, 2, 3, 4], [16, 8], inputs=6),  # the state's channels, and three of the condition
        guided_unet(512, 32, [1, 2, 4, 8, 8, 16, 16], [32, 16, 8], inputs=6),
        guided_unet(512, 32, [1, 2, 4, 8, 8, 16, 16], [32, 16, 8]),
        size=512,
    ),
    stages=STAGES,
    presets={
        "reference": Preset(
            solver="ddim",
            spacing="time",
            start=500,
            steps=50,
            eta=1.0,
            stages={"denoise-texture": Sampler(solver="ddim", spacing="log-snr", start=40.5, steps=10)},
        ),
        "fast": Preset(
            solver="dpmpp-2m",
            spacing="log-snr",
            start=500,
            steps=10,
            stages={"denoise-texture": Sampler(solver="dpmpp-2m", spacing="log-snr", start=40.5, steps=3)},
        ),
    },
    licence=unpublished("2305.04517"),
    published=False,
)
