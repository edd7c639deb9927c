"""Encode one image: RGB becomes a PNG, JPEG or WebP with its source's alpha, depth, grey, profile and metadata."""

import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidImage, InvalidOption
from bfr.runtime.files import write_bytes
from bfr.runtime.images.decode import Image, Pixels
from bfr.runtime.images.exif import Density, clean_exif
from bfr.runtime.images.formats import BY_SUFFIX, WRITTEN, Format, check_sides
from bfr.runtime.images.metadata import Metadata, clean_xmp, photoshop_block
from bfr.runtime.images.png import PIXELS_AT, png_chunk, profile_chunk, raw_profile, text_chunk, xmp_chunk
from bfr.runtime.images.resize import resize

QUALITY = 95  # of lossy formats
_XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"  # before XMP in a JPEG
_JFIF = slice(2, 11)  # where libjpeg writes the marker, length and name of JFIF
_BEFORE = {"exif": 6, "xmp": len(_XMP_NAME), "iptc": 14 + 13, "comments": 0}  # bytes in front of and around each
_SAID = {"iptc": "IPTC data", "comments": "comments", "texts": "texts", "exif": "EXIF data", "xmp": "XMP data"}
_log = logging.getLogger(__name__)


def write_image(
    path: Path | str, pixels: Pixels, *, like: Image | None = None, quality: int = QUALITY, metadata: bool = True
) -> None:
    """Write an image, whole or not at all, in the format of the suffix, and log what the format cannot keep.

    See `encode_image`. Raises WriteFailed.
    """
    path = Path(path)
    data, notes = encode_noted(pixels, path.suffix, like=like, quality=quality, metadata=metadata)
    write_bytes(path, data)
    for note in notes:
        _log.warning("%s: %s", path, note)


def encode_image(
    pixels: Pixels, suffix: str, *, like: Image | None = None, quality: int = QUALITY, metadata: bool = True
) -> bytes:
    """Encode (H, W, 3) uint8 or uint16 RGB in the format of a suffix; `quality`, 1 to 100, is of lossy ones.

    With `like`, the image that they come from, a PNG gets its bit depth and alpha back, a WebP its alpha; alpha of
    another size is resized. In a JPEG, what is transparent becomes white. Of a grey source, pixels that are still grey
    are stored as grey where alpha allows it. Its metadata are written as far as the format can hold them, EXIF and XMP
    with the size of `pixels`. Without `metadata` nothing is written but pixels and the profile that they are in.

    Raises:
        InvalidImage: The pixels have another shape or type.
        InvalidOption: The suffix, the quality, or a side too long for the format.
    """
    return encode_noted(pixels, suffix, like=like, quality=quality, metadata=metadata)[0]


def encode_noted(
    pixels: Pixels, suffix: str, *, like: Image | None = None, quality: int = QUALITY, metadata: bool = True
) -> tuple[bytes, tuple[str, ...]]:
    """As `encode_image`, with what of `like` the format cannot keep: a sentence each."""
    suffix = suffix.lower()
    form = BY_SUFFIX.get(suffix)
    if form is None or form.options is None:
        offered = ", ".join(one.suffixes[0] for one in WRITTEN)
        raise InvalidOption(f"images are not written as {suffix or 'a name without suffix'!r}: use one of {offered}")
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InvalidImage(
            f"pixels of {pixels.dtype} and shape {pixels.shape} were given: (H, W, 3) of uint8 or uint16 are written; "
            "`save` of a result scales floats"
        )
    if not isinstance(quality, int | np.integer):
        raise InvalidOption(f"quality {quality!r} is not accepted: a whole number is needed")
    if not 1 <= quality <= 100:
        raise InvalidOption(f"quality is {quality}: choose between 1 and 100")
    height, width = pixels.shape[:2]
    check_sides(width, height, suffix)
    notes: list[str] = []
    deep = form.deep and (pixels if like is None else like.pixels).dtype == np.uint16
    if not deep and like is not None and like.pixels.dtype == np.uint16:
        notes.append(f"its 16 bits a sample become 8 in a {form.name}: .png keeps them")
    dtype = np.uint16 if deep else np.uint8
    pixels = _to_depth(pixels, dtype)
    alpha = None
    if like is not None and like.alpha is not None:
        alpha = _to_depth(_resize_alpha(like.alpha, height, width), dtype)
        if not form.alpha:
            if (alpha < np.iinfo(dtype).max).any():
                pixels = _on_white(pixels, alpha)
                notes.append(f"what is transparent becomes white in a {form.name}: .png and .webp keep alpha")
            alpha = None
    grey = like is not None and like.grey and bool((pixels == pixels[..., :1]).all())
    icc = None if like is None or grey else like.icc
    kept = Metadata()
    if metadata and like is not None:
        kept = _kept(like.metadata, (width, height), form, srgb=icc is None, notes=notes)
    stacked = _stacked(pixels, alpha, grey)
    quality_too = {"quality": int(quality)} if form.lossy else {}
    return _WRITERS.get(form.name, _pillow)(stacked, form, icc, kept, quality_too), tuple(notes)


