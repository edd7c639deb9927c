"""How long a face takes on this machine: measured once for a bundle and a way of opening it, and kept in the cache."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.machine import MachineFiles
from bfr.runtime.errors import WriteFailed
from bfr.runtime.files import cache_folder, write_bytes
from bfr.runtime.jobs.report import total_seconds
from bfr.runtime.restore.options import OpenOptions
from bfr.runtime.restore.plan import Plan
from bfr.runtime.restore.restorer import Restorer

FOLDER = "speed"  # inside the cache folder
STEPS = 3  # calls of the denoiser that are timed
ENOUGH = 1.0  # seconds; a quicker run is timed three times, and the least counts


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of a face, pixels to pixels: `fixed`, and `step` for each step of the loop.

    backend, precision: what was measured, where `auto` chose.
    """

    backend: str
    precision: str
    fixed: float
    step: float

    def seconds(self, plan: Plan) -> float:
        """Of one face with a plan of the same bundle."""
        return self.fixed + self.step * plan.steps


def kept_speed(bundle: Bundle, opened: OpenOptions) -> Speed | None:
    """What was measured here before; None if nothing was, or under other circumstances."""
    try:
        return Speed(**json.loads(_path(bundle, opened).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def speed_of(restorer: Restorer, opened: OpenOptions, show: Callable[[str], None] = lambda _text: None) -> Speed:
    """Read the speed that is kept; else measure it now, and keep it unless other processes keep the CPU busy.

    Args:
        restorer: What `opened` opens.
        opened: How it was opened; its preset does not matter.
        show: Called with a line before a measurement.
    """
    if kept := kept_speed(restorer.bundle, opened):
        return kept
    busy = _busy()
    kept_too = "the machine is busy, so it is not kept" if busy else "it is kept"
    show(f"measuring the seconds per face on {restorer.device.name}; {kept_too}")
    speed = Speed(restorer.device.name, restorer.precision, *_time(restorer))
    if busy:
        return speed
    try:
        write_bytes(_path(restorer.bundle, opened), json.dumps(asdict(speed)).encode())
    except WriteFailed:
        show("it could not be kept: the cache folder cannot be written")
    return speed


def _time(restorer: Restorer) -> tuple[float, float]:
    """Seconds of a face outside the loops, and of a step of them, in full batches."""
    steps = min(STEPS, restorer.plan.steps)
    sampler = restorer.sampler if steps == restorer.plan.steps else restorer.sampler.shortened(steps)
    with Restorer(
        restorer.bundle,
        restorer.device,
        sampler,
        precision=restorer.precision,
        batch=restorer.batch,
        networks=restorer.chains.networks,
    ) as one:
        one.warm_up()
        runs: list[dict[str, float]] = []
        while len(runs) < 3 and not (runs and total_seconds(runs[-1]) * one.batch > ENOUGH):
            runs.append(one.run([np.full((one.size, one.size, 3), 127, np.uint8)] * one.batch)[0].seconds)
        least = min(runs, key=total_seconds)
        in_loops = sum(least[loop.name] for loop in one.plan.loops)
        return total_seconds(least) - in_loops, in_loops / max(1, one.plan.steps)


def _busy() -> bool:
    """Whether other processes take half of the cores, or more; where the system does not say, they do not."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1) / 2


def _path(bundle: Bundle, opened: OpenOptions) -> Path:
    """The path of the cached speed. Raises WriteFailed if the user has no home folder."""
    asked = opened.model_dump(mode="json", exclude={"bundle", "preset"})
    made = MachineFiles(bundle.hash).read().model_dump_json()  # `auto` chooses by it
    circumstances = [bundle.hash, asked, made, platform.node(), version("bfr-runtime"), _installed()]
    return cache_folder() / FOLDER / f"{sha256(json.dumps(circumstances).encode()).hexdigest()[:32]}.json"


def _installed() -> list[str]:
    """Versions of what runs networks, as far as it is installed."""
    from importlib.metadata import distributions

    wanted = ("onnxruntime", "tensorrt", "torch")
    found = ((one.metadata["Name"] or "", one.version) for one in distributions())
    return sorted(f"{name} {release}" for name, release in found if name.lower().startswith(wanted))
