"""TIFF of the kinds that Pillow and OpenCV refuse or misread."""

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.decode import decode_image
from bfr.runtime.images.tiff import _with_directory


@pytest.mark.parametrize("apart", [[], [(284, 2)]])
def test_16_bit_grey_premultiplied_by_alpha(files: Any, apart: list[tuple[int, int]]) -> None:
    alpha = np.maximum(files.deep[..., 3:], 20_000)
    stored = np.rint(files.deep[..., :1] * (alpha / 65_535)).astype(np.uint16)
    image = decode_image(files.tiff_16(np.dstack([stored, alpha]), (338, 1), *apart, photometric=1))
    assert np.abs(image.pixels.astype(int) - files.deep[..., :1]).max() <= 2
    np.testing.assert_array_equal(image.alpha, alpha[..., 0])


@pytest.mark.parametrize("apart", [[], [(284, 2)]])
def test_cmyk_with_alpha(files: Any, apart: list[tuple[int, int]]) -> None:
    image = decode_image(files.tiff_16(files.deep[..., [0, 1, 2, 3, 0]], (338, 2), *apart, photometric=5))
    cmyk = Pillow.frombytes("CMYK", image.pixels.shape[1::-1], (files.deep >> 8).astype(np.uint8).tobytes())
    np.testing.assert_array_equal(image.pixels, np.asarray(cmyk.convert("RGB")))
    assert "alpha is left out" in image.notes[0]
    assert "16 bits a sample become 8" in image.notes[1]


def test_differences_between_neighbours(files: Any) -> None:
    """A predictor counts from a sample of a pixel to the same one of the next."""
    grey = files.deep[..., :2]
    differences = np.diff(grey, axis=1, prepend=np.zeros_like(grey[:, :1]))
    image = decode_image(files.tiff_16(differences, (317, 2), (338, 2), photometric=1))
    np.testing.assert_array_equal(image.pixels[..., 0], grey[..., 0])
    np.testing.assert_array_equal(image.alpha, grey[..., 1])


@pytest.mark.parametrize("compression", ["zstd", "lzma"])
def test_16_bit_colours_that_opencv_cannot_unpack(files: Any, compression: str, capfd: Any) -> None:
    height, width = files.deep.shape[:2]
    as_grey = Pillow.fromarray(files.deep[..., :3].reshape(height, -1))
    data = files.saved(as_grey, "TIFF", compression=compression)
    image = decode_image(_with_directory(data, {256: [width], 258: [16] * 3, 262: [2], 277: [3]}))
    np.testing.assert_array_equal(image.pixels, files.deep[..., :3])
    assert capfd.readouterr().err == ""


def test_grey_whose_white_is_0_with_alpha(files: Any) -> None:
    image = decode_image(files.tiff_16(~files.deep[..., :2], (338, 2), photometric=0))
    np.testing.assert_array_equal(image.pixels[..., 0], files.deep[..., 0])


def test_8_bit_grey_premultiplied_by_alpha(files: Any) -> None:
    data = files.saved(files.flat("LA", (100, 128)), "TIFF")
    tag = struct.pack("<HHI", 338, 3, 1)
    image = decode_image(data.replace(tag + b"\2", tag + b"\1"))
    assert (image.pixels == 199).all()
    assert (image.alpha == 128).all()
    assert image.grey


def test_what_is_orientated_is_turned_once(files: Any) -> None:
    image = decode_image(files.tiff_16(files.deep[..., :2], (274, 6), (338, 2), photometric=1))
    np.testing.assert_array_equal(image.pixels[..., 0], np.rot90(files.deep[..., 0], -1))
    np.testing.assert_array_equal(image.alpha, np.rot90(files.deep[..., 1], -1))


@pytest.mark.parametrize(
    ("tag", "kind"), [((258, [32] * 3), "32-bit"), ((258, [64] * 3), "64-bit"), ((339, [3] * 3), "floating-point")]
)
def test_samples_that_are_not_read_are_named(files: Any, tag: tuple[int, list[int]], kind: str) -> None:
    with pytest.raises(InvalidImage, match=f"has {kind} samples: save it with"):
        decode_image(files.tiff_16(files.deep[..., :3], tag))


@pytest.mark.parametrize("samples", [0, 99, 65_535])
def test_a_claim_of_many_channels_is_refused(files: Any, samples: int) -> None:
    with pytest.raises(InvalidImage, match=r"PNG|damaged"):
        decode_image(files.tiff_16(files.deep[..., :3], (277, samples), (284, 2)))
