"""Train the two networks of `mini`: `python -m bfr.models.systems.mini.train estimator --faces FOLDER --out FOLDER`.

Seeded: a batch is a function of the seed and its step, so an interrupted run continues with the batches it would have
had. Computes in float32 on the CPU, in bfloat16 on a GPU or with `--bfloat16`. The denoiser's recipe is that of arXiv
2212.06512, made small; the estimator learns to undo `bfr.models.systems.mini.field`. At the end both train against a
critic (`--adversarial`), the denoiser on what the estimator returns (`--estimator`). Muon optimizes the matrices,
AdamW the rest.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bfr.models.systems.mini.critic import Critic
from bfr.models.systems.mini.field import pair, to_uint8
from bfr.models.systems.mini.judge import in_one_step, judge, to_float
from bfr.models.systems.mini.losses import LOSSES, PLAIN_SHARE, Batch
from bfr.models.systems.mini.networks import IMAGE_SIZE, build
from bfr.models.systems.mini.optimizer import Optimizer

WARMUP_STEPS, COOLDOWN_SHARE = 100, 0.3
SAVE_EVERY_S = 120.0
ASIDE_EVERY = 20  # one face in so many is not trained on


class FaceBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is a batch `(clean, degraded)`, each (B, 256, 256, 3) uint8: a function of the seed and the step.

    Without `degrade` both are the clean faces: a denoiser without an estimator looks at no others.
    """

    def __init__(self, faces: NDArray[np.uint8], *, batch: int, seed: int, degrade: bool) -> None:
        self.faces, self.batch, self.seed, self.degrade = faces, batch, seed, degrade

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, step])
        faces = [augment(self.faces[i], rng) for i in rng.integers(len(self.faces), size=self.batch)]
        pairs = [pair(face, rng) if self.degrade else (face, face) for face in faces]
        clean, degraded = (torch.from_numpy(np.stack(images)) for images in zip(*pairs, strict=True))
        return clean, degraded


def read_faces(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The faces to train on, and every twentieth, kept aside to judge by; each (N, 320, 320, 3) uint8 RGB."""
    files = sorted(folder.glob("*.webp")) + sorted(folder.glob("*.png")) + sorted(folder.glob("*.jpg"))
    if len(files) < 2:
        raise SystemExit(f"{folder}: expected at least two .webp, .png or .jpg faces there")
    faces = np.stack([read_face(file) for file in files])
    aside = np.arange(len(faces)) % ASIDE_EVERY == 0
    return faces[~aside], faces[aside]


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
    turn, scale = float(rng.normal(0.0, 3.0)), float(np.exp(rng.normal(0.0, 0.05)))
    matrix = np.asarray(cv2.getRotationMatrix2D(centre, turn, scale), dtype=np.float64)
    matrix[:, 2] += IMAGE_SIZE / 2 - np.array(centre) + rng.normal(0.0, 4.0, size=2)
    gain = rng.uniform(0.9, 1.1) * rng.uniform(0.97, 1.03, size=3)
    turned = cv2.warpAffine(
        np.ascontiguousarray(face),
        matrix,
        (IMAGE_SIZE, IMAGE_SIZE),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return to_uint8(turned * gain / 255.0)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, constant, then linear decay to zero over the last part of the run."""
    cooldown = COOLDOWN_SHARE * steps
    return peak * min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / cooldown)


