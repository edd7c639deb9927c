from typing import Any

import numpy as np
import pytest

from bfr.runtime.bundle.manifest import ImageInput
from bfr.runtime.errors import InvalidImage, InvalidOption
from bfr.runtime.images.resize import resize
from bfr.runtime.restore.inputs import ImageInputs, keep_known, read_mask

SIZE = 16
INPAINTS = ImageInputs("inpainter", SIZE, [ImageInput(name="mask", channels=1)])


def picture(side: int = SIZE, dtype: type = np.uint8) -> np.ndarray[Any, Any]:
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(1, top, (side, side, 3), dtype=dtype, endpoint=True)


def test_the_hole_is_where_every_channel_is_0() -> None:
    image = picture()
    image[3:6, 4:9] = 0
    image[0, 0] = (0, 0, 7)
    made = INPAINTS.prepare(image, {})
    assert made["mask"].shape == (1, SIZE, SIZE)
    assert made["mask"].sum() == 15
    assert made["mask"][0, 3:6, 4:9].all()
    assert np.array_equal(made["degraded"], image.transpose(2, 0, 1).astype(np.float32) / 255)


def test_a_mask_makes_its_hole_exactly_0() -> None:
    image, mask = picture(), np.zeros((SIZE, SIZE), bool)
    mask[2:5] = True
    made = INPAINTS.prepare(image, {"mask": mask})
    assert np.array_equal(made["mask"][0] > 0, mask)
    assert not made["degraded"][:, mask].any()
    assert np.array_equal(made["degraded"][:, ~mask], (image.transpose(2, 0, 1) / np.float32(255))[:, ~mask])


@pytest.mark.parametrize("side", [47, 9])
def test_no_pixel_of_the_hole_leaks_into_a_resized_picture(side: int) -> None:
    """What is known at the network's size must not depend on what stood in the hole."""
    mask = np.zeros((side, side), bool)
    mask[side // 3 : side // 2, 1 : side // 2] = True
    images = [picture(side).copy() for _ in range(2)]
    images[0][mask], images[1][mask] = 255, 3
    one, other = (INPAINTS.prepare(image, {"mask": mask}) for image in images)
    assert 0 < one["mask"].mean() < 0.9
    assert np.array_equal(one["degraded"], other["degraded"])
    plain = resize(picture(side).astype(np.float32) / 255, (SIZE, SIZE)).transpose(2, 0, 1)
    known = one["mask"][0] == 0
    assert np.abs(one["degraded"][:, known] - plain[:, known]).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_known_pixels_come_back_bit_for_bit(dtype: type) -> None:
    image, result = picture(33, dtype), picture(33, dtype)[::-1].copy()
    mask = np.random.default_rng(1).random((33, 33)) < 0.3
    found = keep_known(image, result, mask)
    assert np.array_equal(found[~mask], image[~mask])
    assert np.array_equal(found[mask], result[mask])


def test_masks_are_read_from_white() -> None:
    drawn = np.zeros((4, 4, 3), np.uint8)
    drawn[1], drawn[2] = 255, 100
    assert read_mask(drawn).tolist() == [[False] * 4, [True] * 4, [False] * 4, [False] * 4]
    assert read_mask(drawn.astype(np.uint16) * 257)[1].all()


def test_a_reference_that_is_not_given_is_black() -> None:
    guided = ImageInputs("guided", SIZE, [ImageInput(name="reference", channels=3)])
    assert not guided.prepare(picture(), {})["reference"].any()
    other = guided.prepare(picture(), {"reference": picture(40)})["reference"]
    assert other.shape == (3, SIZE, SIZE)
    assert other.any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidImage, match=r"9x8.*16x16"):
        INPAINTS.prepare(picture(), {"mask": np.zeros((8, 9), bool)})
    with pytest.raises(InvalidOption, match="has no input 'reference': it takes mask"):
        INPAINTS.check(1, {"reference": [None]})
    with pytest.raises(InvalidOption, match="2 pictures for 'mask', 1 images"):
        INPAINTS.check(1, {"mask": [None, None]})
    with pytest.raises(InvalidOption, match="it takes the image alone"):
        ImageInputs("plain", SIZE, []).check(1, {"mask": [None]})
