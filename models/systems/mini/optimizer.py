"""The optimizer of `mini`'s training: Muon for matrices, AdamW for the rest."""

from typing import Any

import torch
from torch import Tensor


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
