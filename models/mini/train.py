"""Trains the two networks of `mini`: `python -m bfr.models.mini.train estimator --faces FOLDER --out FOLDER`.

Seeded: a batch is a function of the seed and its step, so a run that was interrupted continues as if it had not been.
Runs on the CPU in float32, on a GPU in bfloat16. The recipe is that of the reference (arXiv 2212.06512), made small.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bfr.models.mini.degrade import draw
from bfr.models.mini.networks import IMAGE_SIZE, build
from bfr.runtime.schedule import linear_schedule

WARMUP_STEPS, COOLDOWN_SHARE = 100, 0.3
SAVE_EVERY_S = 120.0


class FaceBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is a batch `(clean, degraded)`, each (B, 256, 256, 3) uint8: a function of the seed and the step.

    Without `degrade` both are the clean faces: the denoiser looks at no others.
    """

    def __init__(self, folder: Path, *, batch: int, seed: int, degrade: bool) -> None:
        files = sorted(folder.glob("*.webp")) + sorted(folder.glob("*.png")) + sorted(folder.glob("*.jpg"))
        if not files:
            raise SystemExit(f"{folder}: no .webp, .png or .jpg faces there")
        self.faces = np.stack([read_face(file) for file in files])
        self.batch, self.seed, self.degrade = batch, seed, degrade

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, step])
        clean = [augment(self.faces[i], rng) for i in rng.integers(len(self.faces), size=self.batch)]
        degraded = [draw(rng).apply(face, rng) for face in clean] if self.degrade else clean
        return torch.from_numpy(np.stack(clean)), torch.from_numpy(np.stack(degraded))


def read_face(file: Path) -> NDArray[np.uint8]:
    """(320, 320, 3) uint8 RGB: the aligned crop in the middle, with room for jitter around it."""
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None or image.shape != (320, 320, 3):
        raise SystemExit(f"{file}: expected a 320x320 image whose middle 256x256 is the aligned face")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


def augment(face: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Flip, and shift, turn and scale a little: 1,188 faces are few. (320, 320, 3) -> (256, 256, 3) uint8."""
    if rng.random() < 0.5:
        face = face[:, ::-1]
    centre = (face.shape[1] / 2, face.shape[0] / 2)
    turn, scale = float(rng.normal(0.0, 2.0)), float(np.exp(rng.normal(0.0, 0.03)))
    matrix = np.asarray(cv2.getRotationMatrix2D(centre, turn, scale), dtype=np.float64)
    matrix[:, 2] += IMAGE_SIZE / 2 - np.array(centre) + rng.normal(0.0, 3.0, size=2)
    gain = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, size=3)
    turned = cv2.warpAffine(
        np.ascontiguousarray(face),
        matrix,
        (IMAGE_SIZE, IMAGE_SIZE),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(np.clip(turned * gain, 0, 255), dtype=np.uint8)


def estimator_loss(
    network: torch.nn.Module, clean: Tensor, degraded: Tensor, _step: int, _args: argparse.Namespace
) -> Tensor:
    """L1 between the estimate of the degraded face and the clean one, both in [0, 1]."""
    return F.l1_loss(network(degraded).float(), clean)


def denoiser_loss(
    network: torch.nn.Module, clean: Tensor, _degraded: Tensor, step: int, args: argparse.Namespace
) -> Tensor:
    """Mean squared error of the predicted noise at timesteps drawn evenly from 0 to `args.last_timestep`."""
    generator = torch.Generator(clean.device).manual_seed(args.seed * 1_000_003 + step)
    alpha_bar = torch.from_numpy(linear_schedule().alpha_bar).to(clean.device, torch.float32)
    t = torch.randint(args.last_timestep + 1, (len(clean),), generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device)
    signal = alpha_bar[t].view(-1, 1, 1, 1)
    noised = signal.sqrt() * (2 * clean - 1) + (1 - signal).sqrt() * noise
    return F.mse_loss(network(noised, t).float(), noise)


LOSSES = {"estimator": estimator_loss, "denoiser": denoiser_loss}


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last part of the run."""
    cooldown = COOLDOWN_SHARE * steps
    return peak * min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / cooldown)


def batches(data: FaceBatches, first: int, last: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(data, batch_size=None, sampler=range(first, last), num_workers=workers)
    yield from loader


def train(args: argparse.Namespace) -> None:
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    network = build(args.role).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    average = build(args.role).to(device).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=1e-4)
    checkpoint, first = args.out / f"{args.role}.pt", 0
    average.load_state_dict(network.state_dict())
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"{checkpoint}: continuing at step {first}")
    elif args.init:
        named = {**network.state_dict(), **{k: v.float() for k, v in load_file(args.init).items()}}
        network.load_state_dict(named)
        average.load_state_dict(named)
        print(f"starting from {args.init}")
    data = FaceBatches(args.faces, batch=args.batch, seed=args.seed, degrade=args.role == "estimator")
    loss_of, losses, saved = LOSSES[args.role], [], time.monotonic()
    with (args.out / f"{args.role}.jsonl").open("a") as log:
        for step, pair in enumerate(batches(data, first, args.steps, args.workers), start=first):
            clean, degraded = (to_float(images, device) for images in pair)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(network, clean, degraded, step, args)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            decay = min(args.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
            losses.append(loss.detach())
            done = step + 1
            if done % args.log_every == 0 or done == args.steps:
                entry = {"step": done, "loss": float(torch.stack(losses).mean()), "seconds": round(time.time(), 1)}
                print(json.dumps(entry), file=log, flush=True)
                losses = []
            if time.monotonic() - saved > SAVE_EVERY_S or done == args.steps:
                save(args.out, args.role, done, network=network, average=average, optimizer=optimizer)
                saved = time.monotonic()


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1], channels last."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255.0


def save(
    out: Path,
    role: str,
    step: int,
    *,
    network: torch.nn.Module,
    average: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the resumable state, and the averaged weights in half as `<role>.safetensors`, each atomically."""
    state: dict[str, Any] = {
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    partial = out / f"{role}.pt.part"
    torch.save(state, partial)
    partial.replace(out / f"{role}.pt")
    weights = {name: value.half().contiguous() for name, value in average.state_dict().items()}
    partial = out / f"{role}.safetensors.part"
    save_file(weights, partial, metadata={"step": str(step)})
    partial.replace(out / f"{role}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=sorted(LOSSES))
    parser.add_argument("--faces", type=Path, required=True, help="folder of 320x320 faces")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, weights and log")
    parser.add_argument("--steps", type=int, default=20_000, help="steps in all (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="faces a step (%(default)s)")
    parser.add_argument("--lr", type=float, default=4e-4, help="peak learning rate (%(default)s)")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the weights' average (%(default)s)")
    parser.add_argument(
        "--last-timestep", type=int, default=400, help="noisiest timestep of the denoiser, of 1000 (%(default)s)"
    )
    parser.add_argument("--init", type=Path, help="start from these weights (.safetensors) as far as they are named")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (%(default)s)")
    parser.add_argument("--log-every", type=int, default=50)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
