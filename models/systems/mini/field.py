"""Degradations that people bring, in second order: blur, resize, noise and compression, once or twice.

The order of a pass is that of Real-ESRGAN (arXiv 2107.10833); the kinds go beyond it: phone noise, film grain,
sharpening halos, interlace, WebP, scratches. A cast, a fading or grey is part of the truth: the estimator restores
detail and keeps a photograph's tones. NumPy and OpenCV only.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.models.systems.mini.degrade import draw, gaussian_kernel

Image = NDArray[Any]  # (H, W, 3) float32 RGB in [0, 1]
UInt8 = NDArray[np.uint8]

RESAMPLERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4, cv2.INTER_NEAREST)
UNTOUCHED, PUBLISHED = 0.1, 0.6  # shares of faces that nothing happens to, and that get the published recipe
MILDEST = 0.3  # of the ranges of that recipe, at least
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # Rec. 601


def pair(face: UInt8, rng: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Draw a truth and its degraded picture from a face, each (H, W, 3) uint8 RGB."""
    clean = tone(face, rng)
    kind = rng.random()
    if kind < UNTOUCHED:
        return clean, clean
    if kind < UNTOUCHED + PUBLISHED:
        return clean, draw(rng, rng.uniform(MILDEST, 1.0)).apply(clean, rng)
    return clean, second_order(clean, rng)


def tone(face: UInt8, rng: np.random.Generator) -> UInt8:
    """Grey, sepia, faded or tinted, one face in five: (H, W, 3) uint8 RGB -> the same."""
    if rng.random() >= 0.2:
        return face
    x: NDArray[Any] = face.astype(np.float32) / 255.0
    kind = rng.random()
    if kind < 0.6:
        x = np.repeat((x @ LUMA)[:, :, None], 3, axis=2)
    if kind > 0.3:  # sepia if it is grey already, else a cast
        x = x * rng.uniform(0.75, 1.1, size=3).astype(np.float32)
    black, white = rng.uniform(0.0, 0.25), rng.uniform(0.7, 1.0)
    x = black + (white - black) * np.clip(x, 0, 1) ** rng.uniform(0.7, 1.4)
    return to_uint8(x)


def second_order(face: UInt8, rng: np.random.Generator) -> UInt8:
    """One or two passes of blur, resize, noise and compression, then back to size: (H, W, 3) uint8 RGB -> the same."""
    height, width = face.shape[:2]
    x: NDArray[Any] = face.astype(np.float32) / 255.0
    passes = 1 + int(rng.random() < 0.6)
    shrink = float(np.exp(rng.uniform(np.log(0.9), np.log(12.0))))
    split = rng.uniform(0.3, 1.0) if passes == 2 else 1.0
    for index in range(passes):
        factor = shrink**split if index == 0 else shrink ** (1 - split)
        if rng.random() < 0.75:
            x = blur(x, rng, 4.0 if index == 0 else 1.2)
        side = (max(12, round(x.shape[1] / factor)), max(12, round(x.shape[0] / factor)))
        x = cv2.resize(x, side, interpolation=RESAMPLERS[rng.choice(5, p=(0.3, 0.25, 0.25, 0.12, 0.08))])
        if rng.random() < 0.75:
            x = noise(x, rng)
        if rng.random() < 0.04:
            x = interlace(x, rng)
        if rng.random() < 0.75:
            x = compress(x, rng)
    if rng.random() < 0.15:
        x = sharpen(x, rng)
    x = cv2.resize(x, (width, height), interpolation=RESAMPLERS[rng.choice(4, p=(0.1, 0.4, 0.4, 0.1))])
    if rng.random() < 0.1:
        x = sharpen(x, rng)
    if rng.random() < 0.06:
        x = scratch(x, rng)
    if rng.random() < 0.2:
        x = compress(x, rng)
    return to_uint8(x)


