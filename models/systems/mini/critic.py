"""The critic of the estimator's adversarial training: it tells restored faces from clean ones, patch by patch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class Critic(nn.Module):
    """A patch discriminator (arXiv 1611.07004) with spectral normalization (arXiv 1802.05957), and its optimizer.

    Each output sees 56x56 pixels of the face: detail is judged, not the face as a whole. Its losses are the hinge
    (arXiv 1705.02894) and feature matching (arXiv 1711.11585), which needs no network trained by others.
    """

    def __init__(self, width: int = 32, lr: float = 2e-4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                spectral_norm(nn.Conv2d(12, width, 3, padding=1)),
                spectral_norm(nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1)),
                spectral_norm(nn.Conv2d(4 * width, 4 * width, 3, padding=1)),
            ]
        )
        self.verdict = spectral_norm(nn.Conv2d(4 * width, 1, 3, padding=1))
        self.optimizer = torch.optim.AdamW(self.parameters(), lr, betas=(0.5, 0.99), weight_decay=0.0)

    def forward(self, faces: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) in [0, 1] -> verdicts (B, 1, H / 8, W / 8), positive for clean, and the layers' features."""
        x, features = F.pixel_unshuffle(2 * faces - 1, 2), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.verdict(x), features

    def learn(self, restored: Tensor, clean: Tensor) -> None:
        """One step towards telling them apart; each (B, 3, H, W) in [0, 1]."""
        self.train().requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.relu(1 - self(clean)[0]).mean() + F.relu(1 + self(restored.detach())[0]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.eval().requires_grad_(False)  # evaluation: the norms' power iteration stands still

    def losses(self, restored: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """What the restored faces lose by being told from clean ones: the hinge's part, and the features' distance."""
        verdicts, features = self(restored)
        with torch.no_grad():
            wanted = self(clean)[1]
        distances = [F.l1_loss(mine, theirs) for mine, theirs in zip(features, wanted, strict=True)]
        return -verdicts.mean(), torch.stack(distances).mean()

    def state(self) -> dict[str, Any]:
        """Weights and optimizer, to go on from."""
        return {"weights": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
