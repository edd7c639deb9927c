"""What each preset of a bundle costs, end to end: `python -m bfr.benchmarks.speed.presets BUNDLE --out DIR`.

One face at a time, from pixels to pixels, the presets and backends taking turns in one process. What they are worth is
for `bfr.benchmarks.quality.pareto` to say, on trained weights: the time depends on the arithmetic alone.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bfr.benchmarks.publish import publish
from bfr.benchmarks.speed.bench import plan_gflop
from bfr.benchmarks.speed.contender import open_contender
from bfr.benchmarks.tables import table
from bfr.runtime.bundle.bundle import Bundle
from bfr.runtime.bundle.manifest import Preset
from bfr.runtime.errors import InvalidOption
from bfr.runtime.restore.plan import make_plan


@dataclass(frozen=True, slots=True)
class Cost:
    """A preset on a backend. calls: of the denoiser. seconds: of each face. gflop: of all networks, for one face."""

    preset: str
    backend: str
    sampler: str
    calls: int
    gflop: float
    seconds: tuple[float, ...]


def measure(
    bundle: Bundle, presets: Sequence[str], backends: Sequence[str], *, repeats: int, warmup: int, threads: int | None
) -> list[Cost]:
    """Time every preset on every backend, in turns. Raises InvalidOption, BackendUnavailable."""
    if repeats < 1 or warmup < 0:
        raise InvalidOption(f"repeats {repeats}, warm-up {warmup}: choose at least 1 and 0")
    samplers: dict[str, Preset] = {name: bundle.preset(name) for name in presets}
    face = np.random.default_rng(0).integers(0, 256, (bundle.manifest.image_size,) * 2 + (3,), dtype=np.uint8)
    seconds: dict[tuple[str, str], list[float]] = {pair: [] for pair in itertools.product(presets, backends)}
    with ExitStack() as open_ones:
        restorers = {}
        for backend in backends:
            contender = open_contender(bundle, backend, threads=threads, spinning=True)
            for preset in presets:
                restorer = contender.restorer(bundle, samplers[preset], 1)
                restorers[preset, backend] = open_ones.enter_context(restorer)
        for turn in range(warmup + repeats):
            for pair, restorer in restorers.items():
                begin = time.perf_counter()
                restorer.restore([face])
                if turn >= warmup:
                    seconds[pair].append(time.perf_counter() - begin)
    return [
        Cost(
            preset,
            backend,
            str(samplers[preset]),
            samplers[preset].calls,
            gflop(bundle, samplers[preset]),
            tuple(seconds[preset, backend]),
        )
        for preset, backend in seconds
    ]


def gflop(bundle: Bundle, sampler: Preset) -> float:
    """Billions of operations of all calls for one image, as the manifest counts them; 0 where it does not."""
    return plan_gflop(bundle, make_plan(bundle, sampler)) or 0.0


def as_markdown(costs: Sequence[Cost]) -> str:
    """A row for each preset and backend; ratios are to the first preset on the same backend, and in arithmetic."""
    rows = []
    for cost in costs:
        base = next(other for other in costs if other.backend == cost.backend)
        p50, base_p50 = median(cost.seconds), median(base.seconds)
        rows.append(
            [
                cost.preset,
                cost.backend,
                cost.sampler,
                str(cost.calls),
                f"{cost.gflop:.0f}",
                f"{p50:.3g}",
                f"{min(cost.seconds):.3g}",
                f"{base_p50 / p50:.2f}x",
                f"{base.gflop / cost.gflop:.2f}x",
            ]
        )
    head = ["preset", "backend", "sampler", "calls", "GFLOP", "p50 s", "min s", "speed-up", "arithmetic"]
    repeats = len(costs[0].seconds)
    lines = [
        f"# What presets cost\n\nSeconds of one face, pixels to pixels; {repeats} of each, in turns in one process. "
        "Speed-up and arithmetic are ratios to the first preset on the same backend.\n",
        *table(head, rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of presets.json and presets.md")
    parser.add_argument("--presets", help="separated by commas; default: all of the bundle, the slowest first")
    parser.add_argument(
        "--backends", default="onnxruntime-cpu", help="names of bfr.benchmarks.speed.contender, by commas"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of the CPU")
    args = parser.parse_args(arguments)

    def call() -> tuple[dict[str, Any], str]:
        bundle = Bundle.open(args.bundle)
        names = bundle.manifest.presets
        slowest_first = sorted(names, key=lambda name: -names[name].calls)
        presets = args.presets.split(",") if args.presets else slowest_first
        costs = measure(
            bundle,
            presets,
            args.backends.split(","),
            repeats=args.repeats,
            warmup=args.warmup,
            threads=args.threads,
        )
        facts = {"system": bundle.manifest.system, "bundle_sha256": bundle.hash}
        return {**facts, "costs": [asdict(cost) for cost in costs]}, as_markdown(costs)

    options = f"--backends {args.backends} --repeats {args.repeats} --warmup {args.warmup}"
    if args.presets:
        options += f" --presets {args.presets}"
    return publish(args.out, "presets", f"python -m bfr.benchmarks.speed.presets BUNDLE --out DIR {options}", call)


if __name__ == "__main__":
    sys.exit(main())
