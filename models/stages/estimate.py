"""Stages that are called once: an estimator, with a hole or without, and a resize."""

from typing import cast

import torch
from torch import Tensor, nn

from bfr.models.networks.resize import resize_matrix
from bfr.models.stages.stage import ImageStage, Stage, random
from bfr.models.stages.step import clip, clip_finite


class EstimatorStage(ImageStage):
    """degraded (B, 3, S, S) in [0, 1] -> estimate (B, 3, S, S) in [-1, 1], clipped, the start of the loop."""

    kind, outputs, wraps = "estimator", ("estimate",), "estimator"
    estimator: nn.Module

    def forward(self, degraded: Tensor) -> Tensor:
        return clip_finite(2.0 * self.estimator(degraded).float() - 1.0)


class InpaintStage(Stage):
    """degraded (B, 3, S, S) in [0, 1], 0 in the hole, and mask (B, 1, S, S), 1 there -> estimate and known.

    Both (B, 3, S, S) in [-1, 1]: the picture with its hole filled, and the degraded image as KnownStep reads it.
    """

    kind, outputs, wraps = "inpainter", ("estimate", "known"), "estimator"
    estimator: nn.Module

    def forward(self, degraded: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        filled = self.estimator(torch.cat([degraded, mask], dim=1)).float()
        return clip_finite(2.0 * filled - 1.0), 2.0 * degraded - 1.0

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        return {"degraded": random(batch, 3, size, size), "mask": random(batch, 1, size, size).round()}


class ResizeStage(Stage):
    """image (B, C, S, S) -> resized (B, C, T, T): antialiased bicubic, as two products with constant matrices.

    Source and target are fixed, so every backend computes the same; the weights are those of Pillow's bicubic filter.
    """

    kind, outputs = "resize", ("resized",)

    def __init__(self, _none: nn.Module | None = None, *, target: int, source: int, low: float = -1.0) -> None:
        """Build the stage.

        Args:
            target: T, in pixels.
            source: S, in pixels.
            low: Lower end of the image's range; [0, 1] is mapped to [-1, 1], [-1, 1] stays.
        """
        super().__init__()
        self.low, self.source = low, source
        self.register_buffer("matrix", torch.from_numpy(resize_matrix(source, target)).float(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        matrix = cast(Tensor, self.matrix)
        x = image if self.low < 0 else 2.0 * image - 1.0
        if matrix.shape[0] == matrix.shape[1]:
            return x
        return clip(torch.matmul(torch.matmul(matrix, x), matrix.T))

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        del size
        return {"image": random(batch, 3, self.source, self.source)}
