"""Whether memory stays constant: `python -m bfr.benchmarks.end_to_end.endurance BUNDLE --images 1000 --out DIR`.

Restores different images, one batch after the other, in a separate process on one backend, and looks at the memory in
use on the device and on the host every 50 images. Writes `endurance.json` and `endurance.md`. Ends with
status 1 where the device's grew at all after the first look, or the host's by 1 % from the first half to the second.
"""

import argparse
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bfr.benchmarks.environment import resident_bytes
from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.speed.contender import open_contender
from bfr.benchmarks.speed.interleave import synthetic_faces
from bfr.benchmarks.tables import page, table
from bfr.runtime.backends.registry import CompilerOption
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.restorer import Restorer

EVERY = 50
# Images, and two batches of each size at least: a GPU records the second one, and the host's allocator settles.
WARM_UP = 50
HOST_GROWTH = 0.01


Look = dict[str, int | None]
"""Bytes in use after so many `images`: `device`, of the whole GPU, whoever uses it, and `host`; None if unknown."""


def endure(
    bundle: Bundle,
    backend: str,
    *,
    images: int,
    batch: int = 1,
    steps: int | None = None,
    threads: int | None = None,
    index: int = 0,
    every: int = EVERY,
    compiler: Collection[CompilerOption] | None = None,
) -> dict[str, Any]:
    """Restore images after the warm-up, and look at the memory in use.

    Args:
        bundle: The system.
        backend: The contender's name.
        images: How many different images.
        batch: Images a call.
        steps: Calls of the denoiser, instead of the preset's.
        threads: CPU threads.
        index: Number of the GPU.
        every: Images between two looks.
        compiler: As in `open_contender`.

    Returns:
        Figures: what ran, `seconds`, all `looks`, and what `judge` says of them.

    Raises:
        RestorationFailed: A result is not finite.
        BfrError: The contender cannot be opened, see `open_contender`.
    """
    if min(images, batch, every) < 1:
        raise InvalidOption(f"images {images}, batch {batch}, every {every}: choose 1 or more of each")
    sampler = bundle.preset()
    if steps is not None:
        sampler = sampler.shortened(steps)
    contender = open_contender(bundle, backend, threads=threads, index=index, compiler=compiler)
    faces = synthetic_faces(batch, bundle.manifest.image_size)
    sizes = [batch, images % batch] if images % batch else [batch]
    begin = time.perf_counter()
    try:
        with contender.restorer(bundle, sampler, batch) as restorer:
            for size in sizes * max(2, WARM_UP // batch):
                restorer.restore(faces[:size])
            looks, done = [_look(restorer, 0)], 0
            while done < images:
                size = min(batch, images - done)
                # A new image each time: other pixels, another key of the noise.
                shade = np.float32(0.5 + 0.5 * (done % 997) / 997)
                restorer.restore([face * shade for face in faces[:size]], seed=done)
                if (done + size) // every > done // every or done + size == images:
                    looks.append(_look(restorer, done + size))
                done += size
            steps = len(restorer.table)
    finally:
        contender.device.close()
    seconds = time.perf_counter() - begin
    figures = {"backend": backend, "batch": batch, "steps": steps, "seconds": seconds, "looks": looks}
    return figures | judge(looks)


def judge(looks: Sequence[Look]) -> dict[str, Any]:
    """Say whether memory is `constant`: neither grew.

    Args:
        looks: In order, the first after the warm-up.

    Returns:
        `device_growth` in bytes, from the first look to the largest; `host_growth`, see `growth`; None if they are
        not known; and `constant`.
    """
    device, host = ([found for look in looks if (found := look[where]) is not None] for where in ("device", "host"))
    device_growth = max(device) - device[0] if device else None
    host_growth = growth(host) if len(host) > 1 else None
    constant = not device_growth and (host_growth or 0.0) < HOST_GROWTH
    return {"device_growth": device_growth, "host_growth": host_growth, "constant": constant}


def growth(values: Sequence[float]) -> float:
    """Return by what share the largest of the second half exceeds the largest of the first half, the middle included.

    A host's resident memory comes and goes with the arrays that are alive at a look; growth lifts the level.
    """
    half = (len(values) + 1) // 2
    return max(values[half:]) / max(values[:half]) - 1.0


def _look(restorer: Restorer, images: int) -> Look:
    memory = restorer.device.memory()
    device = None if memory is None else memory[1] - memory[0]
    return {"images": images, "device": device, "host": resident_bytes()}


def measure(args: argparse.Namespace) -> Findings:
    """Run what the command line asks for."""
    bundle = Bundle.open(args.bundle)
    options = {name: getattr(args, name) for name in ("images", "batch", "steps", "threads", "every")}
    found = endure(bundle, args.backend, index=args.device, **options)
    system = bundle.manifest.system
    return {**found, "system": system, "bundle_sha256": bundle.hash}, as_markdown(system, found)


def as_markdown(system: str, found: dict[str, Any]) -> str:
    """The looks, and what they say."""
    device, host, looks = found["device_growth"], found["host_growth"], found["looks"]
    grown = (
        "device memory is unknown or shared with the host"
        if device is None
        else f"device memory grew by {device:,} bytes"
    ) + (
        ", host memory is unknown"
        if host is None
        else f", the maximum of host memory in the second half is {host:+.2%} from that of the first half"
    )
    rows = [
        [images, *(value and f"{value / 2**20:.1f}" for value in used)]
        for images, *used in (look.values() for look in looks)
    ]
    return page(
        f"# Memory over {looks[-1]['images']} images: {system}, {found['backend']}",
        f"Batches of {found['batch']}, {found['steps']} steps each, {found['seconds']:.0f} s. After the warm-up "
        f"{grown}. {'Constant.' if found['constant'] else 'NOT constant.'}",
        table(["images", "device MiB", "host MiB"], rows),
    )


main = Command("bfr.benchmarks.end_to_end.endurance", __doc__, measure, lambda figures: not figures["constant"])
main.add_argument("bundle", type=Path)
main.add_argument("--backend", default="onnxruntime-cpu", help="a name of bfr.benchmarks.speed.contender")
main.number("--images", 1000)
main.number("--batch", 1)
main.number("--steps", None, "denoiser calls, instead of the preset's")
main.number("--every", EVERY, "images between two looks")
main.number("--threads", None, "of the CPU")
main.number("--device", 0, "number of the GPU")

if __name__ == "__main__":
    sys.exit(main())
