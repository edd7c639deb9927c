"""How images are resized."""

import numpy as np

from bfr.runtime.images.resize import resize


def test_resize_is_antialiased_and_not_clipped() -> None:
    stripes = np.zeros((64, 64, 3), np.float32)
    stripes[:, ::2] = (1.0, 0.5, 0.25)
    small = resize(stripes, (16, 8))
    assert (small.shape, small.dtype) == ((8, 16, 3), np.float32)
    inner = small[:, 2:-2]
    assert np.abs(inner - np.array([0.5, 0.25, 0.125])).max() < 0.01  # without antialiasing: 0 or 1

    edge = np.zeros((4, 8, 3), np.float32)
    edge[:, 4:] = 1.0
    large = resize(edge, (32, 16))
    assert large.min() < -0.01
    assert large.max() > 1.01
    np.testing.assert_array_equal(resize(edge, (8, 4)), edge)
