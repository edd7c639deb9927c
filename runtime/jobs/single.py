"""`restore_image`: one image in, whatever it is held in, and its result; conversions of images are here alone."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image as Pillow
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidImage, InvalidOption, RestorationFailed
from bfr.runtime.faces.geometry import Face
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.paste import to_grey
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import MAX_PIXELS, Image, decode_image, read_image
from bfr.runtime.images.encode import QUALITY, encode_image, write_image
from bfr.runtime.jobs.pictures import side_by_side
from bfr.runtime.restore.batch import Restored
from bfr.runtime.restore.restorer import DEFAULT_SEED, Restorer

_KINDS = "a path, bytes of an image file, a PIL image, a NumPy array or a PyTorch tensor"
_AS_TIFF = ("CMYK", "LAB", "YCbCr")  # modes of Pillow that a PNG cannot hold
_NOT_HELD = ("F", "HSV", "RGBX", "RGBa", "La", "PA")


@dataclass(frozen=True, slots=True, eq=False)
class RestoredImage:
    """A restored image, shown by notebooks.

    Attributes:
        pixels: (H, W, 3) RGB; uint8 or uint16, or float32 in [0, 1] where floats were given.
        faces: Those that were restored, left to right; none of an aligned face.
        source: The image that was given.
    """

    pixels: NDArray[Any]
    faces: tuple[Face, ...]
    source: Image

    def save(self, path: str | Path, *, quality: int = QUALITY, metadata: bool = True) -> Path:
        """Write it in the format of the suffix, replacing a file of that name; returns the path.

        What the source says beside its pixels is kept, unless `metadata` is false. Raises InvalidOption, WriteFailed.
        """
        write_image(Path(path), self._whole(self.pixels), like=self.source, quality=quality, metadata=metadata)
        return Path(path)

    def compare(self) -> NDArray[Any]:
        """Before and after side by side: (H, 2W and a white gap, 3) RGB uint8 or uint16."""
        return side_by_side(self.source.pixels, self._whole(self.pixels))

    def to_pil(self) -> Pillow.Image:
        """The result as a PIL image of 8 bits."""
        pixels = self._whole(self.pixels)
        return Pillow.fromarray(pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8))

    def _repr_png_(self) -> bytes:
        return encode_image(self._whole(self.pixels), ".png")

    def _whole(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return np.rint(pixels * 65535).astype(np.uint16) if pixels.dtype == np.float32 else pixels


def restore_image(
    image: Any,
    *,
    aligned: bool = False,
    restorer: Restorer | None = None,
    photo: PhotoOptions | None = None,
    seed: int = DEFAULT_SEED,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> RestoredImage:
    """Restore one image: all faces of a photograph, or with `aligned` the one face that it is.

    Args:
        image: What `as_image` takes.
        aligned: The image is an aligned face and nothing else.
        restorer: One that is open, for many images; without it one is opened for this image.
        photo: How faces of a photograph are found and pasted.
        seed: Of the noise, 0 .. 2**32 - 1.
        max_pixels: Of files; larger ones are refused.
        options: Of `Restorer.open`: bundle, preset, backend, precision, steps and so on.

    Returns:
        The result, as large as the image but for `PhotoOptions.upscale`.

    Raises:
        BfrError: Its text says how to mend it.
    """
    if restorer is not None and options:
        raise InvalidOption(f"the restorer is open already: give {', '.join(options)} to Restorer.open")
    if aligned and photo is not None:
        raise InvalidOption("photo is for photographs, the image is an aligned face: leave out photo or aligned")
    source = as_image(image, max_pixels=max_pixels)
    floats = getattr(image, "dtype", None) is not None and "float" in str(image.dtype)
    if restorer is None:
        with Restorer.open(**options) as opened:
            pixels, faces = _restored(opened, source, photo, seed, aligned=aligned)
    else:
        pixels, faces = _restored(restorer, source, photo, seed, aligned=aligned)
    if floats:
        pixels = pixels.astype(np.float32) / np.float32(65535)
    return RestoredImage(pixels, faces, source)


def _restored(
    restorer: Restorer, image: Image, photo: PhotoOptions | None, seed: int, *, aligned: bool
) -> tuple[NDArray[Any], tuple[Face, ...]]:
    if aligned:
        (pixels,) = restorer.restore([image.pixels], seed=seed)
        return to_grey(pixels) if image.grey else pixels, ()
    editor = PhotoRestorer(restorer, photo)
    faces = editor.align(image.pixels)
    results: list[Restored] = restorer.run([face.crop for face in faces if not face.left], seed=seed)
    made = editor.paste(image, faces, results)
    if made.errors:
        raise RestorationFailed(f"{len(made.errors)} of {len(results)} faces failed: {made.errors[0]}")
    return made.pixels, made.faces


def as_image(image: Any, *, max_pixels: int = MAX_PIXELS) -> Image:
    """The image that something holds, upright, (H, W, 3) uint8 or uint16 RGB.

    Args:
        image: A path; the bytes of a file; a PIL image, turned by its EXIF orientation and converted from its profile;
            a NumPy array, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a PyTorch tensor, (C, H, W) or (1, C, H, W) of 1,
            3 or 4 channels. Arrays and tensors are uint8, uint16, or floats in [0, 1], which become 16 bits.
        max_pixels: Of files; larger ones are refused.

    Raises:
        InputNotFound: There is no such file.
        InvalidImage: It is nothing of these, or damaged.
    """
    if isinstance(image, str | Path):
        return read_image(Path(image), max_pixels=max_pixels)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), max_pixels=max_pixels)
    if isinstance(image, Pillow.Image):
        return _from_pil(image, max_pixels)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "detach"):
        return _from_array(_from_tensor(image))
    kind = type(image).__name__
    several = "; it holds one image, call it for each" if isinstance(image, list | tuple) else ""
    raise InvalidImage(f"a {kind} was given: an image is {_KINDS}{several}")


def _from_pil(image: Pillow.Image, max_pixels: int) -> Image:
    """Through a file without loss, so that modes, profiles and metadata are taken as those of files are."""
    if image.mode in _NOT_HELD:
        raise InvalidImage(f"a PIL image of mode {image.mode} was given: use image.convert('RGB')")
    kept = {"icc_profile": image.info.get("icc_profile"), "exif": image.getexif().tobytes()}
    file = BytesIO()
    if image.mode in _AS_TIFF:
        image.save(file, "TIFF", icc_profile=kept["icc_profile"])
    else:
        image.save(file, "PNG", compress_level=0, **{name: value for name, value in kept.items() if value})
    return decode_image(file.getvalue(), name="the PIL image", max_pixels=max_pixels)


def _from_tensor(tensor: Any) -> NDArray[Any]:
    if tensor.ndim == 4 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise InvalidImage(
            f"a tensor of shape {tuple(tensor.shape)} was given: one image is (C, H, W) of 1, 3 or 4 channels"
        )
    if tensor.is_floating_point():
        tensor = tensor.float()
    pixels: NDArray[Any] = tensor.detach().cpu().numpy().transpose(1, 2, 0)
    return pixels


def _from_array(array: NDArray[Any]) -> Image:
    pixels = array[..., None] if array.ndim == 2 else array
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise InvalidImage(
            f"an array of shape {array.shape} was given: one image is (H, W, 3) RGB, (H, W, 4) or (H, W)"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN too
            raise InvalidImage(f"floats from {pixels.min():g} to {pixels.max():g} were given: scale them to [0, 1]")
        pixels = np.rint(pixels.astype(np.float64) * 65535).astype(np.uint16)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise InvalidImage(f"an array of {array.dtype} was given: uint8, uint16, or floats in [0, 1] are needed")
    grey, colours = pixels.shape[2] == 1, pixels[..., :3]
    rgb = np.repeat(colours, 3, axis=2) if grey else np.ascontiguousarray(colours)
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Image(rgb, alpha=alpha, grey=grey)
