"""The embedder's layout, and its choice of codes against the published loop, written here anew."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from small import EMBEDDER
from torch import Tensor, nn

from bfr.export.onnx.graph import export_graph
from bfr.models.networks.osdface import VISUAL_EMBEDDER, Codebook, VisualEmbedder, first_of_each
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.errors import InvalidOption

TINY = {**EMBEDDER, "ch_mult": [1, 2, 2], "resolution": 32, "n_embed": 48, "tokens": 20, "context_dim": 24}


def published_loop(distance: NDArray[Any], code: NDArray[Any], count: int) -> list[int]:
    """Positions of the first `count` distinct codes of one image, (N,) distances and codes, as OSDFace picks them.

    Its sort leaves open how equal distances are ordered; torch's on a CPU keeps them as they stand, and so does this.
    """
    seen: set[int] = set()
    positions = []
    for position in np.argsort(distance, kind="stable"):
        if int(code[position]) not in seen:
            seen.add(int(code[position]))
            positions.append(int(position))
        if len(positions) >= count:
            break
    return positions


def expected(distance: NDArray[Any], code: NDArray[Any], count: int) -> NDArray[np.float32]:
    """The same for a batch, as `first_of_each` writes it."""
    chosen = np.zeros((len(code), count, code.shape[1]), np.float32)
    for image, row in enumerate(chosen):
        for rank, position in enumerate(published_loop(distance[image], code[image], count)):
            row[rank, position] = 1
    return chosen


def cases(count: int = 12, n: int = 40) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Distances and codes of batches 1, 2, 3 and 5: distinct, repeated, tied, fewer codes than asked for."""
    made = []
    for seed in range(60):
        draw = np.random.default_rng(seed)
        shape = ((1, 2, 3, 5)[seed % 4], n)
        codes = draw.integers(0, (2, count - 1, count, 30, 1000)[seed % 5], shape)
        levels = (1, 3, 10, 10**6)[seed // 4 % 4]
        made.append((draw.integers(0, levels, shape).astype(np.float32) / 7, codes))
    return made


class Choice(nn.Module):
    """`first_of_each` with float32 codes, as a graph's inputs are."""

    def forward(self, distance: Tensor, code: Tensor) -> Tensor:
        return first_of_each(distance, code.long(), 12)


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def embedder(**changes: Any) -> VisualEmbedder:
    network = VisualEmbedder(**{**TINY, **changes}).eval()
    seed_weights(network)
    return network


def test_the_cases_are_of_every_kind() -> None:
    distinct = [len(np.unique(row)) for _, codes in cases() for row in codes]
    tied = [len(np.unique(row)) < row.size for distances, _ in cases() for row in distances]
    assert min(distinct) < 12
    assert max(distinct) > 30
    assert 12 in distinct
    assert any(tied)
    assert not all(tied)
    assert {len(codes) for _, codes in cases()} == {1, 2, 3, 5}


@pytest.mark.parametrize("case", range(60))
def test_choice_equals_the_published_loop(case: int) -> None:
    distance, code = cases()[case]
    chosen = first_of_each(torch.from_numpy(distance), torch.from_numpy(code), 12)
    np.testing.assert_array_equal(chosen.numpy(), expected(distance, code, 12))


@pytest.mark.export
@pytest.mark.parametrize("opset", [18, 20, 21])
def test_the_exported_choice_equals_the_published_loop(opset: int, tmp_path: Path) -> None:
    distance, code = cases()[1]
    example = {"distance": torch.from_numpy(distance), "code": torch.from_numpy(code).float()}
    path, _ = export_graph(Choice(), example, ["chosen"], tmp_path / "choice.onnx", opset=opset)
    run = session(path)
    for distance, code in cases():
        (chosen,) = run.run(None, {"distance": distance, "code": code.astype(np.float32)})
        np.testing.assert_array_equal(chosen, expected(distance, code, 12))


def test_a_tie_goes_to_the_earlier_position_and_to_the_lower_code() -> None:
    """Integer vectors, so that distances are exact and really equal."""
    book = Codebook(4, 2, 3)
    with torch.no_grad():
        book.embedding.weight.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        points = torch.tensor([[0.0, 3.0], [3.0, 0.0], [9.0, 9.0]])  # distances 4, 4, 0; codes 3, 1 (or 2), 0
        chosen = book(points.T.reshape(1, 2, 3, 1))
        torch.testing.assert_close(chosen, torch.tensor([[[9.0, 9.0], [0.0, 1.0], [1.0, 0.0]]]), rtol=0, atol=0)
        (alone,) = book(points.flip(0).T.reshape(1, 2, 3, 1))
    assert alone.tolist() == [[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0])
def test_codes_equal_the_published_loop(batch: int, spread: float) -> None:
    """spread: of the points; near zero they share few codes, and zero rows are left."""
    draw = torch.Generator().manual_seed(batch)
    book = Codebook(60, 6, 20)
    seed_weights(book)
    z = spread * torch.randn(batch, 6, 8, 8, generator=draw)
    with torch.no_grad():
        chosen = book(z).numpy()
    codes = book.embedding.weight.detach().double().numpy()
    for image in range(batch):
        points = z[image].double().numpy().reshape(6, -1).T
        distance = ((points[:, None] - codes) ** 2).sum(-1)
        positions = published_loop(distance.min(1), distance.argmin(1), 20)
        rows = codes[distance.argmin(1)[positions]]
        assert (len(rows) < 20) == (spread == 0.05)
        np.testing.assert_array_equal(chosen[image, : len(rows)], rows.astype(np.float32))
        assert not chosen[image, len(rows) :].any()


def published_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes as the published code's constructors make them, without the decoder and the unused norms."""
    layout: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        layout[f"{name}.weight"], layout[f"{name}.bias"] = shape, shape[:1]

    def block(name: str, inner: int, outer: int) -> None:
        layer(f"{name}.norm1", inner)
        layer(f"{name}.conv1", outer, inner, 3, 3)
        layer(f"{name}.norm2", outer)
        layer(f"{name}.conv2", outer, outer, 3, 3)
        if inner != outer:
            layer(f"{name}.nin_shortcut", outer, inner, 1, 1)

    def attention(name: str) -> None:
        layer(f"{name}.norm1", 512)
        for conv in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{conv}", 512, 512, 1, 1)

    layer("encoder.conv_in", 64, 3, 3, 3)
    widths = (64, 64, 128, 128, 128, 256, 512)  # of the first convolution and of the levels of 512, 256, ... 16
    for level, (inner, outer) in enumerate(pairwise(widths)):
        block(f"encoder.down.{level}.block.0", inner, outer)
        block(f"encoder.down.{level}.block.1", outer, outer)
        if level < 5:
            layer(f"encoder.down.{level}.downsample.conv", outer, outer, 3, 3)
    for name in ("encoder.down.5.attn.0", "encoder.down.5.attn.1", "encoder.mid.attn_1"):
        attention(name)
    block("encoder.mid.block_1", 512, 512)
    block("encoder.mid.block_2", 512, 512)
    layer("encoder.norm_out", 512)
    layer("encoder.conv_out", 512, 512, 3, 3)
    layer("quant_conv", 512, 512, 1, 1)
    layout["quantize.embedding.weight"] = (1024, 512)
    layer("embedding_change.conv1", 256, 512, 1)
    layer("embedding_change.conv2", 1024, 256, 1)
    return layout


def test_layout_is_the_published_one() -> None:
    with torch.device("meta"):
        network = VisualEmbedder(**VISUAL_EMBEDDER)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == published_layout()


def test_what_the_embedder_computes() -> None:
    """Its steps one by one: the second mapping of the image, the codes, and a context of the rows that have none."""
    network = embedder(n_embed=5)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        context = network(image)
        codes = network.quantize(network.quant_conv(network.encoder(2 * image - 1)))
        hidden = codes @ network.embedding_change.conv1.weight[:, :, 0].T + network.embedding_change.conv1.bias
        hidden = hidden * hidden.sigmoid()
        out = hidden @ network.embedding_change.conv2.weight[:, :, 0].T + network.embedding_change.conv2.bias
        torch.testing.assert_close(context, out * out.sigmoid(), rtol=1e-5, atol=1e-6)
    assert context.shape == (2, 20, 24)
    assert not codes[:, 5:].any()
    torch.testing.assert_close(context[:, 5:], context[:1, 5:6].expand(2, 15, 24), rtol=0, atol=1e-7)
    assert context[:, 5:].abs().max() > 1e-3


def test_another_size_is_resized() -> None:
    network = embedder()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    small = torch.nn.functional.interpolate(image, size=(32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad():
        torch.testing.assert_close(network(image), network(small), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"), [({"resolution": 34}, "cannot be halved 2 times"), ({"groups": 3}, "into 3 groups")]
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        VisualEmbedder(**{**TINY, **changes})
