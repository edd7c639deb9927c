"""DifFace: restoration at 512 and inpainting at 256, as published (arXiv 2212.06512)."""

from dataclasses import replace
from typing import Any

from bfr.models.systems.system import NetworkSpec, SystemSpec, guided_unet
from bfr.models.weights.fetch import Download
from bfr.runtime.bundle.manifest import Denoise, Diffuse, Estimate, Guidance, ImageInput, Licence, Preset

_RELEASE = "https://github.com/zsyOAOA/DifFace/releases/download/V1.0/"

PUBLISHED = {"dropout": 0, "conv_resample": True, "resblock_updown": False, "use_new_attention_order": False}
"""Options of the denoisers that their published configurations state, and that are UNet's own defaults."""

LICENCE = Licence(
    name="S-Lab License 1.0",
    url="https://github.com/zsyOAOA/DifFace/blob/master/LICENSE",
    notice="Code and weights of DifFace are for non-commercial use only. Copyright 2022 S-Lab.",
)

DIFFACE = SystemSpec(
    name="difface",
    title="DifFace: Blind Face Restoration with Diffused Error Contraction, 512x512 (arXiv 2212.06512)",
    image_size=512,
    networks={
        "estimator": NetworkSpec(
            kind="estimator",
            architecture="swinir",
            parameters={
                "img_size": 64,
                "patch_size": 1,
                "in_chans": 3,
                "embed_dim": 180,
                "depths": [6] * 8,
                "num_heads": [6] * 8,
                "window_size": 8,
                "mlp_ratio": 2,
                "sf": 8,
                "img_range": 1.0,
                "upsampler": "nearest+conv",
                "resi_connection": "1conv",
                "unshuffle": True,
                "unshuffle_scale": 8,
            },
            weights=Download(
                _RELEASE + "swinir_restoration512_L1.pth",
                "swinir_restoration512_L1.pth",
                also=("General_Face_ffhq512.pth",),  # the estimator of before August 2023, of the same architecture
            ),
            half=None,  # its residual stream leaves fp16's range: JingyunLiang/SwinIR issues 103 and 180
        ),
        "denoiser": NetworkSpec(
            kind="step",
            architecture="unet",
            parameters=guided_unet(
                512, 32, [1, 2, 4, 8, 8, 16, 16], [32, 16, 8], outputs=6, blocks=[1, 2, 2, 2, 2, 3, 4], **PUBLISHED
            ),
            weights=Download(
                _RELEASE + "iddpm_ffhq512_ema500000.pth",
                "iddpm_ffhq512_ema500000.pth",
                also=("iddpm_ffhq512/ema0999_model_500000.pth",),  # as its trainer called it
            ),
            learned_variance=True,
        ),
    },
    presets={
        "reference": Preset(solver="ddim", spacing="ddim250", start=100, eta=0.5),
        "balanced": Preset(solver="dpmpp-2m", spacing="log-snr", start=400, steps=20),
        "fast": Preset(solver="dpmpp-2m", spacing="log-snr", start=400, steps=10),
    },
    licence=LICENCE,
)

ARCFACE = Download(
    "",
    "ms1mv3_arcface_r50_fp16.pth",
    also=("ms1mv3_arcface_r50_fp16/backbone.pth",),  # in insightface's own folder
)
RECOGNIZER: dict[str, Any] = {"layers": 50, "widths": [64, 128, 256, 512], "image_size": 112, "embedding": 512}
IDENTITY_STAGES = (
    Estimate(network="estimator"),
    Estimate(name="embed", network="embedder"),
    Diffuse(),
    Denoise(
        network="denoiser", guidance=Guidance(network="guide", strength=0.1, stop=20.0, inputs={"target": "identity"})
    ),
)


def identity_networks(recognizer: dict[str, Any], size: int) -> dict[str, NetworkSpec]:
    """What identity guidance adds to a system in pixel space; size: of its images."""
    parameters = {"recognizer": recognizer, "image_size": size}
    weights = {"recognizer": ARCFACE}
    return {
        "embedder": NetworkSpec("embedder", "identity", parameters, weights, half=None),
        "guide": NetworkSpec("guide", "identity", parameters, weights, {"normalize": True}, half=None),
    }


def with_insightface(licence: Licence) -> Licence:
    """A licence, and that of InsightFace's recognizer."""
    return Licence(
        name=f"{licence.name}; InsightFace, non-commercial research",
        url=licence.url,
        notice=f"{licence.notice} InsightFace's weights are for non-commercial research only.",
    )


IDENTITY = replace(
    DIFFACE,
    name="difface-identity",
    title="DifFace guided towards an identity, as PGDiff guides (arXiv 2309.10810), 512x512",
    inputs=(ImageInput(name="reference", channels=3),),
    networks={**DIFFACE.networks, **identity_networks(RECOGNIZER, 512)},
    stages=IDENTITY_STAGES,
    licence=with_insightface(LICENCE),
    by_hand={ARCFACE.file: "PGDiff's README (https://github.com/pq-yang/PGDiff) names where it is, under ArcFace"},
)

INPAINTING = SystemSpec(
    name="difface-inpainting",
    title="DifFace: inpainting of aligned faces, 256x256 (arXiv 2212.06512)",
    image_size=256,
    inputs=(ImageInput(name="mask", channels=1),),
    networks={
        "estimator": NetworkSpec(
            kind="inpainter",
            architecture="lama",
            parameters={
                "image_size": 256,
                "input_nc": 4,
                "output_nc": 3,
                "ngf": 64,
                "n_downsampling": 3,
                "n_blocks": 18,
                "add_out_act": "sigmoid",
                "init_conv_kwargs": {"ratio_gin": 0, "ratio_gout": 0, "enable_lfu": False},
                "downsample_conv_kwargs": {"ratio_gin": 0, "ratio_gout": 0, "enable_lfu": False},
                "resnet_conv_kwargs": {"ratio_gin": 0.75, "ratio_gout": 0.75, "enable_lfu": False},
            },
            weights=Download(_RELEASE + "lama_inpainting256.pth", "lama_inpainting256.pth"),
            half=None,  # sums over whole images, which half precision was not tried on
        ),
        "denoiser": NetworkSpec(
            kind="step-known",
            architecture="unet",
            parameters=guided_unet(256, 128, [1, 1, 2, 2, 4, 4], [16, 8], outputs=6, **PUBLISHED),
            weights=Download(_RELEASE + "iddpm_ffhq256_ema750000.pth", "iddpm_ffhq256_ema750000.pth"),
            learned_variance=True,
        ),
    },
    stages=(Estimate(network="estimator"), Diffuse(), Denoise(network="denoiser", strength=0.5)),
    presets={"reference": Preset(solver="ddim", spacing="ddim250", start=120, eta=1.0)},
    licence=LICENCE,
)
