"""Whether memory stays what it is: `python -m bfr.benchmarks.end_to_end.endurance BUNDLE --images 1000 --out DIR`.

Restores different images, one batch after the other, in a process of its own on one backend, and looks at the memory in
use on the device and on the host every 50 images. Writes `endurance.json` and `endurance.md`. Ends with
status 1 where the device's grew at all after the first look, or the host's by 1 % from the first half to the second.
"""

import argparse
import os
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.speed.contender import open_contender
from bfr.benchmarks.speed.interleave import synthetic_faces
from bfr.benchmarks.tables import table
from bfr.runtime.backends.registry import CompilerOption
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.restorer import Restorer

EVERY = 50
# Images, and two batches of each size at least: a GPU records the second one, and the host's allocator settles.
WARM_UP = 50
HOST_GROWTH = 0.01


@dataclass(frozen=True, slots=True)
class Look:
    """Bytes in use after so many images.

    Attributes:
        device: Of the whole GPU, whoever uses it; None without one.
    """

    images: int
    device: int | None
    host: int | None


@dataclass(frozen=True, slots=True)
class Endurance:
    """What was seen.

    Attributes:
        looks: In order, the first after the warm-up.
    """

    backend: str
    batch: int
    steps: int
    seconds: float
    looks: list[Look]

    @property
    def device_growth(self) -> int | None:
        """Bytes, from the first look to the largest; None where it is unknown."""
        found = [look.device for look in self.looks if look.device is not None]
        return max(found) - found[0] if found else None

    @property
    def host_growth(self) -> float | None:
        """Of the largest look of the second half over that of the first half, as a share of it.

        A host's resident memory comes and goes with the arrays that are alive at a look; growth lifts the level.
        """
        found = [look.host for look in self.looks if look.host is not None]
        return growth(found) if len(found) > 1 else None

    @property
    def constant(self) -> bool:
        """Whether nothing grew."""
        return not self.device_growth and (self.host_growth or 0.0) < HOST_GROWTH


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
) -> Endurance:
    """Restore `images` images after the warm-up. steps: number of calls, instead of the preset's.

    compiler: as of `open_contender`.

    Raises RestorationFailed for a result that is not finite, and what `open_contender` raises.
    """
    if min(images, batch, every) < 1:
        raise InvalidOption(f"images {images}, batch {batch}, every {every}: choose 1 or more of each")
    sampler = bundle.preset()
    if steps is not None:
        sampler = sampler.shortened(steps)
    contender = open_contender(bundle, backend, threads=threads, spinning=True, index=index, compiler=compiler)
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
    return Endurance(backend, batch, steps, time.perf_counter() - begin, looks)


def growth(values: Sequence[float]) -> float:
    """Return by what share the largest of the second half exceeds the largest of the first half, the middle included.

    Args:
        values: Bytes in use, in order, at least two.
    """
    half = (len(values) + 1) // 2
    return max(values[half:]) / max(values[:half]) - 1.0


def _look(restorer: Restorer, images: int) -> Look:
    memory = restorer.device.memory()
    return Look(images, None if memory is None else memory[1] - memory[0], resident_bytes())


def resident_bytes(pid: int | str = "self") -> int | None:
    """Of a process, now; None where there is no /proc."""
    statm = Path(f"/proc/{pid}/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else None


def as_markdown(system: str, found: Endurance) -> str:
    """The looks, and what they say."""
    growth = [
        "the device's memory is not known or is the host's"
        if found.device_growth is None
        else f"the device's use grew by {found.device_growth:,} bytes",
        "the host's is not known"
        if found.host_growth is None
        else f"the host's largest of the second half is {found.host_growth:+.2%} from the first half's",
    ]
    rows = [
        [str(look.images), *("" if value is None else f"{value / 2**20:.1f}" for value in (look.device, look.host))]
        for look in found.looks
    ]
    lines = [
        f"# Memory over {found.looks[-1].images} images: {system}, {found.backend}",
        "",
        f"Batches of {found.batch}, {found.steps} steps each, {found.seconds:.0f} s. After the warm-up "
        f"{', '.join(growth)}. {'Constant.' if found.constant else 'NOT constant.'}",
        "",
        *table(["images", "device MiB", "host MiB"], rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    command = Command("bfr.benchmarks.end_to_end.endurance", __doc__)
    command.add_argument("bundle", type=Path)
    command.add_argument("--backend", default="onnxruntime-cpu", help="a name of bfr.benchmarks.speed.contender")
    command.number("--images", 1000)
    command.number("--batch", 1)
    command.number("--steps", None, "denoiser calls, instead of the preset's")
    command.number("--every", EVERY, "images between two looks")
    command.number("--threads", None, "of the CPU")
    command.number("--device", 0, "number of the GPU")
    grew = False

    def call(args: argparse.Namespace) -> Findings:
        nonlocal grew
        bundle = Bundle.open(args.bundle)
        options = {name: getattr(args, name) for name in ("images", "batch", "steps", "threads", "every")}
        found = endure(bundle, args.backend, index=args.device, **options)
        grew = not found.constant
        facts = {"system": bundle.manifest.system, "bundle_sha256": bundle.hash}
        growth = {name: getattr(found, name) for name in ("device_growth", "host_growth", "constant")}
        return {**asdict(found), **facts, **growth}, as_markdown(bundle.manifest.system, found)

    return command.run(arguments, call) or int(grew)


if __name__ == "__main__":
    sys.exit(main())
