"""Gradients as graphs: every operator that is replaced, at batches that were not traced."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bfr.models.networks.autoencoder import AttnBlock, Upsample
from bfr.models.stages.gradient import without_autograd
from bfr.models.stages.stage import Stage, random
from bfr.models.weights.seeded import seed_weights


class Gradient(Stage):
    """x (B, channels, 9, 9) -> the gradient of the squared result of a network."""

    kind, outputs, wraps = "gradient", ("gradient",), "network"

    def __init__(self, network: nn.Module, channels: int = 4, side: int = 9) -> None:
        super().__init__()
        self.network, self.channels, self.side = network, channels, side

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad((self.network(point) ** 2).sum(), point)
        return gradient

    def examples(self, size: int, batch: int = 2) -> dict[str, Tensor]:
        return {"x": random(batch, self.channels, size, size) - 0.5}


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(4, 3, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1),
    "strided, rows left over": lambda: nn.Conv2d(4, 3, 3, stride=4, padding=1, bias=False),
    "strided pointwise": lambda: nn.Conv2d(4, 6, 1, stride=2, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, (3, 1), groups=2),
    "dilated": lambda: nn.Conv2d(4, 2, 3, dilation=2, padding=(1, 2)),
    "batch norm": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
    "batch norm of vectors": lambda: nn.Sequential(nn.Flatten(), nn.Linear(324, 5), nn.BatchNorm1d(5)),
    "group norm": lambda: nn.Sequential(nn.GroupNorm(2, 4, eps=1e-6), nn.Conv2d(4, 4, 1)),
    "prelu": lambda: nn.PReLU(4),
    "silu": nn.SiLU,
    "enlarged": lambda: Upsample(4),
    "enlarged, height and width apart": lambda: Call(lambda x: torch.ops.aten.upsample_nearest2d.default(x, [27, 18])),
    "attention": lambda: AttnBlock(4, 2),
}


@pytest.mark.parametrize("name", [*NETWORKS])
def test_every_operator_at_every_batch(name: str) -> None:
    stage = Gradient(NETWORKS[name]()).eval()
    seed_weights(stage)
    graph = without_autograd(stage, 9)
    for batch in (1, 2, 3):
        x = torch.randn(batch, 4, 9, 9, generator=torch.Generator().manual_seed(batch))
        expected = stage(x)
        assert expected.abs().max() > 1e-3
        with torch.no_grad():
            torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_weights_are_the_stages_own_under_its_names() -> None:
    stage = Gradient(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    graph = without_autograd(stage, 9)
    assert list(graph.state_dict()) == list(stage.state_dict())
    assert graph.get_parameter("network.0.weight") is stage.network.get_parameter("0.weight")
    x = stage.examples(9)["x"]
    before = graph(x)
    with torch.no_grad():
        stage.network.get_parameter("0.weight").mul_(2.0)
    torch.testing.assert_close(graph(x), stage(x))
    assert not torch.equal(before, graph(x))


def test_the_graph_reads_the_batch_once_and_calls_no_autograd() -> None:
    graph = without_autograd(Gradient(nn.Sequential(nn.GroupNorm(2, 4), AttnBlock(4, 2))), 9)
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert not [name for name in targets if "backward" in name or "detach" in name or "clone" in name]
    assert len([name for name in targets if "sym_size" in name]) == 1  # for the ones that the sum's gradient is


@pytest.mark.parametrize(
    "function",
    [lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), lambda x: x.square().view(int(x.shape[0]) * 4, 81)],
)
def test_a_batch_that_becomes_a_constant_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="batch"):
        without_autograd(Gradient(Call(function)), 9)


def test_a_tensor_that_is_made_inside_is_refused() -> None:
    with pytest.raises(RuntimeError, match="constants"):
        without_autograd(Gradient(Call(lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None])), 9)


def test_a_transposed_convolution_is_refused() -> None:
    with pytest.raises(RuntimeError, match="ordinary convolutions"):
        without_autograd(Gradient(nn.ConvTranspose2d(4, 4, 2)), 9)


def test_an_enlargement_by_a_fraction_is_refused() -> None:
    fraction = Call(lambda x: torch.ops.aten.upsample_nearest2d.default(x, [13, 18]))
    with pytest.raises(RuntimeError, match="whole numbers"):
        without_autograd(Gradient(fraction), 9)