def _kept(said: Metadata, size: tuple[int, int], form: Format, *, srgb: bool, notes: list[str]) -> Metadata:
    """What of the metadata a format can hold, with the size of the result; the rest becomes notes."""
    kept: dict[str, Any] = {name: getattr(said, name) for name in form.metadata}
    # WebP has the density in EXIF alone; PNG and JPEG have a place of their own.
    density = said.density if form.name not in _WRITERS else None
    cleaners: dict[str, Callable[[], bytes | None]] = {
        "exif": lambda: clean_exif(said.exif, size, srgb=srgb, density=density),
        "xmp": lambda: clean_xmp(said.xmp, size, srgb=srgb) if said.xmp else None,
    }
    for name, clean in cleaners.items():
        try:
            kept[name] = clean()
        except ValueError as error:  # not from a file of ours
            kept[name] = None
            notes.append(f"its {_SAID[name]} are broken and left out: {error}")
    for name, before in _BEFORE.items():
        parts = [one.encode() for one in kept.get(name) or ()] if name == "comments" else [kept.get(name) or b""]
        if form.longest_part is not None and any(before + len(part) > form.longest_part for part in parts):
            kept[name] = () if name == "comments" else None
            notes.append(f"its {_SAID[name]} do not fit into a {form.name} and are left out: .png holds them")
    for name in ("iptc", "comments", "texts"):
        if getattr(said, name) and name not in form.metadata:
            named = f" ({', '.join(said.texts)[:80]})" if name == "texts" else ""
            notes.append(f"its {_SAID[name]}{named} are left out, which a {form.name} cannot hold: .png keeps them")
    return Metadata(**kept)


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


def _on_white(pixels: Pixels, alpha: Pixels) -> Pixels:
    """(H, W, 3) and (H, W) of 8 bits: the picture on white paper, in the values that viewers blend."""
    weight = alpha[..., None].astype(np.uint16)
    return ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def _stacked(pixels: Pixels, alpha: Pixels | None, grey: bool) -> Pixels:
    """(H, W), (H, W, 2), (H, W, 3) or (H, W, 4), without a copy if there is no alpha."""
    if alpha is None:
        return pixels[..., 0] if grey else pixels
    return np.dstack([pixels[..., :1] if grey else pixels, alpha])


def _pillow(samples: Pixels, form: Format, icc: bytes | None, said: Metadata, quality: dict[str, int]) -> bytes:
    """As Pillow writes it, with its arguments for metadata."""
    named = {"exif": said.exif, "xmp": said.xmp}
    return _saved(samples, form, icc_profile=icc, **{name: one for name, one in named.items() if one}, **quality)


def _saved(samples: Pixels, form: Format, **options: Any) -> bytes:
    stream = BytesIO()
    Pillow.fromarray(samples).save(stream, form.name, **form.options or {}, **options)
    return stream.getvalue()


def _jpeg(samples: Pixels, form: Format, icc: bytes | None, said: Metadata, quality: dict[str, int]) -> bytes:
    exif = form.exif_prefix + said.exif if said.exif else b""
    extra = b"".join(
        [
            _segment(0xE1, _XMP_NAME + said.xmp) if said.xmp else b"",
            _segment(0xED, b"Photoshop 3.0\0" + photoshop_block(said.iptc)) if said.iptc else b"",
            *(_segment(0xFE, comment.encode()) for comment in said.comments),
        ]
    )
    data = bytearray(_saved(samples, form, icc_profile=icc, exif=exif, extra=extra, **quality))
    if said.density and data[_JFIF] == b"\xff\xe0\0\x10JFIF\0":
        x, y = (min(65_535, max(1, round(value))) for value in (said.density.x, said.density.y))
        data[13:18] = pack(">BHH", said.density.unit, x, y)
    return bytes(data)


def _segment(marker: int, body: bytes) -> bytes:
    return pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _png(samples: Pixels, form: Format, icc: bytes | None, said: Metadata, _quality: dict[str, int]) -> bytes:
    data = _png_16(samples) if samples.dtype == np.uint16 else _saved(samples, form)
    chunks = [
        profile_chunk(icc) if icc else b"",
        _density_chunk(said.density) if said.density else b"",
        png_chunk(b"eXIf", said.exif) if said.exif else b"",
        xmp_chunk(said.xmp) if said.xmp else b"",
        raw_profile("iptc", photoshop_block(said.iptc)) if said.iptc else b"",
        text_chunk("Comment", "\n".join(said.comments)) if said.comments else b"",  # a key has one text
        *(text_chunk(key, text) for key, text in said.texts.items()),
    ]
    return data[:PIXELS_AT] + b"".join(chunks) + data[PIXELS_AT:]


def _density_chunk(density: Density) -> bytes:
    """Pixels a metre, or the proportion of a pixel."""
    metres = {0: 1.0, 1: 1 / 0.0254, 2: 100.0}[density.unit]
    x, y = (max(1, round(value * metres)) for value in (density.x, density.y))
    return png_chunk(b"pHYs", pack(">IIB", x, y, density.unit > 0))


def _png_16(samples: Pixels) -> bytes:
    """(H, W), (H, W, 2), (H, W, 3) or (H, W, 4) uint16."""
    import cv2

    if samples.ndim == 3:  # OpenCV writes BGR, and no grey with alpha
        order = [0, 0, 0, 1] if samples.shape[2] == 2 else [2, 1, 0, 3][: samples.shape[2]]
        samples = samples[..., order]
    return bytes(cv2.imencode(".png", np.ascontiguousarray(samples))[1].tobytes())


_WRITERS: dict[str, Callable[[Pixels, Format, bytes | None, Metadata, dict[str, int]], bytes]] = {
    "PNG": _png,
    "JPEG": _jpeg,
}
