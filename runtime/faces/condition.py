"""Measure the condition of an aligned face: its sharpness at the crop's scale, its noise, grain and JPEG blocks."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Matrix, rectangle, scale_of
from bfr.runtime.faces.mask import FACE

SHARP = 0.42  # least acuity of a sharp face
NOISE = 4.5  # levels of 255, the most of a sharp face
GRAIN = 1.7  # levels of 255 of grain, or of a printed screen, the most of a sharp face
BLOCKS = 1.8  # levels of 255 between JPEG's blocks, the most of a sharp face
COLOURS = 64  # least number of a sharp face's colours: the steps of a smaller palette look like sharp edges
SAMPLED = 128  # approximate side, in pixels, of the sample in which colours are counted
COARSE = 1.25  # pixels of the crop for one of the photograph: with more, the crop is finer than the photograph
STEEPEST = 0.99  # the share of gradients below the one that is measured: that of edges, not of skin
CELL = 16  # pixels a side of a place in which noise is measured
SMOOTHEST = 0.2  # the share of places that are smoother than where noise counts
PLAIN = (0.1, 0.3)  # the shares of places that are smoother than where grain counts, and than where it is compared
EVEN = 0.6  # of the grain in the latter, what the former has at least: it is everywhere alike
CLIPPED = 12  # levels from black and from white within which neither shows
MEDIAN = 0.6745  # of the absolute value of a Gaussian, in its standard deviations
NOISE_STEEPEST = 18.4  # squared gradient that Gaussian noise has at STEEPEST, in its variances: -4 ln(1 - 0.99)
SMALLEST = 4 * CELL  # pixels a side of a crop that can be measured

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Condition:
    """The measurements of a face.

    Attributes:
        acuity: The gradient of the face's edges over one pixel of the crop, less what noise adds, relative to that over
            four: 0.25 of a blurred edge, 1 of a sharp one, whatever the contrast.
        noise: Standard deviation, levels of 255, in the smoothest places of the crop, or of the photograph where it is
            larger.
        grain: Standard deviation, levels of 255, of what is finer than two pixels in the smoothest places of face and
            background: a photograph has a plain wall or cheek somewhere; a halftone, an engraving and a grainy print
            have none.
        blocks: The step at the borders of JPEG's blocks, levels of 255.
        scale: Pixels of the crop for one of the photograph.
        colours: Different ones in the middle of the face, in the photograph.
    """

    acuity: float
    noise: float
    grain: float
    blocks: float
    scale: float
    colours: int = COLOURS

    @property
    def sharp(self) -> bool:
        """Whether restoring the face could only make it worse."""
        clean = self.noise <= NOISE and self.grain <= GRAIN and self.blocks <= BLOCKS and self.colours >= COLOURS
        return clean and self.acuity >= SHARP and self.scale <= COARSE


def measure_condition(crop: NDArray[Any], matrix: Matrix, photograph: NDArray[Any] | None = None) -> Condition:
    """Measure a face.

    Args:
        crop: The aligned crop, (S, S, 3) uint8 or uint16.
        matrix: The transform from the photograph to the crop.
        photograph: (H, W, 3) of the crop's dtype, in which JPEG's blocks lie on their grid, and noise is as strong as
            it is seen. None leaves out blocks, colours, and noise that averaging to the crop has hidden.
    """
    scale = scale_of(matrix)
    if crop.shape[0] < SMALLEST:
        return Condition(0.0, 0.0, 0.0, 0.0, scale)
    luma = _luma(crop)
    noise = _noise(luma, _inside(luma.shape[0] // CELL))
    near, far = (_steepest(luma, width) ** 2 for width in (1, 4))
    near_noise, far_noise = (NOISE_STEEPEST * (noise / width) ** 2 for width in (1, 4))
    seen = far > 2 * far_noise  # otherwise there is nothing but noise
    acuity = float(np.sqrt(max(near - near_noise, 0.0) / (far - far_noise))) if seen else 0.0
    blocks, colours = 0.0, COLOURS
    if photograph is not None:
        left, top, right, bottom = rectangle(matrix, crop.shape[0], photograph.shape)
        inset_x, inset_y = (right - left) // 4, (bottom - top) // 4
        seen_at = photograph[top + inset_y : bottom - inset_y, left + inset_x : right - inset_x]
        if min(seen_at.shape[:2]) >= CELL:
            middle = _luma(seen_at)
            step = max(1, min(seen_at.shape[:2]) // SAMPLED)
            packed = seen_at[::step, ::step].reshape(-1, 3).astype(np.int64) @ np.array([1, 1 << 16, 1 << 32])
            colours = 1 + int(np.count_nonzero(np.diff(np.sort(packed))))  # a ninth of the time of np.unique
            blocks, noise = _blocks(middle), max(noise, _noise(middle))
            if scale < 1:  # the crop hides it
                noise = max(noise, _grain(middle))
    return Condition(acuity, noise, _grain(luma), blocks, scale, colours)


def _luma(pixels: NDArray[Any]) -> Float32:
    """(H, W) in levels of 255."""
    levels = pixels.astype(np.float32) * np.float32(255 / np.iinfo(pixels.dtype).max)
    return np.asarray(cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY), np.float32)


def _noise(luma: Float32, where: NDArray[np.bool_] | None = None) -> float:
    """Standard deviation of white noise, from the diagonal differences of neighbours, which edges seldom have.

    where: (H // CELL, W // CELL), the places that count; all if left out.
    """
    height, width = luma.shape[0] // CELL, luma.shape[1] // CELL
    diagonal = np.zeros_like(luma)
    diagonal[:-1, :-1] = np.abs(luma[:-1, :-1] - luma[:-1, 1:] - luma[1:, :-1] + luma[1:, 1:]) / 2
    places = diagonal[: height * CELL, : width * CELL].reshape(height, CELL, width, CELL).swapaxes(1, 2)
    ordered = np.sort(places.reshape(height, width, -1), axis=2)  # a fifth of the time of np.median
    medians = ordered[..., CELL**2 // 2 - 1 : CELL**2 // 2 + 1].mean(axis=2)
    return float(np.quantile(medians if where is None else medians[where], SMOOTHEST)) / MEDIAN


def _grain(luma: Float32) -> float:
    """Standard deviation of what is finer than two pixels, in the smoothest places; 0 if other places differ much.

    Grain and a printed screen are everywhere alike, leaves and hair are not. Clipped places are left out.
    """
    height, width = luma.shape[0] // CELL, luma.shape[1] // CELL
    part = luma[: height * CELL, : width * CELL]
    fine = part - cv2.GaussianBlur(part, (0, 0), 1.0)
    power, level = (cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA) for x in (fine * fine, part))
    seen = power[(level > CLIPPED) & (level < 255 - CLIPPED)]
    if not seen.size:
        return 0.0
    least, more = np.sqrt(np.quantile(seen, PLAIN))
    return float(least) if least > EVEN * more else 0.0


def _steepest(luma: Float32, width: int) -> float:
    """The gradient of the face's edges: the difference of the means of two squares of `width` pixels side by side."""
    means = cv2.boxFilter(luma, -1, (width, width), anchor=(0, 0))
    inside, here = _inside(luma.shape[0])[:-width, :-width], means[:-width, :-width]
    x, y = ((there - here)[inside] for there in (means[:-width, width:], means[width:, :-width]))
    return float(np.quantile(np.hypot(x, y), STEEPEST))


def _blocks(luma: Float32) -> float:
    """The mean step from one column to the next at every eighth one, above that of its neighbours; or of rows."""
    found = []
    for image in (luma, luma.T):
        step = np.abs(np.diff(image, axis=1))
        if step.shape[1] < 26 or step.shape[0] < 16:
            return 0.0
        excess = step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2
        phases = sorted(float(excess[:, phase::8].mean()) for phase in range(8))
        found.append(phases[-1] - (phases[3] + phases[4]) / 2)
    return max(min(found), 0.0)


@lru_cache(maxsize=8)
def _inside(side: int) -> NDArray[np.bool_]:
    """(side, side): the face's oval."""
    (x, y), radii, _ = FACE
    at = (np.arange(side) + 0.5) / side
    return np.asarray((((at - x) / radii[0]) ** 2)[None] + (((at - y) / radii[1]) ** 2)[:, None] < 1)
