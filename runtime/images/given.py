"""Convert an image given as a path, the bytes of a file, a PIL image, an array or a tensor."""

import re
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from os import PathLike, fsdecode
from pathlib import Path
from struct import error, pack
from typing import Any

import numpy as np
import PIL.Image as Pillow
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngInfo

from bfr.runtime.errors import InputNotFound, InvalidImage
from bfr.runtime.images.colour import to_srgb
from bfr.runtime.images.decode import MAX_PIXELS, Image, decode_image, read_image
from bfr.runtime.images.exif import Density
from bfr.runtime.images.png import XMP_KEY

_KINDS = "a path, bytes of an image file, a PIL image, a NumPy array or a PyTorch tensor"
# Modes of Pillow that a PNG cannot hold.
_IN_OTHER_COLOURS = ("CMYK", "LAB", "YCbCr")
_AS_ANOTHER = {"RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "PA": "RGBA", "HSV": "RGB", "I;16L": "I;16", "I;16N": "I;16"}


def as_image(image: Any, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Convert to an upright `Image`, (H, W, 3) uint8 or uint16 RGB.

    Args:
        image: A path; the bytes of a file; a PIL image, turned by its EXIF orientation and converted from its profile;
            a NumPy array, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a PyTorch tensor, (C, H, W) or (1, C, H, W) of 1,
            3 or 4 channels; or such an `Image`. Arrays and tensors are uint8, uint16, or floats in [0, 1], which become
            16 bits. They are copied, an `Image` is not.
        max_pixels: Larger files and PIL images are refused.

    Raises:
        InputNotFound: There is no such file.
        InvalidImage: `image` is none of these, or damaged.
    """
    if isinstance(image, Image):
        return image
    if isinstance(image, str | PathLike):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path := fsdecode(image)):
            raise InputNotFound(f"{path} is an address: download it first, and give its bytes")
        return read_image(Path(path), max_pixels=max_pixels)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), max_pixels=max_pixels)
    if isinstance(image, Pillow.Image):
        return _from_pil(image, max_pixels)
    if isinstance(image, np.ndarray):
        return _from_array(plain_array(image))
    if (pixels := tensor_pixels(image)) is not None:
        return _from_array(pixels)
    kind = f"an object of type {type(image).__name__}"
    several = "; it holds one image, call it for each" if isinstance(image, list | tuple) else ""
    raise InvalidImage(f"{kind} was given: an image is {_KINDS}{several}")


def _from_pil(image: Pillow.Image, max_pixels: int) -> Image:
    """Through a file without loss, so that modes, profiles and metadata are taken as those of files are."""
    if image.mode in ("F", "I"):
        raise InvalidImage(f"a PIL image of mode {image.mode} was given, 32-bit samples: scale it to 8 or 16 bits")
    icc, exif = image.info.get("icc_profile"), b""
    icc = icc if isinstance(icc, bytes) else None
    notes: list[str] = []
    file = BytesIO()
    try:
        image.load()  # turns a TIFF, and takes its orientation away
        try:
            exif = image.getexif().tobytes()
        except Exception:  # whatever Pillow raises of EXIF data that are broken, or were set to what they cannot hold
            notes.append("its EXIF data are broken and left out")
        held = image
        if image.mode in _IN_OTHER_COLOURS:
            try:
                held = to_srgb(image, icc) if icc else image.convert("RGB")
            except ValueError as error:
                notes.append(f"its colour profile is broken, and it is taken as sRGB: {error}")
                held = image.convert("RGB")
            icc = None
        elif image.mode in _AS_ANOTHER:
            whole = image.convert("I") if image.mode[0] == "I" else image  # in one step Pillow clips 16 bits to 8
            held = whole.convert(_AS_ANOTHER[image.mode])
        held.save(file, "PNG", compress_level=0, exif=exif, icc_profile=icc, **_beside(image))
    except Exception as error:  # it is closed, empty or cut off, or its mode is rare
        raise InvalidImage(
            f"the PIL image of mode {image.mode} cannot be read ({error}): open it again, or convert it to RGB"
        ) from error
    found = decode_image(file.getvalue(), name="the PIL image", max_pixels=max_pixels)
    return replace(found, notes=(*found.notes, *notes))


def _beside(image: Pillow.Image) -> dict[str, Any]:
    """The density, XMP packet, comment, gAMA and cHRM of a PIL image, as arguments for a PNG."""
    texts, density = PngInfo(), None
    for chunk, name in ((b"gAMA", "gamma"), (b"cHRM", "chromaticity")):
        if isinstance(value := image.info.get(name), float | tuple) and "srgb" not in image.info:
            with suppress(TypeError, ValueError, ArithmeticError, error):  # anything may stand there
                numbers = [round(number * 100_000) for number in np.atleast_1d(value)]
                texts.add(chunk, pack(f">{len(numbers)}I", *numbers))
    for key, name in ((XMP_KEY, "xmp"), ("Comment", "comment")):
        if isinstance(value := image.info.get(name), str | bytes):
            text = value if isinstance(value, str) else value.decode(errors="replace")
            texts.add_itxt(key, text.encode(errors="replace"))
    with suppress(TypeError, ValueError, ArithmeticError):  # anything may stand there
        density = Density.of([float(dots) for dots in image.info.get("dpi", ())], 1)
    return {"pnginfo": texts, "dpi": density and (density.x, density.y)}


def tensor_pixels(tensor: Any) -> NDArray[Any] | None:
    """Return the (H, W, C) array of a PyTorch tensor, (C, H, W) or (1, C, H, W); None for anything else.

    Raises InvalidImage for another shape.
    """
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(tensor).__mro__}
    if "torch.Tensor" not in kinds:  # and torch need not be installed
        return None
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise InvalidImage(
            f"a tensor of shape {tuple(tensor.shape)} was given: one image is (C, H, W) of 1, 3 or 4 channels"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()
    try:
        pixels: NDArray[Any] = tensor.numpy(force=True).transpose(1, 2, 0)
    except (TypeError, NotImplementedError) as error:  # sparse, quantised, or on the device meta
        raise InvalidImage(f"a tensor without plain numbers was given: {error}") from error
    return pixels


def plain_array(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in the machine's byte order, without a subclass. Raises InvalidImage for a masked one."""
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidImage("a masked array was given: fill its holes first, as array.filled(0)")
    return np.asarray(array, array.dtype.newbyteorder("="))  # a matrix cannot have a third axis


def _from_array(array: NDArray[Any]) -> Image:
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise InvalidImage(
            f"an array of shape {array.shape} was given: one image is (H, W, 3) RGB, (H, W, 4) or (H, W)"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6):  # rounding may leave [0, 1]; NaN is refused too
            raise InvalidImage(f"floats from {pixels.min():g} to {pixels.max():g} were given: scale them to [0, 1]")
        pixels = np.rint(pixels.astype(np.float64) * 65535).astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InvalidImage(f"an array of {array.dtype} was given: uint8, uint16, or floats in [0, 1] are needed")
    grey, colours = pixels.shape[2] == 1, pixels[..., :3]
    rgb = np.repeat(colours, 3, axis=2) if grey else np.array(colours, order="C")  # a copy: the caller's may change
    alpha = np.array(pixels[..., 3], order="C") if pixels.shape[2] == 4 else None
    return Image(rgb, alpha=alpha, grey=grey)
