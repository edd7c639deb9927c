"""Faces to measure on: read, resized to a system's size, degraded by one of LEVELS or left clean, and restored."""

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bfr.benchmarks.quality.metrics import UInt8
from bfr.models.systems.mini.degrade import LEVELS as DEGRADED_LEVELS
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.errors import InputNotFound, InvalidImage, InvalidOption, RestorationFailed
from bfr.runtime.images.decode import read_image
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.restore.chain import to_unit
from bfr.runtime.restore.chains import choose_bucket
from bfr.runtime.restore.inputs import image_key, to_input, to_output
from bfr.runtime.restore.plan import ESTIMATE
from bfr.runtime.restore.restorer import Restorer

LEVELS_SIZE = 256  # pixels: the side that LEVELS are given for
CLEAN = Degradation()
LEVELS = {"clean": CLEAN, **DEGRADED_LEVELS}


@dataclass(frozen=True, slots=True)
class DegradedFace:
    """A name without path, the picture to restore and its truth, each (S, S, 3) uint8 RGB."""

    name: str
    degraded: UInt8
    truth: UInt8


def level_at(name: str, size: int) -> Degradation:
    """Scale a level to a system's size: blur and downsampling grow with the side, so that as much of the face is lost.

    Noise and JPEG act on the small picture, which then has the same size, and stay. No level enlarges: below 256 pixels
    a downsampling stops at 1. The blur's kernel has 41 pixels at any size, so a wide one is cut at 512. Raises
    InvalidOption for an unknown level.
    """
    if name not in LEVELS:
        raise InvalidOption(f"level {name!r} is unknown: choose from {', '.join(LEVELS)}")
    level, scale = LEVELS[name], size / LEVELS_SIZE
    blur = (level.blur[0] * scale, level.blur[1] * scale)
    return replace(level, blur=blur, downsample=max(1.0, level.downsample * scale))


def read_faces(folder: Path, size: int, limit: int | None) -> list[tuple[str, UInt8]]:
    """Names and pictures, (S, S, 3) uint8 RGB, of the first `limit` images of a folder, resized (antialiased bicubic).

    Raises InputNotFound if there are none, InvalidImage if one is not square.
    """
    items = find_images([folder])[:limit]
    if not items:
        raise InputNotFound(f"{folder} has no PNG, JPEG, WebP, BMP or TIFF image: name a folder of aligned faces")
    faces = []
    for item in items:
        pixels = read_image(Path(item.source)).pixels
        height, width = pixels.shape[:2]
        if height != width:
            raise InvalidImage(
                f"{item.source} has {width} x {height} pixels: aligned faces are square, align and crop it"
            )
        unit = np.clip(to_input(pixels, size), 0.0, 1.0)
        faces.append((item.name, to_output(unit, np.empty((size, size, 3), np.uint8))))
    return faces


def degrade(name: str, truth: UInt8, degradation: Degradation, seed: int) -> DegradedFace:
    """Degrade a face with noise of its own: a function of the seed and its name, not of its place in the folder.

    Raises InvalidImage for a truth of one colour: nothing can be as sharp as it.
    """
    if truth.min() == truth.max():
        raise InvalidImage(f"{name} is of one colour, its sharpness is undefined: take it out of the folder")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return DegradedFace(name, degradation.apply(truth, rng), truth)


@dataclass(frozen=True, slots=True)
class Pictures:
    """One face at each stage (input, estimate, result) and its truth, (S, S, 3) uint8 RGB each.

    Attributes:
        seconds: Seconds of the whole chain.
        estimate_seconds: Seconds of the estimator alone.
    """

    name: str
    stages: Mapping[str, UInt8]
    truth: UInt8
    seconds: float
    estimate_seconds: float


def restore(restorer: Restorer, face: DegradedFace, seed: int) -> Pictures:
    """Restore one face. Its noise depends on its pixels and the seed alone. Raises RestorationFailed for NaN or Inf."""
    degraded = to_input(face.degraded, restorer.size)
    batch = choose_bucket(1, restorer.device.buckets)
    chain = restorer.chain(batch)
    begin = time.perf_counter()
    outcome = chain.run(np.stack([degraded] * batch), seed=seed, images=(image_key(degraded),) * batch)
    seconds = time.perf_counter() - begin
    started = to_unit(chain.device.read(chain.values[ESTIMATE]))
    if not (np.isfinite(outcome.image[0]).all() and np.isfinite(started[0]).all()):
        raise RestorationFailed(f"{face.name}: the result holds NaN or Inf; `bfr verify` checks the bundle")
    estimate, result = (to_output(x[0], face.degraded) for x in (started, outcome.image))
    stages = {"input": face.degraded, "estimate": estimate, "result": result}
    return Pictures(face.name, stages, face.truth, seconds, outcome.seconds["estimate"])
