"""Pictures of users as inputs of networks: the degraded face, for some systems a mask or another picture of the person.

And what networks return, as pictures again.
"""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.backends.device import Float32
from bfr.runtime.bundle.manifest import ImageInput, Pixels
from bfr.runtime.errors import InvalidImage, InvalidOption
from bfr.runtime.images.resize import between_corners, resize
from bfr.runtime.restore.plan import DEGRADED, WEIGHT

Given = Sequence[NDArray[Any] | None]
"""Pictures for one further input, one or None for each image."""

BICUBIC_SUPPORT = 2.0  # pixels to each side


class ImageInputs:
    """How the inputs of a system are made from pictures."""

    def __init__(
        self,
        system: str,
        size: int,
        others: Sequence[ImageInput],
        weight: float | None = None,
        pixels: Pixels = Pixels(),  # noqa: B008  (frozen)
    ) -> None:
        """Keep what the system reads.

        Args:
            system: Its name.
            size: Side of its images in pixels, S.
            others: The manifest's inputs beside the degraded image.
            weight: The fidelity weight, where a network reads one.
            pixels: How images are read and written.

        Raises:
            InvalidOption: `pixels` and the inputs do not go together.
        """
        self.system, self.size, self.others, self.weight = system, size, {one.name for one in others}, weight
        self.pixels = pixels
        if "mask" in self.others and pixels.size != "image":
            raise InvalidOption(f"{system} keeps the pixels outside the mask, in the image's own size: leave size out")

    def held(self, name: str, pictures: Sequence[Any]) -> list[NDArray[Any] | None]:
        """Return the arrays of pictures, see `as_pixels`; a mask that is no array becomes `read_mask` of its pixels."""
        found: list[NDArray[Any] | None] = []
        for picture in pictures:
            if picture is None or isinstance(picture, np.ndarray):
                found.append(picture)
            else:
                found.append(read_mask(as_pixels(picture)) if name == "mask" else as_pixels(picture))
        return found

    def check(self, count: int, given: Mapping[str, Given]) -> None:
        """Raise InvalidOption if the system has no such input, or the pictures are not one for each image."""
        for name, pictures in given.items():
            if name not in self.others:
                takes = f"it takes {', '.join(sorted(self.others))}" if self.others else "it takes the image alone"
                raise InvalidOption(f"{self.system} has no input {name!r}: {takes}")
            if len(pictures) != count:
                raise InvalidOption(
                    f"{len(pictures)} pictures for {name!r}, {count} images: give one, or None, for each"
                )

    def prepare(self, image: NDArray[Any], given: Mapping[str, NDArray[Any] | None]) -> dict[str, Float32]:
        """Make the inputs of one image.

        Args:
            image: (H, W, 3).
            given: `mask`, (H, W) of the image's size, not 0 in the hole; None takes the pixels that are 0 in all
                channels, as published. `reference`, (h, w, 3); None is all 0: there is none.

        Returns:
            By name, (channels, S, S) float32 in [0, 1] each, and (1,) of a weight.

        Raises:
            InvalidImage: A picture does not fit.
        """
        mask = None
        if "mask" in self.others:
            mask = mask_of(image, given.get("mask"))
            image = np.where(mask[:, :, None], image.dtype.type(0), image)  # no network reads the hole
        made = {DEGRADED: to_input(image, self.size, self.pixels)}
        if self.weight is not None:
            made[WEIGHT] = np.array([self.weight], np.float32)
        if mask is not None:
            hole = _at_size(mask, self.size)
            made["mask"] = hole[None].astype(np.float32)
            made[DEGRADED][:, hole] = 0.0
        if "reference" in self.others:
            reference = given.get("reference")
            made["reference"] = (
                np.zeros_like(made[DEGRADED]) if reference is None else to_input(reference, self.size, self.pixels)
            )
        return made


def keep_known(image: NDArray[Any], result: NDArray[Any], mask: NDArray[Any] | None) -> NDArray[Any]:
    """Return the result where the mask is not 0, and the image's own pixels elsewhere."""
    return np.where(mask_of(image, mask)[:, :, None], result, image)


def mask_of(image: NDArray[Any], mask: NDArray[Any] | None) -> NDArray[np.bool_]:
    """(H, W) bool, True in the hole. Raises InvalidImage if the mask is not of the image's size."""
    if mask is None:
        return np.asarray((image == 0).all(axis=2))
    mask = np.asarray(mask.any(axis=2)) if mask.ndim == 3 else mask
    if mask.shape != image.shape[:2]:
        raise InvalidImage(
            f"the mask is {mask.shape[1]}x{mask.shape[0]}, the image {image.shape[1]}x{image.shape[0]}: "
            "give a mask of the image's size"
        )
    return np.asarray(mask != 0)


