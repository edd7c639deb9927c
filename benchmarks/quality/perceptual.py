"""HaarPSI: how alike two pictures look, 0 to 1, from six Haar wavelet filters and no learned weights.

Source: Reisenhofer, Bosse, Kutyniok and Wiegand, "A Haar wavelet-based perceptual similarity index for image quality
assessment" (Signal Processing: Image Communication 61, 2018; arXiv 1607.06140), its form for colour, with the constants
that the paper fitted to people's ratings. Fine edges (scales 1 and 2) are compared, coarse ones (scale 3) weigh.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

C, ALPHA = 30.0, 4.2  # the paper's section 4; C is for grey levels of 255
SCALES, WEIGHT_SCALE = (1, 2), 3
# NTSC's YIQ: luma and two chromas.
YIQ = np.array([(0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
Plane = NDArray[np.float64]


def haar_psi(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """The index of two pictures, (H, W, 3) uint8 RGB of one size, 8 pixels or more: 1 for equal ones, symmetric.

    Both are halved first by the mean of 2 x 2 pixels, the paper's model of a viewing distance; outside of them is 0.
    """
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
    total = float(np.sum(weights))
    if total == 0.0:
        return 1.0  # both are black
    mean = float(np.sum(np.multiply(similarities, weights))) / total
    return float((np.log(mean / (1.0 - mean)) / ALPHA) ** 2)


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
    return np.asarray((2 * a * b + C) / (a * a + b * b + C))


def _logistic(x: Plane) -> Plane:
    return np.asarray(1.0 / (1.0 + np.exp(-ALPHA * x)))
