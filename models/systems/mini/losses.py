"""What the two networks of `mini` learn from."""

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.models.systems.mini.critic import Critic
from bfr.runtime.diffusion.schedule import linear_schedule

CRITIC_STEPS = 200  # until the critic's losses have their full weight
PLAIN_SHARE = 0.25  # of a batch: clean faces with noise, where the denoiser learns from estimates
PLAIN_WEIGHT = 0.002  # of their loss: it is in units of the noise, the other one in units of the face
LAST_START = 10  # timestep; the presets start at 1 to 10


class Batch(NamedTuple):
    """Faces, (B, 3, 256, 256) float32 in [0, 1], and which of them were degraded, (B,) bool."""

    clean: Tensor
    given: Tensor  # degraded; for the denoiser, what the estimator makes of that
    degraded: Tensor


def estimator_loss(
    network: nn.Module, batch: Batch, step: int, args: argparse.Namespace, critic: Critic | None
) -> Tensor:
    """`restoration_loss` of the estimates."""
    return restoration_loss(network(batch.given).float(), batch, step, args, critic)


def restoration_loss(
    restored: Tensor, batch: Batch, step: int, args: argparse.Namespace, critic: Critic | None
) -> Tensor:
    """L1 between the restored and the clean faces in [0, 1], and the critic's losses.

    Faces that were not degraded have no part in the critic's losses: they are to stay as they are.
    """
    loss = F.l1_loss(restored, batch.clean)
    if critic is None or not batch.degraded.any():
        return loss
    restored, clean = restored[batch.degraded], batch.clean[batch.degraded]
    critic.learn(restored, clean)
    adversarial, features = critic.losses(restored, clean)
    ramp = min(1.0, step / CRITIC_STEPS)  # the critic learns first
    loss += ramp * (args.adversarial * adversarial + args.features * features)
    return loss


def denoiser_loss(
    network: nn.Module, batch: Batch, step: int, args: argparse.Namespace, critic: Critic | None
) -> Tensor:
    """Mean squared error of the predicted noise at timesteps from 0 to `args.last_timestep`.

    The cube of a uniform number draws the timesteps: half are in the lowest eighth, where the presets start.

    With `args.estimator`, three quarters of the faces are what the loop meets: the noised estimate of a start from 1 to
    10, or what one DDIM step (eta 0) to a right x0 makes of it at an earlier timestep. The error of the estimate is
    part of the noise there, so that the denoiser removes it too. Their loss is `restoration_loss` of x0.
    """
    clean, given = 2 * batch.clean - 1, 2 * batch.given - 1
    device, faces = clean.device, len(clean)
    generator = torch.Generator(device).manual_seed(args.seed * 1_000_003 + step)
    drawn, share = torch.rand(2, faces, generator=generator, device=device)
    noise = torch.randn(clean.shape, generator=generator, device=device)
    plain = int(PLAIN_SHARE * faces) if args.estimator else faces
    start = (1 + LAST_START * drawn**3).long()
    start[:plain] = t_plain = ((args.last_timestep + 1) * drawn[:plain] ** 3).long()
    t = (share * (start + 1)).long()
    t[:plain] = t_plain
    alpha_bar = torch.from_numpy(linear_schedule().alpha_bar).to(device, torch.float32)
    signal, signal_at_start = (alpha_bar[at].view(-1, 1, 1, 1) for at in (t, start))
    error = torch.cat([torch.zeros_like(clean[:plain]), (given - clean)[plain:]])
    wanted = noise + (signal_at_start / (1 - signal_at_start)).sqrt() * error
    x = signal.sqrt() * clean + (1 - signal).sqrt() * wanted
    predicted = network(x, t).float()
    loss = F.mse_loss(predicted[:plain], wanted[:plain])
    if not args.estimator:
        return loss
    x0 = (x - (1 - signal).sqrt() * predicted) / signal.sqrt()
    rest = Batch(*(part[plain:] for part in batch))
    return PLAIN_WEIGHT * loss + restoration_loss((x0[plain:] + 1) / 2, rest, step, args, critic)


LOSSES = {"estimator": estimator_loss, "denoiser": denoiser_loss}
