"""Train the two networks of `mini`: `python -m bfr.models.systems.mini.train estimator --faces FOLDER --out FOLDER`.

Seeded: a batch is a function of the seed and its step, so an interrupted run continues with the batches it would have
had. Runs on the CPU in float32, on a GPU in bfloat16. The denoiser's recipe is that of arXiv 2212.06512, made small;
the estimator learns to undo `bfr.models.systems.mini.field`, at the end against a critic (`--adversarial`). Muon
optimizes the matrices, AdamW the rest.
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

from bfr.models.systems.mini.critic import Critic
from bfr.models.systems.mini.degrade import LEVELS
from bfr.models.systems.mini.field import pair, to_uint8
from bfr.models.systems.mini.networks import IMAGE_SIZE, build
from bfr.runtime.diffusion.schedule import linear_schedule

WARMUP_STEPS, COOLDOWN_SHARE = 100, 0.3
CRITIC_STEPS = 200  # until the critic's losses have their full weight
SAVE_EVERY_S = 120.0
ASIDE_EVERY = 20  # one face in so many is not trained on


class FaceBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is a batch `(clean, degraded)`, each (B, 256, 256, 3) uint8: a function of the seed and the step.

    Without `degrade` both are the clean faces: the denoiser looks at no others.
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


def estimator_loss(
    network: torch.nn.Module,
    clean: Tensor,
    degraded: Tensor,
    step: int,
    args: argparse.Namespace,
    critic: Critic | None,
) -> Tensor:
    """L1 between the estimate of the degraded face and the clean one, both in [0, 1], and what the critic finds."""
    estimate = network(degraded).float()
    loss = F.l1_loss(estimate, clean)
    touched = (degraded != clean).flatten(1).any(dim=1)  # a clean face is to stay as it is, whatever the critic says
    if critic is None or not touched.any():
        return loss
    critic.learn(estimate[touched], clean[touched])
    told, features = critic.losses(estimate[touched], clean[touched])
    ramp = min(1.0, step / CRITIC_STEPS)  # the critic learns first
    loss += ramp * (args.adversarial * told + args.features * features)
    return loss


def denoiser_loss(
    network: torch.nn.Module,
    clean: Tensor,
    _degraded: Tensor,
    step: int,
    args: argparse.Namespace,
    _critic: Critic | None,
) -> Tensor:
    """Mean squared error of the predicted noise at timesteps from 0 to `args.last_timestep`.

    The cube of a uniform number draws them: half are in the lowest eighth, where the presets start.
    """
    generator = torch.Generator(clean.device).manual_seed(args.seed * 1_000_003 + step)
    alpha_bar = torch.from_numpy(linear_schedule().alpha_bar).to(clean.device, torch.float32)
    drawn = torch.rand(len(clean), generator=generator, device=clean.device)
    t = ((args.last_timestep + 1) * drawn**3).long()
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
    """Yield the batches of the steps `first` to `last`, exclusive, prepared by worker processes."""
    loader = DataLoader(data, batch_size=None, sampler=range(first, last), num_workers=workers)
    yield from loader


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for weights of two or more dimensions (Jordan et al. 2024, "Muon").

    In the weights' precision: torch.optim.Muon computes in bfloat16, which CPUs without it emulate slowly. The step is
    scaled to the RMS of AdamW's (arXiv 2502.16982), so that both share a learning rate.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, _closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                wanted = p.grad.lerp(mean, group["momentum"]).flatten(1)  # Nesterov's
                p.sub_(orthogonal(wanted).view_as(p), alpha=group["lr"] * 0.2 * max(wanted.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """Its nearest matrix with singular values of about one, by five Newton-Schulz iterations."""
    x: Tensor = matrix / (matrix.norm() + 1e-7)
    x = x.T if (tall := x.shape[0] > x.shape[1]) else x
    for _ in range(5):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return x.T if tall else x


class Optimizer:
    """Muon for the matrices of convolutions and linear layers but the first and the last, AdamW for all else."""

    def __init__(self, network: torch.nn.Module, lr: float) -> None:
        ends = ("input_blocks.0.", "out.")
        named = dict(network.named_parameters())
        matrices = [name for name, p in named.items() if p.ndim > 1 and not name.startswith(ends)]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": Muon([named[name] for name in matrices], lr),
            "adamw": torch.optim.AdamW([p for name, p in named.items() if name not in matrices], lr, weight_decay=1e-4),
        }

    def step(self, lr: float) -> None:
        """Update the parameters from their gradients, and drop the gradients."""
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both optimizers, by their names."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


@torch.no_grad()
def judge(
    estimator: torch.nn.Module, faces: NDArray[np.uint8], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """In the mean of the faces, by level: PSNR gained, and sharpness.

    The first is the PSNR of the estimate less that of its input, in dB; of clean faces, the PSNR of the estimate. The
    second is the RMS of the estimate's luma less its blur of sigma 1 px, as a share of the clean face's.
    """
    edge = (faces.shape[1] - IMAGE_SIZE) // 2
    crops = np.ascontiguousarray(faces[:, edge:-edge, edge:-edge])
    gains: dict[str, float] = {}
    sharpness: dict[str, float] = {}
    for level, degradation in {"clean": None, **LEVELS}.items():
        rng = np.random.default_rng(0)
        values, shares = [], []
        for face in crops:
            degraded = face if degradation is None else degradation.apply(face, rng)
            clean, given = (to_float(torch.from_numpy(image[None]), device) for image in (face, degraded))
            estimate = estimator(given).clamp(0, 1)
            error = F.mse_loss(estimate, clean).clamp_min(1e-10)
            before = 1.0 if degradation is None else float(F.mse_loss(given, clean))
            values.append(10 * np.log10(before / float(error)))
            shares.append(detail(estimate) / detail(clean))
        gains[level] = round(float(np.mean(values)), 3)
        sharpness[level] = round(float(np.mean(shares)), 3)
    return gains, sharpness


def detail(face: Tensor) -> float:
    """RMS of the luma less its blur of sigma 1 px; (1, 3, H, W) in [0, 1]."""
    luma = cv2.cvtColor(face[0].permute(1, 2, 0).float().cpu().numpy(), cv2.COLOR_RGB2GRAY)
    return float(np.std(luma - cv2.GaussianBlur(luma, (0, 0), 1.0)))


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
    data = FaceBatches(faces, batch=args.batch, seed=args.seed, degrade=args.role == "estimator")
    called: torch.nn.Module = torch.compile(network) if args.compile else network  # type: ignore[assignment]
    loss_of, losses, saved = LOSSES[args.role], [], time.monotonic()
    with (args.out / f"{args.role}.jsonl").open("a") as log:
        for step, pair in enumerate(batches(data, first, args.steps, args.workers), start=first):
            clean, degraded = (to_float(images, device) for images in pair)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_of(called, clean, degraded, step, args, critic)
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
                if args.role == "estimator" and (done % args.judge_every == 0 or done == args.steps):
                    entry["gain"], entry["sharpness"] = judge(average, aside[: args.judged], device)
                print(json.dumps(entry), file=log, flush=True)
                losses = []
            if time.monotonic() - saved > SAVE_EVERY_S or done == args.steps:
                state = {"step": done, "network": network.state_dict(), "average": average.state_dict()}
                state |= {"optimizer": optimizer.state_dict()} | ({"critic": critic.state()} if critic else {})
                save(args.out, args.role, state)
                saved = time.monotonic()


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1], channels last."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255.0


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
        "--adversarial", type=float, default=0.0, help="weight of the critic's verdict in the estimator's loss (off)"
    )
    parser.add_argument("--features", type=float, default=0.0, help="weight of the critic's features there (off)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (%(default)s)")
    parser.add_argument("--log-every", type=int, default=50, help="steps between two lines of the log (%(default)s)")
    parser.add_argument("--judge-every", type=int, default=500, help="steps between two looks at faces kept aside")
    parser.add_argument("--judged", type=int, default=24, help="how many of those faces are looked at (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    args = parser.parse_args()
    if args.role != "estimator" and (args.adversarial or args.features):
        parser.error("--adversarial and --features are for the estimator")
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
