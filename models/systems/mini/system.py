"""mini: a small DifFace of our own, the default system. Its training is in `bfr.models.systems.mini.train`."""

from pathlib import Path

from bfr.models.systems.mini import networks as mini
from bfr.models.systems.system import NetworkSpec, SystemSpec
from bfr.models.weights.fetch import Download
from bfr.runtime.bundle.manifest import Adapt, Licence, Preset

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
        ),
    },
    # Read off training faces, see docs/presets.md: from here on a later start costs PSNR at every level.
    presets={
        "reference": Preset(solver="ddim", spacing="time", start=2, steps=100, eta=0.5),
        "balanced": Preset(solver="unipc-2", spacing="log-snr", start=1, steps=2),
        "fast": Preset(solver="ddim", spacing="quadratic", start=1, steps=1),
        "adaptive": Preset(
            solver="unipc-2",
            spacing="log-snr",
            start=3,
            steps=4,
            adapt=Adapt(typical=8.5, power=1.5, least=1, most=10),
        ),
    },
    default_preset="balanced",
    licence=Licence(
        name="Apache-2.0",
        url="https://www.apache.org/licenses/LICENSE-2.0",
        notice="Weights trained on generated faces (MIT, CC0) and official US portraits; see the model card.",
    ),
    packaged=Path(__file__).parent / "bundle",
)
