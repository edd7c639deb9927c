"""Encode one image: RGB becomes a PNG, JPEG or WebP with its source's alpha, depth, grey, profile and EXIF."""

import logging
import re
from io import BytesIO
from pathlib import Path
from zlib import Z_RLE, compress

import numpy as np
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import Image, Pixels, resize
from bfr.runtime.images.metadata import EXIF_PREFIX, clean_exif, png_chunk

_BEGINS = {".png": rb"\x89PNG\r\n\x1a\n", ".jpg": rb"\xff\xd8\xff", ".webp": rb"RIFF....WEBP"}
_LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
_LONGEST_JPEG_EXIF = 65_533 - len(EXIF_PREFIX)
_log = logging.getLogger(__name__)


def same_suffix(path: Path) -> str:
    """The suffix of a result in the format of its source: .jpg, .png or .webp; .png for all that is not written."""
    suffix = path.suffix.lower()
    return {".jpeg": ".jpg"}.get(suffix, suffix) if suffix in (".jpg", ".jpeg", ".webp") else ".png"


def format_of(data: bytes) -> str | None:
    """.png, .jpg or .webp, by the first bytes of an image file; None for all that is not written."""
    return next((suffix for suffix, begin in _BEGINS.items() if re.match(begin, data[:12], re.DOTALL)), None)


def write_image(
    path: Path, pixels: Pixels, *, like: Image | None = None, quality: int = 95, metadata: bool = True
) -> None:
    """Write an image, whole or not at all, in the format of the suffix; see `encode_image`. Raises WriteFailed."""
    write_bytes(path, encode_image(pixels, path.suffix, like=like, quality=quality, metadata=metadata))


def encode_image(
    pixels: Pixels, suffix: str, *, like: Image | None = None, quality: int = 95, metadata: bool = True
) -> bytes:
    """Encode (H, W, 3) uint8 or uint16 RGB as .png, .jpg, .jpeg or .webp; `quality` 1 to 100 is of the last three.

    With `like`, the image that they come from, a PNG gets its bit depth and alpha back, a WebP its alpha; alpha of
    another size is resized. Of a grey source, pixels that are still grey are stored as grey where alpha allows it.
    Its EXIF is written with the size of `pixels`, unless it is too long for a JPEG, which is logged. Without `metadata`
    nothing is written but pixels and the profile that they are in.
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
    exif = _exif(like, (width, height), suffix, icc) if metadata and like is not None else b""
    if deep:
        return _png_16(pixels, alpha, grey, icc, exif)
    image = Pillow.fromarray(_stacked(pixels, alpha, grey))
    stream = BytesIO()
    if suffix == ".png":
        # On photographs runs alone are three to five times as fast as all of deflate, and 4 % larger at most.
        image.save(stream, "PNG", compress_level=1, compress_type=Z_RLE, icc_profile=icc, exif=exif)
    elif suffix == ".webp":
        # exact: colour below alpha 0 stays
        image.save(stream, "WEBP", quality=quality, exact=True, icc_profile=icc, exif=exif)
    else:
        image.save(stream, "JPEG", quality=quality, subsampling=0, icc_profile=icc, exif=exif)
    return stream.getvalue()


def _exif(like: Image, size: tuple[int, int], suffix: str, icc: bytes | None) -> bytes:
    try:
        exif = like.exif and clean_exif(like.exif, size, srgb=icc is None)
    except ValueError as error:  # not from a file of ours
        _log.warning("EXIF data are broken and left out: %s", error)
        return b""
    if not exif:
        return b""
    if suffix not in (".jpg", ".jpeg"):
        return exif
    if len(exif) > _LONGEST_JPEG_EXIF:
        _log.warning(
            "EXIF data of %d bytes do not fit into a JPEG and are left out: .png or .webp holds them", len(exif)
        )
        return b""
    return EXIF_PREFIX + exif


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


def _stacked(pixels: Pixels, alpha: Pixels | None, grey: bool) -> Pixels:
    """(H, W), (H, W, 2), (H, W, 3) or (H, W, 4), without a copy where there is no alpha."""
    if alpha is None:
        return pixels[..., 0] if grey else pixels
    return np.dstack([pixels[..., :1] if grey else pixels, alpha])


def _png_16(pixels: Pixels, alpha: Pixels | None, grey: bool, icc: bytes | None, exif: bytes) -> bytes:
    import cv2

    if alpha is not None:
        samples = np.dstack([pixels[..., ::-1], alpha])
    else:
        samples = pixels[..., 0] if grey else pixels[..., ::-1]
    png = cv2.imencode(".png", np.ascontiguousarray(samples))[1].tobytes()
    # OpenCV writes neither profile nor EXIF; both may stand after IHDR.
    profile = b"" if icc is None else png_chunk(b"iCCP", b"ICC profile\0\0" + compress(icc))
    return png[:33] + profile + (png_chunk(b"eXIf", exif) if exif else b"") + png[33:]
