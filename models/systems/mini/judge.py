"""How good a network of `mini` is in training: PSNR gained and sharpness on faces kept aside."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.models.systems.mini.degrade import LEVELS
from bfr.models.systems.mini.networks import IMAGE_SIZE
from bfr.runtime.diffusion.schedule import linear_schedule


@torch.no_grad()
def judge(
    restore: Callable[[Tensor], Tensor], faces: NDArray[np.uint8], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """In the mean of the faces, by level: PSNR gained, and sharpness.

    The first is the PSNR of the result less that of its input, in dB; of clean faces, the PSNR of the result. The
    second is the RMS of the result's luma less its blur of sigma 1 px, as a share of the clean face's.

    Args:
        restore: maps (1, 3, 256, 256) in [0, 1] to the same.
        faces: (N, S, S, 3) uint8 RGB, S > 256: the middle is judged.
        device: where `restore` computes.
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
            result = restore(given).clamp(0, 1)
            before = 1.0 if degradation is None else squared_error(given, clean)
            values.append(10 * np.log10(before / squared_error(result, clean)))
            shares.append(detail(result) / detail(clean))
        gains[level] = round(float(np.mean(values)), 3)
        sharpness[level] = round(float(np.mean(shares)), 3)
    return gains, sharpness


def squared_error(face: Tensor, other: Tensor) -> float:
    """Mean squared error, at least 1e-10: 100 dB."""
    return max(float(F.mse_loss(face, other)), 1e-10)


def detail(face: Tensor) -> float:
    """RMS of the luma less its blur of sigma 1 px, at least 1e-5; (1, 3, H, W) in [0, 1]."""
    luma = cv2.cvtColor(face[0].permute(1, 2, 0).float().cpu().numpy(), cv2.COLOR_RGB2GRAY)
    return max(float(np.std(luma - cv2.GaussianBlur(luma, (0, 0), 1.0))), 1e-5)


def in_one_step(estimator: nn.Module, denoiser: nn.Module) -> Callable[[Tensor], Tensor]:
    """The loop of one step from t = 1, with the same noise at each call: what `judge` calls for a denoiser."""

    def restore(degraded: Tensor) -> Tensor:
        signal = float(linear_schedule().alpha_bar[1])
        noise = torch.randn(degraded.shape, generator=torch.Generator().manual_seed(0)).to(degraded.device)
        estimate = 2 * estimator(degraded).clamp(0, 1) - 1
        x = signal**0.5 * estimate + (1 - signal) ** 0.5 * noise
        predicted = denoiser(x, torch.ones(len(x), dtype=torch.long, device=x.device))
        x0: Tensor = (x - (1 - signal) ** 0.5 * predicted) / signal**0.5
        return (x0 + 1) / 2

    return restore


def to_float(images: Tensor, device: torch.device) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1], channels last."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255.0
