"""How long a run will take, from a few of its images."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import sqrt
from statistics import mean, stdev
from typing import TYPE_CHECKING

from bfr.runtime.errors import BfrError
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import byte_limit
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.page import duration
from bfr.runtime.jobs.report import plural
from bfr.runtime.jobs.sources import Item
from bfr.runtime.jobs.store import read_bytes
from bfr.runtime.jobs.work import Picture, finish, prepare, read_item
from bfr.runtime.restore.batch import Restored

if TYPE_CHECKING:
    from bfr.runtime.restore.restorer import Restorer

SAMPLED = 6  # images, spread over the run


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a run is expected to take.

    Attributes:
        images: Number of images of the run.
        sampled: How many of them were looked at.
        faces: Expected in all of them.
        face_seconds: Seconds of the networks per face.
        seconds: Seconds of the run, without opening the networks.
        least, most: Seconds that the run lies between with 95 %, as far as the images looked at differ.
        videos: Number of videos of the run, which the estimate leaves out.
    """

    images: int
    sampled: int
    faces: float
    face_seconds: float
    seconds: float
    least: float
    most: float
    videos: int

    def __str__(self) -> str:
        between = f", between {duration(self.least)} and {duration(self.most)}" if self.most > self.least else ""
        videos = f"; {plural(self.videos, 'video')} not counted" if self.videos else ""
        return (
            f"{plural(self.images, 'image')} with about {plural(round(self.faces), 'face')}: about "
            f"{duration(self.seconds)}{between} (from {self.sampled} of them, {duration(self.face_seconds)} a face)"
            f"{videos}"
        )


def estimate(
    worker: "Restorer | PhotoRestorer", items: Sequence[Item], options: JobOptions, face_seconds: float
) -> Estimate:
    """Estimate the time of a run: a few images go through everything but the networks.

    What runs beside the networks is added to what they take, since on a CPU they share its cores.

    Args:
        worker: What would restore.
        items: The inputs of the run.
        options: How results would be written; nothing is.
        face_seconds: What the networks take for a face.
    """
    editor = worker if isinstance(worker, PhotoRestorer) else None
    images = [item for item in items if not item.is_video]
    chosen = [images[len(images) * k // SAMPLED] for k in range(SAMPLED)] if len(images) > SAMPLED else images
    faces, costs = [], []
    for item in chosen:
        begin = time.perf_counter()
        picture = Picture(item.key, partial(read_bytes, item.source, byte_limit(options.max_pixels)))
        crops = prepare(picture, partial(read_item, item, options.max_pixels), editor).crops
        if picture.error is None:
            results = [Restored(crop, {}, "fp32") for crop in crops]
            output = f"result{item.result_suffix(options.format)}"
            with suppress(BfrError):  # the run would go on too
                finish(picture, results, editor, output=output, quality=options.quality, metadata=options.metadata)
        faces.append(len(crops))
        costs.append(time.perf_counter() - begin + len(crops) * face_seconds)
    count = len(images)
    middle = count * mean(costs or [0.0])
    known = len(chosen) == count
    spread = 0.0 if known or len(costs) < 2 else 1.96 * count * stdev(costs) / sqrt(len(costs))
    return Estimate(
        count,
        len(chosen),
        count * mean(faces or [0]),
        face_seconds,
        middle,
        max(0.0, middle - spread),
        middle + spread,
        len(items) - count,
    )
