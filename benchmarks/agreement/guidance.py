"""What guidance adds to a step: `python -m bfr.benchmarks.agreement.guidance BUNDLE --out DIR`.

The same restoration with its guidance and without, in turns in one process, one face at a time. Every step of the
measured loop is guided, whatever the bundle's stop is; without guidance the gradient network is not called at all.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bfr.benchmarks.publish import publish
from bfr.benchmarks.speed.contender import open_contender
from bfr.benchmarks.tables import table
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.plan import Loop, make_plan


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds a step of each run, without and with guidance. gflop: of a call of the denoiser and of the gradient."""

    backend: str
    steps: int
    guided: int
    plain_seconds: tuple[float, ...]
    guided_seconds: tuple[float, ...]
    denoiser_gflop: float | None
    gradient_gflop: float | None

    @property
    def ratio(self) -> float:
        """Of a guided step to a plain one, by the medians."""
        return median(self.guided_seconds) / median(self.plain_seconds)


def measure(bundle: Bundle, backend: str, *, steps: int, repeats: int, warmup: int, threads: int | None) -> Overhead:
    """Time a loop of `steps` calls. Raises InvalidOption where the system has no guided loop, BackendUnavailable."""
    if repeats < 1 or warmup < 0 or steps < 1:
        raise InvalidOption(f"repeats {repeats}, warm-up {warmup}, steps {steps}: choose at least 1, 0 and 1")
    stage = next((stage for stage in bundle.denoisers if stage.guidance), None)
    if stage is None or stage.guidance is None:
        raise InvalidOption(f"{bundle.manifest.system} has no guided loop: export difface-identity or clr-face")
    everywhere = stage.model_copy(update={"guidance": stage.guidance.model_copy(update={"start": 1e4, "stop": 0.0})})
    stages = tuple(everywhere if one == stage else one for one in bundle.manifest.stages)
    bundle = Bundle(bundle.folder, bundle.manifest.model_copy(update={"stages": stages}), bundle.hash)
    guided = bundle.preset().shortened(steps)
    samplers = {"plain": guided.model_copy(update={"guidance": 0.0}), "guided": guided}
    loop: Loop = next(loop for loop in make_plan(bundle, guided).loops if loop.name == stage.name)
    size = bundle.manifest.image_size
    face = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    with ExitStack() as owned:
        contender = open_contender(bundle, backend, threads=threads, spinning=True)
        owned.callback(contender.device.close)
        runs = {n: owned.enter_context(contender.restorer(bundle, s, 1)) for n, s in samplers.items()}
        for turn in range(warmup + repeats):
            for name, restorer in runs.items():
                found = restorer.run([face])[0].seconds[stage.name] / steps
                if turn >= warmup:
                    seconds[name].append(found)
    return Overhead(
        backend,
        steps,
        len(loop.guide.steps) if loop.guide else 0,
        tuple(seconds["plain"]),
        tuple(seconds["guided"]),
        bundle.network(stage.network).gflop,
        bundle.network(stage.guidance.network).gflop,
    )


def as_markdown(system: str, found: Sequence[Overhead]) -> str:
    """A row for each backend."""
    rows = [
        [
            one.backend,
            f"{one.guided} of {one.steps}",
            f"{median(one.plain_seconds):.4g}",
            f"{median(one.guided_seconds):.4g}",
            f"{one.ratio:.2f}x",
            "" if one.denoiser_gflop is None else f"{one.denoiser_gflop:.4g}",
            "" if one.gradient_gflop is None else f"{one.gradient_gflop:.4g}",
        ]
        for one in found
    ]
    head = ["backend", "guided steps", "plain s", "guided s", "ratio", "denoiser GFLOP", "gradient GFLOP"]
    lines = [
        f"# What guidance adds to a step of {system}\n\nSeconds of one step on one face, medians of "
        f"{len(found[0].plain_seconds)} runs each way, in turns in one process.\n",
        *table(head, rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of guidance.json and guidance.md")
    parser.add_argument(
        "--backends", default="onnxruntime-cpu", help="names of bfr.benchmarks.speed.contender, by commas"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of the CPU")
    args = parser.parse_args(arguments)

    def call() -> tuple[dict[str, Any], str]:
        bundle = Bundle.open(args.bundle)
        options = {name: getattr(args, name) for name in ("steps", "repeats", "warmup", "threads")}
        found = [measure(bundle, backend, **options) for backend in args.backends.split(",")]
        facts = {"system": bundle.manifest.system, "bundle_sha256": bundle.hash}
        return {**facts, "overheads": [asdict(one) for one in found]}, as_markdown(bundle.manifest.system, found)

    options = f"--backends {args.backends} --steps {args.steps} --repeats {args.repeats} --warmup {args.warmup}"
    options += f" --threads {args.threads}" if args.threads else ""
    return publish(
        args.out, "guidance", f"python -m bfr.benchmarks.agreement.guidance BUNDLE --out DIR {options}", call
    )


if __name__ == "__main__":
    sys.exit(main())
