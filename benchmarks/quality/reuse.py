"""Does it pay to reuse deep features between steps? `python -m bfr.benchmarks.quality.reuse FACES --out DIR`.

DeepCache (Ma et al., arXiv 2312.00858) computes the deep part of a UNet in every k-th step only; the steps between run
its outermost blocks on the deep features that were stored. Here both are eager PyTorch, through the same loop, on
trained weights: what is compared is the drift to the reference at equal arithmetic, with the same solver that simply
takes fewer steps instead. The arithmetic is counted, not timed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bfr.benchmarks.quality.chains import restore
from bfr.benchmarks.quality.drift import drift
from bfr.benchmarks.quality.levels import degrade, level_at, read_faces
from bfr.benchmarks.quality.metrics import Mean, UInt8
from bfr.benchmarks.tables import show, table
from bfr.export.pytorch.eager import EagerDevice, EagerNetwork
from bfr.export.pytorch.reference import load_stage
from bfr.models.networks.unet import ResBlock, UNet, condition
from bfr.models.stages.step import LinearStep
from bfr.runtime.bundle.bundle import Bundle, default_bundle
from bfr.runtime.errors import BfrError, InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer


class ReusingUNet(nn.Module):
    """A UNet that computes all but its outermost `shallow` blocks in every `every`-th call only.

    Called for one loop after the other, each from a `begin`: it counts its calls.
    """

    def __init__(self, unet: UNet, shallow: int, every: int) -> None:
        super().__init__()
        if not unet.time_conditioned or not 1 <= shallow < len(unet.input_blocks):
            raise InvalidOption(f"shallow {shallow} is out of range: choose 1 to {len(unet.input_blocks) - 1} blocks")
        self.unet, self.shallow, self.every = unet, shallow, every
        self.begin()

    def begin(self) -> None:
        """Forget what was stored: a new loop begins."""
        self.calls, self.stored = 0, torch.empty(0)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        unet = self.unet
        parts = condition(timesteps, unet.model_channels, unet.time_embed, unet.conditioning_layers())
        of_block = dict(zip(unet.conditioned_blocks(), parts, strict=False))

        def run(stage: nn.Module, h: Tensor) -> Tensor:
            needed: Iterator[Tensor] = (of_block[m] for m in stage.modules() if isinstance(m, ResBlock))
            return stage(h, needed)  # type: ignore[no-any-return]

        h = torch.nn.functional.pixel_unshuffle(x, unet.unshuffle) if unet.unshuffle > 1 else x
        skips = []
        for stage in unet.input_blocks[: self.shallow]:
            h = run(stage, h)
            skips.append(h)
        outer = len(unet.output_blocks) - self.shallow
        if self.calls % self.every == 0:
            deep = []
            for stage in unet.input_blocks[self.shallow :]:
                h = run(stage, h)
                deep.append(h)
            h = run(unet.middle_block, h)
            for stage in unet.output_blocks[:outer]:
                h = run(stage, torch.cat([h, deep.pop()], dim=1))
            self.stored = h
        self.calls += 1
        h = self.stored
        for stage in unet.output_blocks[outer:]:
            h = run(stage, torch.cat([h, skips.pop()], dim=1))
        h = unet.out(h)
        h = torch.nn.functional.pixel_shuffle(h, unet.unshuffle) if unet.unshuffle > 1 else h
        return h + parts[-1][:, :, None, None] * x if unet.residual else h


@dataclass(frozen=True, slots=True)
class Trial:
    """A sampler with the deep part computed in every `every`-th of its calls.

    gflop: of all its denoiser calls on one image. psnr_db, haar_psi: drift to the reference, the same seed, per image.
    """

    sampler: str
    calls: int
    every: int
    gflop: float
    psnr_db: tuple[float, ...]
    haar_psi: tuple[float, ...]


def gflop_of(unet: UNet, shallow: int) -> tuple[float, float]:
    """Billions of operations of a whole call and of one that reuses the deep part, on one image."""
    counts = []
    reusing = ReusingUNet(unet, shallow, every=2)
    x, t = torch.zeros(1, unet.in_channels, unet.image_size, unet.image_size), torch.zeros(1)
    for _ in range(2):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            reusing(x, t)
        counts.append(counter.get_total_flops() / 1e9)
    return counts[0], counts[1]


def measure(args: argparse.Namespace) -> tuple[list[Trial], float]:
    """All trials, and the share of a call's arithmetic that its shallow part is."""
    bundle = Bundle.open(args.bundle or default_bundle())
    size = bundle.manifest.image_size
    faces = [
        degrade(*face, level_at(args.level, size), DEFAULT_SEED) for face in read_faces(args.folder, size, args.limit)
    ]
    device = EagerDevice()
    estimator = EagerNetwork(load_stage(bundle, bundle.estimator))
    step = load_stage(bundle, bundle.denoise.network)
    if not isinstance(step, LinearStep) or not isinstance(step.denoiser, UNet):
        raise InvalidOption("features are reused in UNets with a linear step only: name another bundle")
    unet = step.denoiser
    whole, reused = gflop_of(unet, args.shallow)

    def run(sampler_calls: int | None, every: int) -> Trial:
        reusing = ReusingUNet(unet, args.shallow, every)
        networks = {bundle.estimator: estimator, bundle.denoise.network: EagerNetwork(LinearStep(reusing))}
        sampler = bundle.preset("reference")
        if sampler_calls is not None:
            sampler = bundle.preset(
                "reference", solver=args.solver, spacing="log-snr", start=args.start, steps=sampler_calls, eta=0.0
            )
        scores = []
        with Restorer(bundle, device, sampler, networks=networks) as restorer:  # type: ignore[arg-type]
            for i, face in enumerate(faces):
                reusing.begin()
                result = restore(restorer, face, DEFAULT_SEED).stages["result"]
                if sampler_calls is None and every == 1:
                    references.append(result)
                scores.append(drift(result, references[i]))
        full = -(-sampler.calls // every)
        trial = Trial(
            str(sampler),
            sampler.calls,
            every,
            full * whole + (sampler.calls - full) * reused,
            tuple(score["psnr_db"] for score in scores),
            tuple(score["haar_psi"] for score in scores),
        )
        print(f"{trial.sampler}, deep part every {every}: {Mean.of(trial.psnr_db).mean:.2f} dB", file=sys.stderr)
        return trial

    references: list[UInt8] = []
    trials = [run(None, every) for every in (1, *args.every)]
    trials += [run(calls, every) for calls in args.steps for every in (1, *args.every) if every < calls]
    return trials, reused / whole


def as_markdown(trials: Sequence[Trial], share: float, command: str) -> str:
    """One table, by arithmetic."""
    rows = [
        [
            t.sampler,
            str(t.calls),
            "always" if t.every == 1 else f"every {t.every}",
            f"{t.gflop:.1f}",
            show(Mean.of(t.psnr_db), 2),
            show(Mean.of(t.haar_psi), 4),
        ]
        for t in sorted(trials, key=lambda t: -t.gflop)
    ]
    head = ["sampler", "calls", "deep part", "GFLOP", "drift: PSNR, dB", "HaarPSI"]
    lines = ["# Reuse of deep features", "", "```", command, "```", ""]
    lines += [
        f"A call that reuses takes {share:.0%} of a whole call's arithmetic. Drift is to the reference with the same "
        f"seed, {len(trials[0].psnr_db)} faces; equal pictures count as 100 dB.",
        "",
    ]
    return "\n".join([*lines, *table(head, rows)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FACES", help="aligned faces, square")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for reuse.json and reuse.md")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle; the default is the system mini")
    parser.add_argument("--level", default="medium")
    parser.add_argument("--limit", type=int, default=8, metavar="N", help="the first N faces (%(default)s)")
    parser.add_argument("--shallow", type=int, default=2, help="blocks outside the deep part (%(default)s)")
    parser.add_argument("--every", type=int, nargs="+", default=[2, 3], help="steps that share features")
    parser.add_argument("--solver", default="dpmpp-2m")
    parser.add_argument("--start", type=float, required=True, help="timestep of the few-step samplers")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 3, 4, 6, 10, 20])
    args = parser.parse_args(arguments)
    try:
        trials, share = measure(args)
    except BfrError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    command = f"python -m bfr.benchmarks.quality.reuse FACES --out DIR --limit {args.limit} --start {args.start:g}"
    content = {"command": command, "share": share, "trials": [asdict(trial) for trial in trials]}
    write_bytes(args.out / "reuse.json", (json.dumps(content, indent=1) + "\n").encode())
    markdown = as_markdown(trials, share, command)
    write_bytes(args.out / "reuse.md", markdown.encode())
    print(markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
