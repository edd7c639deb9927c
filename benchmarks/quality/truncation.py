"""How far to diffuse: every face at every start, and whether a start for each image beats one for all of them.

    python -m bfr.benchmarks.quality.truncation FACES --out DIR

Every face is degraded by every level and restored from a grid of starts; between two of them scores are interpolated
in the start's logarithm. A later start is sharper and less like the truth, so that starts are compared at equal mean
sharpness: a start for each image, by `bfr.runtime.restore.adapt`, against the constant that is as sharp in the mean.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.publish import publish
from bfr.benchmarks.quality.chains import restore
from bfr.benchmarks.quality.levels import degrade, level_at, read_faces
from bfr.benchmarks.quality.metrics import Mean, score
from bfr.benchmarks.tables import show, table
from bfr.models.systems.mini.degrade import LEVELS
from bfr.runtime.backends.registry import open_device
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.bundle.manifest import Adapt, Preset
from bfr.runtime.diffusion.schedule import Float64
from bfr.runtime.restore.adapt import starts
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer, load_networks

STARTS = (3.0, 6.0, 10.0, 16.0, 24.0, 36.0, 52.0, 75.0, 100.0)
POWERS = (0.5, 1.0, 1.5, 2.0)
MEASURES = {"psnr_db": ("PSNR, dB", 2), "haar_psi": ("HaarPSI", 4), "sharpness": ("sharpness", 3)}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N images from each of K starts.

    starts: (K,), timesteps, rising. levels: (N,), names. moved: (N,), see `bfr.runtime.restore.adapt.movement`.
    measures: name -> (N, K).
    """

    starts: Float64
    levels: NDArray[Any]
    moved: Float64
    measures: dict[str, Float64]

    def at(self, measure: str, chosen: Float64) -> Float64:
        """(N,) scores from a start of each image's own, clipped to those that were run."""
        rows, where = self.measures[measure], np.log(self.starts)
        return np.array([np.interp(np.log(t), where, row) for t, row in zip(chosen, rows, strict=True)])

    def as_sharp(self, chosen: Float64) -> float:
        """The constant start that is as sharp in the mean as these of the images' own."""
        grid = np.exp(np.linspace(np.log(self.starts[0]), np.log(self.starts[-1]), 200))
        means = [self.at("sharpness", np.full(len(chosen), t)).mean() for t in grid]
        return float(np.interp(self.at("sharpness", chosen).mean(), means, grid))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A start for each image against the constant that is as sharp: gains in PSNR and HaarPSI, image by image."""

    adapt: Adapt
    constant: float
    psnr_db: tuple[float, ...]
    haar_psi: tuple[float, ...]


def compare(scores: Scores, sampler: Preset, power: float) -> Comparison:
    """Starts that go with a power of the movement, the preset's at the median movement."""
    adapt = Adapt(
        typical=round(float(np.median(scores.moved)), 1), power=power, least=scores.starts[0], most=scores.starts[-1]
    )
    chosen = starts(sampler.model_copy(update={"adapt": adapt}), scores.moved)
    constant = scores.as_sharp(chosen)
    same = np.full(len(chosen), constant)
    gains = [tuple((scores.at(m, chosen) - scores.at(m, same)).tolist()) for m in ("psnr_db", "haar_psi")]
    return Comparison(adapt, constant, *gains)


