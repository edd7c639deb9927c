"""Synthetic degradations of faces: what the estimator learns to undo, and what the quality benchmark restores.

The order is that of the published training recipe (arXiv 2212.06512, section 4): blur, downsample, Gaussian noise,
JPEG, back to size, grey. NumPy and OpenCV only.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BLUR_SIZE = 41  # pixels, at 512x512 as at 256x256: the tails of a wide blur are cut there


@dataclass(frozen=True, slots=True)
class Degradation:
    """One degradation.

    Attributes:
        blur: Standard deviations of the blur along its two axes, in pixels.
        angle: Angle of the blur, in radians.
        downsample: Downsampling factor, 1 or more.
        noise: Standard deviation of the noise, in grey levels of 255.
        jpeg: JPEG quality, 1 to 100.
        grey: Remove the colours.
    """

    blur: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    downsample: float = 1.0
    noise: float = 0.0
    jpeg: int | None = None
    grey: bool = False

    def apply(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Degrade an image, (H, W, 3) uint8 RGB -> the same; `rng` draws the noise."""
        height, width = image.shape[:2]
        x: NDArray[Any] = image.astype(np.float32) / 255.0
        if max(self.blur) > 0:
            x = cv2.filter2D(x, -1, gaussian_kernel(*self.blur, self.angle), borderType=cv2.BORDER_REFLECT_101)
        small = (max(1, round(width / self.downsample)), max(1, round(height / self.downsample)))
        if small != (width, height):
            x = cv2.resize(x, small, interpolation=cv2.INTER_LINEAR)
        if self.noise > 0:
            x = x + rng.normal(0.0, self.noise / 255.0, x.shape).astype(np.float32)
        y: NDArray[Any] = np.asarray(np.clip(np.rint(x * 255.0), 0, 255), dtype=np.uint8)
        if self.jpeg is not None:
            _, data = cv2.imencode(".jpg", y[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            y = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[:, :, ::-1]
        if small != (width, height):
            y = cv2.resize(y, (width, height), interpolation=cv2.INTER_LINEAR)
        if self.grey:
            y = np.repeat(cv2.cvtColor(y, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
        return np.ascontiguousarray(y)


def gaussian_kernel(sigma_x: float, sigma_y: float, angle: float) -> NDArray[np.float32]:
    """(BLUR_SIZE, BLUR_SIZE) float32 that sums to 1: a Gaussian with its axes turned by `angle` radians."""
    grid = np.arange(BLUR_SIZE, dtype=np.float64) - BLUR_SIZE // 2
    x, y = np.meshgrid(grid, grid)
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    kernel = np.exp(-0.5 * ((u / sigma_x) ** 2 + (v / sigma_y) ** 2))
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def draw(rng: np.random.Generator, severity: float = 1.0) -> Degradation:
    """Draw a degradation from the published recipe's ranges, its lengths halved with the image's side (256 for 512).

    Factors of downsampling are drawn evenly in their logarithm, so that mild ones are seen as often as severe ones.

    Args:
        rng: Draws.
        severity: How much of each range is drawn from, from its mild end, 0.1 to 1.
    """
    sigma = rng.uniform(0.1, 7.5 * severity, size=2)
    if rng.random() < 0.5:
        sigma[1] = sigma[0]
    return Degradation(
        blur=(float(sigma[0]), float(sigma[1])),
        angle=float(rng.uniform(0, np.pi)),
        downsample=float(np.exp(rng.uniform(np.log(0.8), np.log(16.0 * severity)))),
        noise=float(rng.uniform(0.0, 20.0 * severity)),
        jpeg=int(rng.integers(round(100 - 70 * severity), 101)),
        grey=bool(rng.random() < 0.01),
    )


LEVELS = {
    "mild": Degradation(blur=(1.2, 1.2), downsample=2.0, noise=4.0, jpeg=80),
    "medium": Degradation(blur=(2.5, 2.5), downsample=4.0, noise=8.0, jpeg=60),
    "severe": Degradation(blur=(5.0, 5.0), downsample=8.0, noise=15.0, jpeg=40),
}
"""What quality is measured on, for faces of 256x256."""
