"""Measures of a picture against its ground truth: PSNR, SSIM, HaarPSI, sharpness, agreement of detail; their means.

Pictures are (H, W, 3) uint8 RGB. None of these measures sees what a person sees: PSNR and SSIM prefer a blurred
average of all plausible faces to any sharp one of them (Blau and Michaeli, "The Perception-Distortion Tradeoff",
arXiv 1711.06077), so they are given beside two measures of detail, and beside contact sheets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.bundle.manifest import Preset

UInt8 = NDArray[np.uint8]
HIGH_PASS_SIGMA = 1.0  # pixels, at any size: what is sharp is sharp from one pixel to the next
SHARPNESS = (
    "Sharpness is the RMS of the luma's high-pass (Rec. 601 luma minus its Gaussian blur of sigma "
    f"{HIGH_PASS_SIGMA:g} px) divided by the truth's: 1 is as sharp as the truth. It counts noise, JPEG blocks and "
    "invented detail as sharp. Detail correlation is Pearson's correlation of that high-pass with the truth's: 1 is "
    "exactly the truth's detail; noise lowers it, and so does plausible detail that is a pixel off. "
    "A sharp but uncorrelated result is noise or invention; a correlated but unsharp one is blurred."
)
HAAR_C, HAAR_ALPHA = 30.0, 4.2  # the paper's section 4; C is for grey levels of 255
SCALES, WEIGHT_SCALE = (1, 2), 3
# NTSC's YIQ: luma and two chromas.
YIQ = np.array([(0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
Plane = NDArray[np.float64]
MEASURES = {  # of `score`: column and digits; the first three are drift too
    "psnr_db": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "haar_psi": ("HaarPSI", 4),
    "sharpness": ("sharpness", 3),
    "correlation": ("detail correlation", 3),
}


def psnr(image: UInt8, truth: UInt8) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, in dB, peak 255; infinite where they are equal."""
    error = float(np.mean((image.astype(np.float64) - truth) ** 2))
    return 10.0 * math.log10(255.0**2 / error) if error > 0 else math.inf


def ssim(image: UInt8, truth: UInt8) -> float:
    """Mean structural similarity (Wang et al., IEEE TIP 2004), scikit-image's uniform 7x7 window, mean of channels."""
    from skimage.metrics import structural_similarity

    found = structural_similarity(image, truth, channel_axis=2, data_range=255)  # type: ignore[no-untyped-call]
    return float(found)