def measure(bundle: Bundle, sampler: Preset, args: argparse.Namespace) -> Scores:
    """Restore every face of every level from every start."""
    size = bundle.manifest.image_size
    truths = read_faces(args.folder, size, args.limit)
    faces = [(level, degrade(*truth, level_at(level, size), DEFAULT_SEED)) for level in LEVELS for truth in truths]
    device = open_device("onnxruntime-cpu", threads=args.threads)
    networks = load_networks(bundle, device, "fp32")
    measures = {name: np.zeros((len(faces), len(STARTS))) for name in MEASURES}
    moved = np.zeros(len(faces))
    for k, start in enumerate(STARTS):
        preset = sampler.model_copy(update={"start": start, "adapt": None})
        with Restorer(bundle, device, preset, networks=networks) as restorer:
            for i, (_, face) in enumerate(faces):
                pictures = restore(restorer, face, DEFAULT_SEED)
                found = score(pictures.stages["result"], face.truth)
                for name, values in measures.items():
                    values[i, k] = found[name]
                before, estimate = (pictures.stages[name].astype(np.float64) for name in ("input", "estimate"))
                moved[i] = np.sqrt(np.mean((estimate - before) ** 2))
        print(f"start {start:g}: {len(faces)} images", file=sys.stderr, flush=True)
    return Scores(np.array(STARTS), np.array([level for level, _ in faces]), moved, measures)


def as_markdown(scores: Scores, sampler: Preset, comparisons: Sequence[Comparison]) -> str:
    """Constant starts at every level, then the gains of starts for each image."""
    lines = [f"# Truncation\n\n{sampler}; {len(scores.moved)} images, every level of every face.\n"]
    for level in LEVELS:
        chosen = scores.levels == level
        rows = []
        for k, start in enumerate(scores.starts):
            cells = (show(Mean.of(values[chosen, k].tolist()), MEASURES[m][1]) for m, values in scores.measures.items())
            rows.append([f"{start:g}", *cells])
        moved = Mean.of(scores.moved[chosen].tolist())
        lines += [
            f"## {level}\n",
            f"The estimate moves by {show(moved, 2)} grey levels (RMS).\n",
            *table(["start", *(label for label, _ in MEASURES.values())], rows),
            "",
        ]
    rows = []
    for found in comparisons:
        by_level = [
            show(Mean.of(np.array(found.psnr_db)[scores.levels == level].tolist()), 2, sign=True) for level in LEVELS
        ]
        rows.append(
            [
                f"{found.adapt.power:g}",
                f"{found.constant:.1f}",
                show(Mean.of(found.psnr_db), 3, sign=True),
                show(Mean.of(found.haar_psi), 4, sign=True),
                *by_level,
            ]
        )
    head = ["power", "as sharp as start", "PSNR, dB", "HaarPSI", *(f"{level}, dB" for level in LEVELS)]
    lines += [
        "## A start for each image\n",
        f"Start {sampler.start:g} at a movement of {comparisons[0].adapt.typical:g} grey levels, and with a power of "
        "it elsewhere. Gains are against the constant start that is as sharp in the mean; scores between two starts "
        "are interpolated.\n",
        *table(head, rows),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FACES", help="aligned faces, square")
    parser.add_argument("--out", type=Path, required=True, help="folder of truncation.json and truncation.md")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle; the default is the system mini")
    parser.add_argument("--start", type=float, default=20.0, help="of the image that moves typically (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="denoiser calls (%(default)s)")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="the first N faces (%(default)s)")
    parser.add_argument("--threads", type=int, help="of the CPU")
    args = parser.parse_args(arguments)

    def call() -> tuple[dict[str, Any], str]:
        bundle = Bundle.open(args.bundle or default_bundle())
        sampler = Preset(solver="dpmpp-2m", spacing="log-snr", start=args.start, steps=args.steps)
        scores = measure(bundle, sampler, args)
        comparisons = [compare(scores, sampler, power) for power in POWERS]
        figures = {
            "system": bundle.manifest.system,
            "bundle_sha256": bundle.hash,
            "starts": scores.starts.tolist(),
            "levels": scores.levels.tolist(),
            "moved": scores.moved.tolist(),
            "measures": {name: values.tolist() for name, values in scores.measures.items()},
            "comparisons": [{**asdict(c), "adapt": c.adapt.model_dump()} for c in comparisons],
        }
        return figures, as_markdown(scores, sampler, comparisons)

    options = f"--start {args.start:g} --steps {args.steps} --limit {args.limit}"
    return publish(
        args.out, "truncation", f"python -m bfr.benchmarks.quality.truncation FACES --out DIR {options}", call
    )


if __name__ == "__main__":
    sys.exit(main())
