"""A start for each image, chosen from the difference between estimate and input.

An image that the estimator hardly changed is diffused little and keeps its detail; a changed one has little detail to
lose. All images of a batch take the same number of steps, each on its own grid.
"""

from collections.abc import Callable, Sequence

import numpy as np

from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.diffusion.schedule import GRIDS, Float64
from bfr.runtime.diffusion.solvers import StepTable
from bfr.runtime.errors import InvalidOption

Truncate = Callable[[Float64], Sequence[StepTable]]
"""Chooses the table of each image by its movement, (B,). All tables have the same length."""


def movement(degraded: Float32, estimate: Float32) -> Float64:
    """(B,) float64: the RMS of the estimate's difference from its input, in grey levels of 255.

    Args:
        degraded: (B, 3, S, S) in [0, 1].
        estimate: The same shape, in [-1, 1], as the loop starts from it.
    """
    difference = (estimate * np.float32(0.5) + np.float32(0.5)) - degraded
    return np.asarray(255.0 * np.sqrt(np.mean(np.square(difference, dtype=np.float64), axis=(1, 2, 3))))


def starts(sampler: Preset, moved: Float64) -> Float64:
    """(B,) float64: the timestep that each image is diffused to; the preset's own where the movement is not finite.

    An image that moved by `adapt.typical` gets the preset's start. Other starts are proportional to a power of the
    movement, within `adapt.least` and `adapt.most`.
    """
    adapt = sampler.adapt
    if adapt is None:
        return np.full(len(moved), float(sampler.start))
    scaled = sampler.start * (np.where(np.isfinite(moved), moved, adapt.typical) / adapt.typical) ** adapt.power
    return np.asarray(np.clip(scaled, adapt.least, adapt.most))


def truncation(sampler: Preset, table: Callable[[Preset], StepTable]) -> Truncate | None:
    """Return the function that chooses the table of each image; None if the preset has one table for all.

    Args:
        sampler: The preset.
        table: Makes the table of a preset.

    Raises:
        InvalidOption: The preset's limits are not those of a grid.
    """
    adapt = sampler.adapt
    if adapt is None:
        return None
    if sampler.spacing not in GRIDS:
        raise InvalidOption(f"adapt needs a grid of timesteps: choose one of the spacings {', '.join(GRIDS)}")
    if not adapt.least <= adapt.most:
        raise InvalidOption(f"adapt's least start {adapt.least:g} is above its most, {adapt.most:g}: exchange them")

    def at(start: float) -> StepTable:
        return table(sampler.model_copy(update={"start": float(start)}))

    for end in (adapt.least, adapt.most):
        at(end)  # refused now, not in the middle of a batch
    return lambda moved: [at(start) for start in starts(sampler, moved)]
