"""Crop and resize against torch and Pillow, distances against NumPy, and what the builders make of plain parameters."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from near import assert_near
from PIL import Image
from small import AUTOENCODER, IRN, RECOGNIZER
from torch import Tensor
from torch.nn import functional as F

from bfr.models.networks.arcface import IResNet
from bfr.models.networks.clrface import clrface_guide, clrface_recoverer, identity_guide
from bfr.models.networks.identity import ARCFACE_112, FFHQ_512, IdentityDistance, arcface_box
from bfr.models.networks.resize import resize_matrix as resampling
from bfr.models.weights.seeded import seed_weights
from bfr.runtime.errors import InvalidOption


def resize_matrix(source: int, size: int, start: float = 0.0, stop: float | None = None) -> torch.Tensor:
    return torch.from_numpy(resampling(source, size, start, stop, filter="bilinear"))


def images(batch: int, size: int = 32) -> Tensor:
    return 2.0 * torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)) - 1.0


def build(**changes: Any) -> IdentityDistance:
    distance = identity_guide(**{"recognizer": RECOGNIZER, "image_size": 32, **changes}).eval()
    seed_weights(distance)
    return distance


@pytest.mark.parametrize(("source", "size"), [(512, 112), (64, 64), (33, 16), (16, 40)])
def test_resizing_equals_torchs_antialiased_interpolation(source: int, size: int) -> None:
    image = images(1, source).double()
    matrix = resize_matrix(source, size)
    expected = F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(matrix @ image @ matrix.T, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("box", [(0.0, 0.0, 96.0, 96.0), arcface_box(96)])
def test_resizing_a_box_equals_pillows(box: tuple[float, float, float, float]) -> None:
    image = images(1, 96)[0, 0]
    left, top, right, bottom = box
    rows, columns = resize_matrix(96, 20, top, bottom), resize_matrix(96, 20, left, right)
    expected = Image.fromarray(image.numpy()).resize((20, 20), Image.Resampling.BILINEAR, box=box)
    assert np.abs((rows @ image.double() @ columns.T).numpy() - np.asarray(expected)).max() < 1e-5


def test_the_face_is_the_resized_crop() -> None:
    distance = build()
    x = images(2)
    left, top, right, bottom = arcface_box(32)
    rows, columns = resize_matrix(32, 16, top, bottom), resize_matrix(32, 16, left, right)
    assert_near(distance.face(x), (rows @ x.double() @ columns.T).float())
    whole = F.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    assert_near(build(crop="whole").face(x), whole)
    assert (distance.face(x) - whole).abs().max() > 1e-2
    assert not any(name.endswith(("rows", "columns")) for name in distance.state_dict())


def test_the_box_is_the_least_squares_fit_of_the_landmarks() -> None:
    left, top, right, bottom = arcface_box(512)
    assert right - left == pytest.approx(bottom - top)
    assert 0 < left < right < 512
    assert 0 < top < bottom < 512
    source = np.array(FFHQ_512) + 0.5
    target = np.array(ARCFACE_112) + 0.5

    def error(left: float, top: float, side: float) -> float:
        return float((((source - [left, top]) * 112.0 / side - target) ** 2).sum())

    best = error(left, top, right - left)
    assert np.sqrt(best / 5) < 3.0  # pixels of the small face
    for change in ((0.5, 0, 0), (-0.5, 0, 0), (0, 0.5, 0), (0, -0.5, 0), (0.5, 0.5, 1), (-0.5, -0.5, -1)):
        assert error(left + change[0], top + change[1], right - left + change[2]) > best
    assert arcface_box(1024) == pytest.approx([2 * edge for edge in arcface_box(512)])


def test_distances_equal_their_formulas_in_float64() -> None:
    x, target = images(3), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for metric in ("cosine", "mse"):
            distance = build(metric=metric)
            a, b = distance.embed(x).double().numpy(), target.double().numpy()
            cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            expected = 1.0 - cosine if metric == "cosine" else ((a - b) ** 2).sum(1)
            assert np.abs(distance(x, target).numpy() - expected).max() < 1e-5


def test_the_distance_of_an_image_to_itself_is_zero_and_to_no_identity_one() -> None:
    distance, x = build(metric="cosine"), images(2)
    with torch.no_grad():
        assert distance(x, 3.0 * distance.embed(x)).abs().max() < 1e-6
        assert (distance(x, torch.zeros(2, 6)) - 1.0).abs().max() == 0.0


def test_plain_parameters_build_the_networks_again() -> None:
    guide = {"recognizer": RECOGNIZER, "autoencoder": AUTOENCODER}
    made = [
        (identity_guide, {"recognizer": RECOGNIZER, "image_size": 32, "metric": "mse", "crop": "whole"}),
        (clrface_guide, {**guide, "metric": "cosine"}),
        (clrface_recoverer, {**guide, "irn": IRN}),
    ]
    for builder, parameters in made:
        first, second = (builder(**json.loads(json.dumps(parameters))) for _ in range(2))  # type: ignore[operator]
        second.load_state_dict(first.state_dict())
        parts = {name.split(".")[0] for name in first.state_dict()}
        assert parts <= {"recognizer", "autoencoder", "latent_mask", "irn", "distance"}
        assert not any("encoder.conv_in" in name and "autoencoder.encoder" in name for name in first.state_dict())


def test_the_mask_is_as_large_as_the_latents() -> None:
    guide = clrface_guide(recognizer=RECOGNIZER, autoencoder=AUTOENCODER)
    assert guide.mask is not None
    assert guide.mask.shape == (1, 3, 16, 16)
    assert (guide.mask == 1.0).all()
    assert build().mask is None


def test_recovery_embeds_what_it_decodes() -> None:
    network = clrface_recoverer(recognizer=RECOGNIZER, autoencoder=AUTOENCODER, irn=IRN).eval()
    seed_weights(network)
    latent = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        identity, image = network(latent)
        assert image.shape == (2, 3, 32, 32)
        torch.testing.assert_close(identity, network.distance.embed(image), rtol=0, atol=0)
        assert network.distance.autoencoder is not None
        expected = network.distance.autoencoder.decode(network.irn(latent))
    torch.testing.assert_close(image, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [({"metric": "euclid"}, "choose one of cosine, mse"), ({"crop": "tight"}, "choose one of arcface, whole")],
)
def test_impossible_distances_are_refused(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(InvalidOption, match=remedy):
        IdentityDistance(IResNet(**RECOGNIZER), image_size=32, **changes)


def test_impossible_latents_are_refused() -> None:
    with pytest.raises(InvalidOption, match="in_channels 3"):
        clrface_recoverer(recognizer=RECOGNIZER, autoencoder=AUTOENCODER, irn={**IRN, "in_channels": 4})
    with pytest.raises(InvalidOption, match="whole"):
        resize_matrix(16, 8, -1.0, 8.0)