def batches(data: FaceBatches, first: int, last: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of the steps `first` to `last`, exclusive, prepared by worker processes."""
    loader = DataLoader(data, batch_size=None, sampler=range(first, last), num_workers=workers)
    yield from loader


def train(args: argparse.Namespace) -> None:
    """Train one network as the command line says; continue from the checkpoint in the output folder."""
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    network = build(args.role).to(device)
    average = build(args.role).to(device).requires_grad_(False)
    optimizer = Optimizer(network, args.lr)
    critic = Critic().to(device) if args.adversarial or args.features else None
    checkpoint, first = args.out / f"{args.role}.pt", 0
    average.load_state_dict(network.state_dict())
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        if critic and "critic" in state:
            critic.load_state(state["critic"])
        first = state["step"]
        print(f"{checkpoint}: continuing at step {first}")
    elif args.init:
        named = {**network.state_dict(), **{k: v.float() for k, v in load_file(args.init).items()}}
        network.load_state_dict(named)
        average.load_state_dict(named)
        print(f"starting from {args.init}")
    faces, aside = read_faces(args.faces)
    estimator: torch.nn.Module | None = None
    judged: Callable[[Tensor], Tensor] | None = average if args.role == "estimator" else None
    if args.estimator:
        estimator = build("estimator").to(device).requires_grad_(False)
        estimator.load_state_dict({name: value.float() for name, value in load_file(args.estimator).items()})
        judged = in_one_step(estimator, average)
    data = FaceBatches(faces, batch=args.batch, seed=args.seed, degrade=judged is not None)
    called: torch.nn.Module = torch.compile(network) if args.compile else network  # type: ignore[assignment]
    loss_of, losses, saved = LOSSES[args.role], [], time.monotonic()
    with (args.out / f"{args.role}.jsonl").open("a") as log:
        for step, pair in enumerate(batches(data, first, args.steps, args.workers), start=first):
            clean, given = (to_float(images, device) for images in pair)
            degraded = (clean != given).flatten(1).any(dim=1)
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
                given = given if estimator is None else estimator(given).float()
                loss = loss_of(called, Batch(clean, given, degraded), step, args, critic)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step(learning_rate(step, args.steps, args.lr))
            decay = min(args.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
            losses.append(loss.detach())
            done = step + 1
            if done % args.log_every == 0 or done == args.steps:
                entry: dict[str, Any] = {
                    "step": done,
                    "loss": float(torch.stack(losses).mean()),
                    "at": round(time.time(), 1),
                }
                if judged is not None and (done % args.judge_every == 0 or done == args.steps):
                    entry["gain"], entry["sharpness"] = judge(judged, aside[: args.judged], device)
                print(json.dumps(entry), file=log, flush=True)
                losses = []
            if time.monotonic() - saved > SAVE_EVERY_S or done == args.steps:
                state = {"step": done, "network": network.state_dict(), "average": average.state_dict()}
                state |= {"optimizer": optimizer.state_dict()} | ({"critic": critic.state()} if critic else {})
                save(args.out, args.role, state)
                saved = time.monotonic()


def save(out: Path, role: str, state: dict[str, Any]) -> None:
    """Write the resumable state, and the averaged weights in half as `<role>.safetensors`, each atomically."""
    partial = out / f"{role}.pt.part"
    torch.save(state, partial)
    partial.replace(out / f"{role}.pt")
    weights = {name: value.half().contiguous() for name, value in state["average"].items()}
    partial = out / f"{role}.safetensors.part"
    save_file(weights, partial, metadata={"step": str(state["step"])})
    partial.replace(out / f"{role}.safetensors")


def main() -> None:
    """Run the command line."""
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
    parser.add_argument(
        "--estimator", type=Path, help="train the denoiser on the estimates of these weights (.safetensors)"
    )
    parser.add_argument("--adversarial", type=float, default=0.0, help="weight of the critic's verdict (off)")
    parser.add_argument("--features", type=float, default=0.0, help="weight of the distance of its features (off)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--bfloat16", action=argparse.BooleanOptionalAction, help="compute in bfloat16 (on a GPU; a CPU may be slower)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (%(default)s)")
    parser.add_argument("--log-every", type=int, default=50, help="steps between two lines of the log (%(default)s)")
    parser.add_argument("--judge-every", type=int, default=500, help="steps between two looks at faces kept aside")
    parser.add_argument("--judged", type=int, default=24, help="how many of those faces are looked at (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    args = parser.parse_args()
    if args.role == "estimator" and args.estimator:
        parser.error("--estimator is for the denoiser")
    if args.estimator and args.batch * PLAIN_SHARE < 1:
        parser.error(f"--estimator needs --batch {round(1 / PLAIN_SHARE)} or more: some of the faces are clean ones")
    if args.role == "denoiser" and not args.estimator and (args.adversarial or args.features):
        parser.error("--adversarial and --features need --estimator: a critic judges restored faces")
    if args.bfloat16 is None:
        args.bfloat16 = args.device.startswith("cuda")
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