def high_pass(image: UInt8) -> NDArray[np.float32]:
    """(H, W) float32, grey levels: the luma less its Gaussian blur of HIGH_PASS_SIGMA."""
    luma = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)
    blurred = cv2.GaussianBlur(luma, (0, 0), HIGH_PASS_SIGMA, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(luma - blurred, np.float32)


def rms(x: NDArray[np.float32]) -> float:
    """Root of the mean square."""
    return math.sqrt(float(np.mean(x.astype(np.float64) ** 2)))


def correlation(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Pearson's correlation of two arrays; 0 if one of them is constant: no detail agrees with nothing."""
    u, v = x.astype(np.float64) - x.mean(dtype=np.float64), y.astype(np.float64) - y.mean(dtype=np.float64)
    norm = math.sqrt(float(np.sum(u * u)) * float(np.sum(v * v)))
    return float(np.sum(u * v)) / norm if norm > 0 else 0.0


def likeness(image: UInt8, truth: UInt8) -> dict[str, float]:
    """`psnr_db`, `ssim` and `haar_psi` of two pictures."""
    return {"psnr_db": psnr(image, truth), "ssim": ssim(image, truth), "haar_psi": haar_psi(image, truth)}


def score(image: UInt8, truth: UInt8) -> dict[str, float]:
    """Measure a picture: `psnr_db`, `ssim`, `haar_psi`, `sharpness` and `correlation` (see SHARPNESS).

    A truth without any detail, a flat one, gives an undefined sharpness.
    """
    detail, wanted = high_pass(image), high_pass(truth)
    energy = rms(wanted)
    return {
        **likeness(image, truth),
        "sharpness": rms(detail) / energy if energy > 0 else math.nan,
        "correlation": correlation(detail, wanted),
    }


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over images, and its standard error (sample standard deviation / sqrt(n)), None of a single image."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """The mean of at least one value."""
        x = np.asarray(values, np.float64)
        return cls(float(x.mean()), float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else None)


Sample = Mapping[str, Any]
"""One face: its `name`, measures of several pictures of it by group and name, and `seconds` of the whole chain."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A sampler and what it did to every face; preset None is the estimate itself, without any call."""

    preset: Preset | None
    samples: Sequence[Sample]

    @property
    def seconds(self) -> float:
        """Median seconds per image."""
        return float(median(sample["seconds"] for sample in self.samples))

    def mean(self, group: str, measure: str) -> Mean:
        """Return the mean of a measure over the faces."""
        return Mean.of([sample[group][measure] for sample in self.samples])


@dataclass(frozen=True, slots=True, eq=False)
class HaarMap:
    """HaarPSI before it is averaged: similarities, and how much each counts, (3, H // 2, W // 2)."""

    similarities: NDArray[np.float64]
    weights: NDArray[np.float64]

    def mean(self, where: NDArray[np.bool_] | None = None) -> float:
        """HaarPSI of the pixels in `where`, (H, W); of all if left out."""
        similarities, weights = self.similarities, self.weights
        if where is not None:
            height, width = weights.shape[1:]
            counted = where[: 2 * height : 2, : 2 * width : 2]
            similarities, weights = similarities[:, counted], weights[:, counted]
        total = float(np.sum(weights))
        if total == 0.0:
            return 1.0  # both are black
        mean = float(np.sum(similarities * weights)) / total
        return float((np.log(mean / (1.0 - mean)) / HAAR_ALPHA) ** 2)


def haar_psi(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """HaarPSI of two pictures, 8 pixels a side or more: how alike they look, 0 to 1, by six Haar filters; symmetric.

    Both are halved first by the mean of 2 x 2 pixels, the paper's model of a viewing distance; outside of them is 0.
    Fine edges (scales 1 and 2) are compared, coarse ones (scale 3) weigh; no weights are learned.

    Source: Reisenhofer, Bosse, Kutyniok and Wiegand, "A Haar wavelet-based perceptual similarity index for image
    quality assessment" (Signal Processing: Image Communication 61, 2018; arXiv 1607.06140), its form for colour.
    """
    return haar_map(image, reference).mean()


def haar_map(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> HaarMap:
    """The parts of `haar_psi`, by places."""
    first, second = _halved_yiq(image), _halved_yiq(reference)
    similarities, weights = [], []
    for transpose in (False, True):  # horizontal edges, then vertical ones
        fine = [_similarity(*(np.abs(_haar(x[..., 0], scale, transpose)) for x in (first, second))) for scale in SCALES]
        coarse = [np.abs(_haar(x[..., 0], WEIGHT_SCALE, transpose)) for x in (first, second)]
        similarities.append(_logistic(np.mean(fine, axis=0)))
        weights.append(np.maximum(*coarse))
    chroma = [
        _similarity(*(np.abs(_filter(x[..., channel], np.full((2, 2), 0.25))) for x in (first, second)))
        for channel in (1, 2)
    ]
    similarities.append(_logistic(np.mean(chroma, axis=0)))
    weights.append(np.mean(weights, axis=0))
    return HaarMap(np.stack(similarities), np.stack(weights))


def _halved_yiq(image: NDArray[np.uint8]) -> NDArray[Any]:
    """(H, W, 3) uint8 RGB -> (H // 2, W // 2, 3) float64; an odd last row or column is left out."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    x = image[:height, :width].astype(np.float64) @ YIQ.T
    return np.asarray(x.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3)))


def _haar(plane: Plane, scale: int, transpose: bool) -> Plane:
    """The difference of the two halves of each window of 2**scale pixels a side, times 2**-scale."""
    side = 2**scale
    kernel = np.full((side, side), 2.0**-scale)
    kernel[side // 2 :] *= -1
    return _filter(plane, kernel.T if transpose else kernel)


def _filter(plane: Plane, kernel: Plane) -> Plane:
    """Of the plane's size; a window of an even side reaches one pixel farther right and down, and 0 lies outside."""
    anchor = (kernel.shape[1] // 2 - 1, kernel.shape[0] // 2 - 1)
    found = cv2.filter2D(np.ascontiguousarray(plane), -1, kernel, anchor=anchor, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(found, np.float64)


def _similarity(a: Plane, b: Plane) -> Plane:
    return np.asarray((2 * a * b + HAAR_C) / (a * a + b * b + HAAR_C))


def _logistic(x: Plane) -> Plane:
    return np.asarray(1.0 / (1.0 + np.exp(-HAAR_ALPHA * x)))
