"""Encode one image: RGB becomes a PNG, JPEG or WebP with its source's alpha, depth, grey, profile and EXIF."""

import logging
from io import BytesIO
from pathlib import Path
from zlib import compress

import numpy as np
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import Image, Pixels
from bfr.runtime.images.formats import BY_SUFFIX, WRITTEN, Format
from bfr.runtime.images.metadata import clean_exif, png_chunk
from bfr.runtime.restore.pixels import resize

QUALITY = 95  # of lossy formats
_log = logging.getLogger(__name__)


def write_image(
    path: Path, pixels: Pixels, *, like: Image | None = None, quality: int = QUALITY, metadata: bool = True
) -> None:
    """Write an image, whole or not at all, in the format of the suffix; see `encode_image`. Raises WriteFailed."""
    write_bytes(path, encode_image(pixels, path.suffix, like=like, quality=quality, metadata=metadata))


def encode_image(
    pixels: Pixels, suffix: str, *, like: Image | None = None, quality: int = QUALITY, metadata: bool = True
) -> bytes:
    """Encode (H, W, 3) uint8 or uint16 RGB in the format of a suffix; `quality`, 1 to 100, is of lossy ones.

    With `like`, the image that they come from, a PNG gets its bit depth and alpha back, a WebP its alpha; alpha of
    another size is resized. Of a grey source, pixels that are still grey are stored as grey where alpha allows it.
    Its EXIF is written with the size of `pixels`, unless it is too long for a JPEG, which is logged. Without `metadata`
    nothing is written but pixels and the profile that they are in.
    Raises InvalidOption for another suffix, a quality out of range, or a side too long for the format.
    """
    suffix = suffix.lower()
    form = BY_SUFFIX.get(suffix)
    if form is None or form.options is None:
        offered = ", ".join(one.suffixes[0] for one in WRITTEN)
        raise InvalidOption(f"images are not written as {suffix or 'a name without suffix'!r}: use one of {offered}")
    if not 1 <= quality <= 100:
        raise InvalidOption(f"quality is {quality}: choose between 1 and 100")
    height, width = pixels.shape[:2]
    if max(height, width) > (longest := form.longest_side or height + width):
        raise InvalidOption(f"{width} x {height} pixels do not fit into {suffix}, at most {longest} a side: use .png")
    deep = form.deep and (pixels if like is None else like.pixels).dtype == np.uint16
    dtype = np.uint16 if deep else np.uint8
    pixels = _to_depth(pixels, dtype)
    alpha = None
    if like is not None and like.alpha is not None and form.alpha:
        alpha = _to_depth(_resize_alpha(like.alpha, height, width), dtype)
    grey = like is not None and like.grey and bool((pixels == pixels[..., :1]).all())
    icc = None if like is None or grey else like.icc
    exif = _exif(like, (width, height), form, icc) if metadata and like is not None else b""
    if deep:
        return _png_16(pixels, alpha, grey, icc, exif)
    stream = BytesIO()
    chosen = {**form.options, **({"quality": quality} if form.lossy else {})}
    Pillow.fromarray(_stacked(pixels, alpha, grey)).save(stream, form.name, icc_profile=icc, exif=exif, **chosen)
    return stream.getvalue()


def _exif(like: Image, size: tuple[int, int], form: Format, icc: bytes | None) -> bytes:
    try:
        exif = like.exif and clean_exif(like.exif, size, srgb=icc is None)
    except ValueError as error:  # not from a file of ours
        _log.warning("EXIF data are broken and left out: %s", error)
        return b""
    if not exif:
        return b""
    if form.longest_exif is not None and len(exif) > form.longest_exif:
        _log.warning(
            "EXIF data of %d bytes do not fit into a %s and are left out: .png or .webp holds them",
            len(exif),
            form.name,
        )
        return b""
    return form.exif_prefix + exif


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
