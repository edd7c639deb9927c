"""Whether float32 results are near: relative to the largest value, for kernels of other CPUs add in another order."""

import numpy as np
from numpy.typing import ArrayLike

ROUNDING = 5e-5
"""Some hundred float32 roundings of the largest value: more than reordered sums give, less than any wrong term."""


def assert_near(found: ArrayLike, expected: ArrayLike, tolerance: float = ROUNDING) -> None:
    """Every value differs by at most `tolerance` times the largest magnitude of `expected`."""
    wanted = np.asarray(expected).astype(np.complex128)
    assert np.shape(found) == wanted.shape
    difference = np.abs(np.asarray(found).astype(np.complex128) - wanted).max() / np.abs(wanted).max()
    assert difference <= tolerance, f"differs by {difference:.1e} of the largest value"
