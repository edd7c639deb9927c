import numpy as np
import pytest

from bfr.runtime.diffusion.noise import fill_normal, philox
from bfr.runtime.errors import InvalidOption

SHAPE = (3, 64, 64)


def normals(seed: int = 1, image: int = 2, step: int = 3, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    out = np.empty(shape, np.float32)
    fill_normal(out, seed=seed, image=image, step=step)
    return out


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(
    counter: tuple[int, ...], key: tuple[int, int], expected: str
) -> None:
    words = philox(tuple(np.array([word], np.uint64) for word in counter), key)
    assert " ".join(f"{int(word[0]):08x}" for word in words) == expected


def test_the_noise_is_normal() -> None:
    sample = normals(shape=(3, 256, 256)).ravel().astype(np.float64)
    count = sample.size
    assert abs(sample.mean()) < 5 / np.sqrt(count)
    assert abs(sample.var() - 1) < 5 * np.sqrt(2 / count)
    assert abs((sample**4).mean() - 3) < 5 * np.sqrt(96 / count)
    share = (np.abs(sample) < 1.959964).mean()
    assert abs(share - 0.95) < 5 * np.sqrt(0.95 * 0.05 / count)
    assert abs(np.corrcoef(sample[:-1], sample[1:])[0, 1]) < 5 / np.sqrt(count)


def test_each_of_seed_image_and_step_changes_all_of_it() -> None:
    base = normals()
    for other in (normals(seed=2), normals(image=3), normals(step=4)):
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(base.size)


def test_a_prefix_does_not_depend_on_the_size() -> None:
    assert np.array_equal(normals(shape=(16,)), normals(shape=(64,))[:16])


def test_a_seed_of_numpy_is_as_good_as_any() -> None:
    for kind in (np.uint8, np.int32, np.uint32):
        np.testing.assert_array_equal(normals(seed=kind(7), image=kind(9)), normals(seed=7, image=9))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InvalidOption, match="seed"):
        normals(seed=seed)
