"""Encode one image: RGB becomes a PNG, JPEG or WebP that keeps its source's alpha, bit depth, grey and profile."""

from io import BytesIO
from pathlib import Path
from zlib import compress

import numpy as np
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.image import Image, Pixels, png_chunk, resize

_LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}


def write_image(path: Path, pixels: Pixels, *, like: Image | None = None, quality: int = 95) -> None:
    """Write an image, whole or not at all, in the format of the suffix; see `encode_image`. Raises WriteFailed."""
    write_bytes(path, encode_image(pixels, path.suffix, like=like, quality=quality))


def encode_image(pixels: Pixels, suffix: str, *, like: Image | None = None, quality: int = 95) -> bytes:
    """Encode (H, W, 3) uint8 or uint16 RGB as .png, .jpg, .jpeg or .webp; `quality` 1 to 100 is of the last three.

    With `like`, the image that they come from, a PNG gets its bit depth and alpha back, a WebP its alpha; alpha of
    another size is resized. Of a grey source, pixels that are still grey are stored as grey where alpha allows it.
    Raises InvalidOption for another suffix, a quality out of range, or a side too long for the format.
    """
    suffix = suffix.lower()
    if suffix not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InvalidOption(f"images are not written as {suffix or 'a name without suffix'!r}: use .png, .jpg or .webp")
    if not 1 <= quality <= 100:
        raise InvalidOption(f"quality is {quality}: choose between 1 and 100")
    height, width = pixels.shape[:2]
    if max(height, width) > (longest := _LONGEST_SIDE.get(suffix, height + width)):
        raise InvalidOption(f"{width} x {height} pixels do not fit into {suffix}, at most {longest} a side: use .png")
    deep = suffix == ".png" and (pixels if like is None else like.pixels).dtype == np.uint16
    dtype = np.uint16 if deep else np.uint8
    pixels = _to_depth(pixels, dtype)
    alpha = None
    if like is not None and like.alpha is not None and suffix in (".png", ".webp"):
        alpha = _to_depth(_resize_alpha(like.alpha, height, width), dtype)
    grey = like is not None and like.grey and bool((pixels == pixels[..., :1]).all())
    icc = None if like is None or grey else like.icc
    if deep:
        return _png_16(pixels, alpha, grey, icc)
    channels = [pixels[..., 0]] if grey else [pixels]
    stacked = np.dstack(channels if alpha is None else [*channels, alpha])
    image = Pillow.fromarray(stacked[..., 0] if stacked.shape[2] == 1 else stacked)
    stream = BytesIO()
    if suffix == ".png":
        image.save(stream, "PNG", icc_profile=icc)
    elif suffix == ".webp":
        image.save(stream, "WEBP", quality=quality, exact=True, icc_profile=icc)  # exact: colour below alpha 0 stays
    else:
        image.save(stream, "JPEG", quality=quality, subsampling=0, icc_profile=icc)
    return stream.getvalue()


def _to_depth(array: Pixels, dtype: type[np.uint8] | type[np.uint16]) -> Pixels:
    if array.dtype == dtype:
        return array
    if dtype == np.uint16:
        return array.astype(np.uint16) * np.uint16(257)
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _resize_alpha(alpha: Pixels, height: int, width: int) -> Pixels:
    if alpha.shape == (height, width):
        return alpha
    resized = resize(alpha[..., None].astype(np.float32), (width, height))[..., 0]
    return np.clip(np.rint(resized), 0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)


def _png_16(pixels: Pixels, alpha: Pixels | None, grey: bool, icc: bytes | None) -> bytes:
    import cv2

    if alpha is not None:
        samples = np.dstack([pixels[..., ::-1], alpha])
    else:
        samples = pixels[..., 0] if grey else pixels[..., ::-1]
    png = cv2.imencode(".png", np.ascontiguousarray(samples))[1].tobytes()
    if icc is None:
        return png
    # OpenCV writes no profile; its place is after IHDR.
    return png[:33] + png_chunk(b"iCCP", b"ICC profile\0\0" + compress(icc)) + png[33:]
