import numpy as np
import pytest

from bfr.models.networks.resize import resize_matrix
from bfr.runtime.images.resize import resize


@pytest.mark.parametrize(("source", "target"), [(512, 128), (128, 512), (64, 64), (50, 33), (7, 20)])
def test_it_is_pillows_antialiased_bicubic(source: int, target: int) -> None:
    image = np.random.default_rng(0).random((source, source, 3), dtype=np.float32)
    matrix = resize_matrix(source, target)
    found = np.stack([matrix @ channel @ matrix.T for channel in image.transpose(2, 0, 1)], axis=2)
    assert np.abs(found - resize(image, (target, target))).max() < 2e-6
    assert np.allclose(matrix.sum(axis=1), 1.0, atol=1e-12)


def test_the_same_size_changes_nothing() -> None:
    assert np.array_equal(resize_matrix(9, 9), np.eye(9))
