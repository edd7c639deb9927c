"""PGDiff: restoration by partial guidance of an unconditional denoiser, from noise alone (arXiv 2309.10810).

Its denoiser is DifFace's. The published tasks `restoration` and `ref_restoration`; of the others see
docs/systems/pgdiff.md.
"""

from dataclasses import replace
from typing import Any

from bfr.models.systems.difface import ARCFACE, DIFFACE, IDENTITY, RECOGNIZER, with_insightface
from bfr.models.systems.difface import LICENCE as DIFFACE_LICENCE
from bfr.models.systems.system import NetworkSpec, SystemSpec, resize
from bfr.models.weights.fetch import Download
from bfr.runtime.bundle.manifest import Denoise, Diffuse, Estimate, ImageInput, Licence, Preset

RESTORER = Download("", "rrdb_iter_100000.pth")
SCALE = 0.1  # the published default; its authors take 0.05 to 0.1 for these tasks


def networks(denoiser: NetworkSpec, restorer: dict[str, Any], size: int) -> dict[str, NetworkSpec]:
    """Return the networks of a PGDiff of any size.

    Args:
        denoiser: The denoiser, with learned variance.
        restorer: Options of SmoothRestorer.
        size: Side of the images, in pixels.
    """
    guided = replace(
        denoiser,
        kind="step-learned-smooth",
        architecture="partial-guidance",
        parameters={"denoiser": denoiser.parameters, "restorer": restorer, "image_size": size},
        weights={"denoiser": denoiser.files[""], "restorer": RESTORER},
    )
    return {"signed": resize(size, size), "denoiser": guided}


def reference_networks(own: dict[str, NetworkSpec], recognizer: dict[str, Any], size: int) -> dict[str, NetworkSpec]:
    """Return the networks of a PGDiff with a reference.

    Args:
        own: The result of `networks`.
        recognizer: Options of IResNet.
        size: Side of the images, in pixels.
    """
    denoiser = own["denoiser"]
    whole = {"recognizer": recognizer, "image_size": size, "metric": "mse", "crop": "whole"}
    guided = replace(
        denoiser,
        kind="step-learned-reference",
        parameters={**denoiser.parameters, "recognizer": recognizer},
        weights={**denoiser.files, "identity.network.recognizer": ARCFACE},
    )
    embedder = NetworkSpec("reference-embedder", "identity", whole, {"recognizer": ARCFACE}, half=None)
    return {**own, "embedder": embedder, "denoiser": guided}


STAGES: tuple[Estimate | Diffuse | Denoise, ...] = (
    Estimate(name="sign", network="signed", inputs={"image": "degraded"}, outputs={"resized": "signed"}),
    Diffuse(source="signed"),
    Denoise(network="denoiser", strength=SCALE),
)
REFERENCE_STAGES = (STAGES[0], Estimate(name="embed", network="embedder"), *STAGES[1:])

PGDIFF = SystemSpec(
    name="pgdiff",
    title="PGDiff: Guiding Diffusion Models for Versatile Face Restoration, 512x512 (arXiv 2309.10810)",
    image_size=512,
    networks=networks(DIFFACE.networks["denoiser"], {"channels": 64, "blocks": 23, "growth": 32}, 512),
    stages=STAGES,
    presets={
        "reference": Preset(solver="ddpm-learned", spacing="1000", start=1000),
        "balanced": Preset(solver="ddpm-learned", spacing="ddim200", start=200),
        "fast": Preset(solver="ddpm-learned", spacing="ddim100", start=100),
    },
    licence=Licence(
        name="S-Lab License 1.0",
        url="https://github.com/pq-yang/PGDiff/blob/master/LICENSE",
        notice=f"PGDiff's restorer is for non-commercial use only. {DIFFACE_LICENCE.notice}",
    ),
    by_hand={
        RESTORER.file: "PGDiff's README (https://github.com/pq-yang/PGDiff) names where it is, under Blind Restoration"
    },
)

REFERENCE = replace(
    PGDIFF,
    name="pgdiff-reference",
    title="PGDiff with a reference picture of the same person, 512x512 (arXiv 2309.10810)",
    inputs=(ImageInput(name="reference", channels=3),),
    networks=reference_networks(PGDIFF.networks, RECOGNIZER, 512),
    stages=REFERENCE_STAGES,
    licence=with_insightface(PGDIFF.licence),
    by_hand={**PGDIFF.by_hand, **IDENTITY.by_hand},
)
