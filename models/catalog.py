"""The systems that `bfr` knows: networks, hyper-parameters, schedule, presets, where the weights are, licence."""

from pathlib import Path

from bfr.models.fetch import Download
from bfr.models.mini import networks as mini
from bfr.models.system import ARCHITECTURES, NetworkSpec, SystemSpec
from bfr.runtime.errors import InvalidOption
from bfr.runtime.manifest import Adapt, Licence, Preset

__all__ = ["ARCHITECTURES", "DIFFACE", "MINI", "SYSTEMS", "NetworkSpec", "SystemSpec", "get_system"]

_RELEASE = "https://github.com/zsyOAOA/DifFace/releases/download/V1.0/"

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
            weights=Download(_RELEASE + "swinir_restoration512_L1.pth", "swinir_restoration512_L1.pth"),
            half=None,  # its residual stream leaves fp16's range: JingyunLiang/SwinIR issues 103 and 180
        ),
        "denoiser": NetworkSpec(
            kind="step",
            architecture="unet",
            parameters={
                "image_size": 512,
                "in_channels": 3,
                "model_channels": 32,
                "out_channels": 6,
                "attention_resolutions": [32, 16, 8],
                "dropout": 0,
                "channel_mult": [1, 2, 4, 8, 8, 16, 16],
                "num_res_blocks": [1, 2, 2, 2, 2, 3, 4],
                "conv_resample": True,
                "num_head_channels": 64,
                "use_scale_shift_norm": True,
                "resblock_updown": False,
                "use_new_attention_order": False,
            },
            weights=Download(_RELEASE + "iddpm_ffhq512_ema500000.pth", "iddpm_ffhq512_ema500000.pth"),
            learned_variance=True,
        ),
    },
    presets={
        "reference": Preset(solver="ddim", spacing="ddim250", start=100, eta=0.5),
        "balanced": Preset(solver="dpmpp-2m", spacing="log-snr", start=400, steps=20),
        "fast": Preset(solver="dpmpp-2m", spacing="log-snr", start=400, steps=10),
    },
    licence=Licence(
        name="S-Lab License 1.0",
        url="https://github.com/zsyOAOA/DifFace/blob/master/LICENSE",
        notice="Code and weights of DifFace are for non-commercial use only. Copyright 2022 S-Lab.",
    ),
)

MINI = SystemSpec(
    name="mini",
    title="mini: a small DifFace of our own, 256x256, for CPUs and for trying bfr out",
    image_size=mini.IMAGE_SIZE,
    networks={
        "estimator": NetworkSpec(
            kind="estimator",
            architecture="unet",
            parameters=mini.ESTIMATOR,
            weights=Download("", "estimator.safetensors"),
            int8=True,
        ),
        "denoiser": NetworkSpec(
            kind="step",
            architecture="unet",
            parameters=mini.DENOISER,
            weights=Download("", "denoiser.safetensors"),
            int8=True,
        ),
    },
    # Read off benchmarks/results/cpu/pareto and truncation, see docs/presets.md.
    presets={
        "reference": Preset(solver="ddim", spacing="time", start=10, steps=100, eta=0.5),
        "balanced": Preset(solver="unipc-2", spacing="log-snr", start=10, steps=4),
        "fast": Preset(solver="ddim", spacing="quadratic", start=10, steps=2),
        "adaptive": Preset(
            solver="unipc-2",
            spacing="log-snr",
            start=10,
            steps=4,
            adapt=Adapt(typical=8.5, power=1.5, least=3, most=60),
        ),
    },
    default_preset="balanced",
    licence=Licence(
        name="Apache-2.0",
        url="https://www.apache.org/licenses/LICENSE-2.0",
        notice="Weights trained on generated faces (MIT, CC0) and official US portraits; see models/mini/README.md.",
    ),
    packaged=Path(__file__).parent / "mini" / "bundle",
)

SYSTEMS = {spec.name: spec for spec in (DIFFACE, MINI)}


def get_system(name: str) -> SystemSpec:
    """A system by its name. Raises InvalidOption with the names that there are."""
    if name not in SYSTEMS:
        raise InvalidOption(f"system {name!r} is unknown: choose one of {', '.join(sorted(SYSTEMS))}")
    return SYSTEMS[name]