def blur(x: Image, rng: np.random.Generator, widest: float) -> Image:
    """A Gaussian along two axes, a defocused disk or a motion, up to a standard deviation of `widest` pixels."""
    sigma, kind = float(np.exp(rng.uniform(np.log(0.2), np.log(widest)))), rng.random()
    if kind < 0.7:
        other = sigma * (1.0 if rng.random() < 0.6 else float(rng.uniform(0.3, 1.0)))
        kernel = gaussian_kernel(sigma, max(other, 0.1), float(rng.uniform(0, np.pi)))
    else:
        radius = 2 * sigma
        size = 2 * int(np.ceil(radius)) + 1
        if kind < 0.88:
            kernel = disk(radius, size)
        else:
            kernel = np.zeros((size, size), np.float32)
            angle, middle = rng.uniform(0, np.pi), size // 2
            step = radius * np.array([np.cos(angle), np.sin(angle)])
            ends = [tuple(int(v) for v in np.rint(middle + sign * step)) for sign in (-1, 1)]
            cv2.line(kernel, ends[0], ends[1], 1.0)
            kernel = np.asarray(cv2.GaussianBlur(kernel, (3, 3), 0.6), dtype=np.float32)
            kernel /= kernel.sum()
    return np.asarray(cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)


def disk(radius: float, size: int) -> NDArray[np.float32]:
    """(size, size) float32 that sums to 1: a disk of this radius in pixels, its edge antialiased."""
    grid = np.arange(size, dtype=np.float32) - size // 2
    kernel = np.clip(radius + 0.5 - np.hypot(grid[:, None], grid[None]), 0, 1)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def noise(x: Image, rng: np.random.Generator) -> Image:
    """Noise of a sensor, of a photon count, of a phone, or film grain; 1 to 30 grey levels."""
    sigma, kind = float(np.exp(rng.uniform(0.0, np.log(30.0)))) / 255.0, rng.random()
    height, width = x.shape[:2]
    drawn: NDArray[Any] = rng.standard_normal(x.shape, dtype=np.float32)
    if kind < 0.2:  # grey
        drawn = drawn[:, :, :1]
    elif kind < 0.4:  # photons: the standard deviation grows with the root of the light
        drawn = drawn * np.sqrt(np.clip(x, 0, 1) + 0.02) * 1.4
    elif kind < 0.55:  # a phone: fine grey noise and coarse blotches of colour
        coarse = rng.standard_normal((height // 3 + 1, width // 3 + 1, 3), dtype=np.float32)
        drawn = 0.7 * drawn[:, :, :1] + 0.7 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    elif kind < 0.65:  # film grain: grey, soft, strongest in the middle tones
        grain = cv2.GaussianBlur(drawn[:, :, 0], (0, 0), float(rng.uniform(0.4, 1.2)))
        drawn = (grain / grain.std())[:, :, None] * (4 * x * (1 - x) + 0.3)
    return np.asarray(x + sigma * drawn, dtype=np.float32)


def compress(x: Image, rng: np.random.Generator) -> Image:
    """JPEG, or WebP one time in four, of a quality between 20 and 95."""
    quality = int(rng.integers(20, 96))
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])
    if rng.random() < 0.25:
        suffix, options = ".webp", [cv2.IMWRITE_WEBP_QUALITY, quality]
    _, data = cv2.imencode(suffix, to_uint8(x)[:, :, ::-1], options)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), dtype=np.float32)[:, :, ::-1] / np.float32(255.0)


def sharpen(x: Image, rng: np.random.Generator) -> Image:
    """An unsharp mask with the halos that cameras and editors leave."""
    soft = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.7, 3.0)))
    return np.asarray(np.clip(x + rng.uniform(0.3, 1.5) * (x - soft), 0, 1), dtype=np.float32)


def interlace(x: Image, rng: np.random.Generator) -> Image:
    """Every second line comes from a moment later: moved sideways."""
    y = x.copy()
    y[1::2] = np.roll(x, int(rng.integers(-3, 4)), axis=1)[1::2]
    return y


def scratch(x: Image, rng: np.random.Generator) -> Image:
    """Thin lines and specks, light or dark, of old prints."""
    y = x.copy()
    height, width = x.shape[:2]
    for _ in range(int(rng.integers(1, 8))):
        shade = float(rng.choice((0.05, 0.95)))
        start = rng.integers(0, (width, height))
        end = start + rng.normal(0.0, (4.0, 40.0) if rng.random() < 0.5 else (1.5, 1.5))
        points = [tuple(int(v) for v in point) for point in (start, end)]
        cv2.line(y, points[0], points[1], (shade, shade, shade), 1, cv2.LINE_AA)
    return np.asarray(x + rng.uniform(0.4, 0.9) * (y - x), dtype=np.float32)


def to_uint8(x: NDArray[Any]) -> UInt8:
    """Round [0, 1] to uint8."""
    return np.asarray(np.clip(np.rint(x * 255.0), 0, 255), dtype=np.uint8)
