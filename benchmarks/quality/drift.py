"""How far one sampler's pictures are from another's, and the yardstick: how far the other is from itself.

A reference draws one face of many that fit the input; another seed draws another. A shorter sampler that is no farther
from the reference, same seed, than the reference is from itself with another seed changes nothing that chance does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bfr.benchmarks.publish import say
from bfr.benchmarks.quality.faces import DegradedFace, Pictures, restore
from bfr.benchmarks.quality.metrics import Mean, UInt8, haar_psi, psnr, ssim
from bfr.runtime.diffusion.noise import check_seed
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.restorer import Restorer

EQUAL_DB = 100.0  # the PSNR that equal pictures count as: one sample that is a level off has about as much
LABELS = {"psnr_db": ("PSNR, dB", 2), "ssim": ("SSIM", 4), "haar_psi": ("HaarPSI", 4)}
RULE = (
    "Drift is measured between a sampler's results and the reference's, same inputs and same seed; the spread between "
    "the reference's results with one seed and with others. A sampler is within the spread if its mean drift PSNR is "
    "at least the spread's less one standard error of the paired difference (image by image, drift - spread; above 0 "
    "is nearer to the reference than its own other seeds are). A blur lies between all draws, and nearer to each than "
    "they to each other, so that it can be within the spread too: read the verdict beside the sharpness."
)


@dataclass(frozen=True, slots=True)
class Anchor:
    """What the reference makes of one face, and its spread: drift of other seeds' results from it, their mean."""

    pictures: Pictures
    spread: Mapping[str, float]

    @property
    def result(self) -> UInt8:
        """(S, S, 3) uint8 RGB."""
        return self.pictures.stages["result"]


def drift(image: UInt8, reference: UInt8) -> dict[str, float]:
    """`psnr_db` (EQUAL_DB at most), `ssim` and `haar_psi` between two pictures, (H, W, 3) uint8 RGB."""
    return {
        "psnr_db": min(psnr(image, reference), EQUAL_DB),
        "ssim": ssim(image, reference),
        "haar_psi": haar_psi(image, reference),
    }


def anchor(
    restorer: Restorer,
    faces: Sequence[DegradedFace],
    *,
    seed: int,
    others: Sequence[int],
) -> list[Anchor]:
    """Restore every face with the reference's `seed` and with the `others`; the restorer's chains are closed after."""
    anchors = []
    with restorer:
        for face in faces:
            pictures = restore(restorer, face, seed)
            result = pictures.stages["result"]
            spreads = [drift(restore(restorer, face, other).stages["result"], result) for other in others]
            anchors.append(Anchor(pictures, {m: float(np.mean([spread[m] for spread in spreads])) for m in LABELS}))
            if len(anchors) % 10 == 0 or len(anchors) == len(faces):
                say(f"reference, {restorer.sampler}, {1 + len(others)} seeds: {len(anchors)} of {len(faces)}")
    return anchors


def check_seeds(seed: int, others: Sequence[int]) -> None:
    """Raise InvalidOption unless all are seeds and no two are the same."""
    for each in (seed, *others):
        check_seed(each)
    if not others or len({seed, *others}) != 1 + len(others):
        raise InvalidOption(
            f"--other-seeds {','.join(map(str, others))} with --seed {seed}: name at least one, each different"
        )


def within(difference: Mean) -> bool:
    """The rule of RULE.

    Args:
        difference: Difference of PSNR in dB, drift less spread, image by image.
    """
    return difference.mean >= -(difference.error or 0.0)