def _at_size(hole: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """(size, size) bool: every pixel whose value a resize computes from pixels of the hole."""
    if hole.shape == (size, size):
        return hole
    total = np.pad(hole, ((1, 0), (1, 0))).cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    (top, bottom), (left, right) = (_reach(side, size) for side in hole.shape)
    found = total[bottom][:, right] - total[top][:, right] - total[bottom][:, left] + total[top][:, left]
    return np.asarray(found > 0)


def _reach(side: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(size,) each: the first and one past the last of `side` pixels that antialiased bicubic reads for a pixel."""
    scale = side / size
    centres, support = (np.arange(size) + 0.5) * scale, BICUBIC_SUPPORT * max(scale, 1.0)
    first = np.clip(np.floor(centres - support), 0, side).astype(np.int64)
    return first, np.clip(np.ceil(centres + support), 0, side).astype(np.int64)


def read_mask(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """(H, W, 3) mask image -> (H, W) bool, True in the hole: where a channel is above half its range, as white is."""
    return np.asarray(pixels.max(axis=2) > full_scale(pixels.dtype) / 2)


def as_pixels(image: Any) -> NDArray[Any]:
    """Return the (H, W, 3) pixels of an image, uint8, uint16 or float32.

    Args:
        image: What `Restorer.restore` takes.

    Raises:
        InputNotFound: There is no such file.
        InvalidImage: It is no image, or has another shape, dtype or range.
    """
    if not isinstance(image, np.ndarray):
        from bfr.runtime.images.given import as_image, tensor_pixels  # OpenCV is slow to load

        tensor = tensor_pixels(image)
        image = as_image(image).pixels if tensor is None or tensor.dtype != np.float32 else tensor
    elif type(image) is not np.ndarray or not image.dtype.isnative:
        from bfr.runtime.images.given import plain_array

        image = plain_array(image)
    check_image(image)
    # Rounding may leave [0, 1]. NaN fails its own image later.
    if image.dtype == np.float32 and (image.min() < -1e-6 or image.max() > 1 + 1e-6):
        raise InvalidImage(f"floats from {image.min():g} to {image.max():g} were given: scale them to [0, 1]")
    return image  # type: ignore[no-any-return]


def as_several(images: Any) -> list[Any]:
    """One image, a batch of them as an array or a tensor of four dimensions, or a sequence -> a list."""
    if isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4:
        return list(images)
    return [images]


def check_image(image: NDArray[Any]) -> None:
    """Raise InvalidImage unless it is (H, W, 3), uint8, uint16 or float32."""
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InvalidImage(f"an image of shape {image.shape} was given: (H, W, 3) RGB is needed")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise InvalidImage(f"an image of dtype {image.dtype} was given: uint8, uint16, or float32 in [0, 1] is needed")


def to_input(image: NDArray[Any], size: int, how: Pixels = Pixels()) -> Float32:  # noqa: B008  (frozen)
    """(H, W, 3) uint8, uint16, or float32 in [0, 1] -> (3, size, size) float32, resized where it must be."""
    check_image(image)
    x = image.astype(np.float32) / np.float32(full_scale(image.dtype))
    if x.shape[:2] != (size, size):
        x = resize(x, (size, size)) if how.resize == "bicubic" else between_corners(x, size)
    return np.ascontiguousarray(x.transpose(2, 0, 1))


def to_output(face: Float32, like: NDArray[Any], how: Pixels = Pixels()) -> NDArray[Any]:  # noqa: B008  (frozen)
    """(3, S, S) float32 in [0, 1] -> (H, W, 3) of the dtype of `like`, and of its size or (S, S, 3), see `Pixels`."""
    x = np.ascontiguousarray(face.transpose(1, 2, 0))
    height, width = like.shape[:2]
    if x.shape[:2] != (height, width) and how.size == "image":
        x = np.clip(resize(x, (width, height)), 0.0, 1.0)
    scale = full_scale(like.dtype)
    if scale == 1.0:
        return x
    levels = x * np.float32(scale)
    return np.asarray((np.rint(levels) if how.rounding == "nearest" else np.floor(levels)).astype(like.dtype))


def full_scale(dtype: np.dtype[Any]) -> float:
    """Return the value of white: 255, 65535, or 1 for floats."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def image_key(degraded: NDArray[Any]) -> int:
    """Return the noise's key of an image, a function of its pixels: neither order nor neighbours change it."""
    return zlib.crc32(degraded.tobytes())
