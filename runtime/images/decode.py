"""Decode one image: any file that is allowed becomes RGB, with its alpha and bit depth (`encode.py` writes them back).

Pillow decodes all but 16-bit colour, of which it keeps 8 bits only: that is OpenCV's, checked against Pillow's 8 bits.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from struct import unpack_from
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from bfr.runtime.errors import InputNotFound, InvalidImage
from bfr.runtime.images.formats import NAMES, format_of
from bfr.runtime.images.metadata import bare_png, clean_exif

Pixels = NDArray[np.unsignedinteger]  # uint8 or uint16
MAX_PIXELS = 64_000_000
_ORIENTATION, _BITS, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES = 0x0112, 258, 262, 284, 338
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A decoded image, upright (its EXIF orientation is applied).

    pixels: (H, W, 3) uint8 or uint16 RGB, full range; not premultiplied by alpha.
    alpha: (H, W) of the same type, or None where the file has none.
    grey: the file was greyscale; its three channels are equal.
    icc: the profile of a 16-bit colour image, whose pixels stay in it; None means sRGB, as all else is.
    exif: what `clean_exif` keeps of the file's EXIF, a TIFF structure without the prefix that JPEG puts before it; XMP,
    comments and other metadata are not carried, XMP because it may repeat the orientation.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    grey: bool = False
    icc: bytes | None = None
    exif: bytes | None = None


def header_size(source: Path | bytes) -> tuple[int, int] | None:
    """(width, height) in pixels that the header of an image file claims, as stored; nothing is decoded.

    Pillow's classes open a file by its header alone. They are called without `Pillow.open`, which warns about sizes
    that the caller refuses anyway.

    Returns:
        None for a file of no allowed format or that cannot be read, and for a header that is broken or claims no
        pixels.
    """
    try:
        if isinstance(source, bytes):
            return _size(BytesIO(source))
        if not source.is_file():  # a pipe would wait for ever
            return None
        with source.open("rb") as file:
            return _size(file)
    except (OSError, ValueError):  # a name of 300 characters, or with a NUL, is refused here
        return None


def _size(file: BinaryIO) -> tuple[int, int] | None:
    head = file.read(32)
    found = format_of(head)
    if found is None:
        return None
    if found.name == "WEBP":  # Pillow would read all of it, and allocate what it claims
        size = _webp_size(head)
    else:
        if found.name not in Pillow.OPEN:
            Pillow.init()
        file.seek(0)
        try:
            size = Pillow.OPEN[found.name][0](file, "").size
        except Exception:  # hostile bytes raise nearly anything; the decoder says what is wrong
            return None
    return size if size and min(size) > 0 else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    if len(head) < 30:
        return None
    match head[12:16]:
        case b"VP8X":  # less one, 24 bits each
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":  # less one, 14 bits each
            (bits,) = unpack_from("<I", head, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":  # 14 bits each, above which is a scale
            width, height = unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def byte_limit(max_pixels: int) -> int:
    """The bytes of 16-bit RGBA without compression and of metadata: no larger file is an image of so many pixels."""
    return 8 * max_pixels + (64 << 20)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read one image file; see `decode_image`. Raises InputNotFound, and InvalidImage naming the path."""
    limit = byte_limit(max_pixels)
    try:
        if not path.exists():
            raise InputNotFound(f"{path} does not exist: check the name")
        if not path.is_file():
            raise InvalidImage(f"{path} is not a file but a folder or device: name an image file")
        if (size := path.stat().st_size) > limit:
            raise InvalidImage(
                f"{path} has {size} bytes, more than the {limit} of an image of {max_pixels} pixels: make it smaller"
            )
        data = path.read_bytes()
    except InputNotFound:  # an OSError too
        raise
    except OSError as error:
        raise InvalidImage(f"{path} cannot be read ({error.strerror}): check its permissions and its disk") from error
    return decode_image(data, name=str(path), max_pixels=max_pixels)


def decode_image(data: bytes, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> Image:
    """Decode PNG, JPEG, WebP, BMP or TIFF bytes; of an animation or a stack of pages, the first.

    More than `max_pixels` pixels (and more than Pillow's own limit of 179 million) are refused from the header, before
    a decoder sees it. An 8-bit image is converted to sRGB by its ICC profile; a broken profile is logged and taken as
    sRGB. A 16-bit colour image stays in its profile, which is kept in `icc`; 16-bit grey is taken as sRGB grey. Broken
    EXIF is logged and left out.
    Raises InvalidImage, with `name` in its text.
    """
    if not data:
        raise InvalidImage(f"{name} is empty: copy or download it again")
    _limit(header_size(data), name, max_pixels)
    with _decoding(name):
        file = Pillow.open(BytesIO(data), formats=NAMES)
    _limit(file.size, name, max_pixels)
    with _decoding(name):
        if isinstance(file, TiffImageFile):  # a tile is decoded whole, whatever the picture shows of it
            tile = file.tag_v2.get(_TILE_WIDTH, 0), file.tag_v2.get(_TILE_HEIGHT, 0)
            _limit(tile, f"a tile of {name}", max_pixels)
        bits = _bits(file, data)
        file.load()
        # Read after loading: Pillow turns a TIFF while it loads, and takes its orientation away.
        orientation = _orientation(file, name)
        if bits > 16 or file.mode == "F":
            raise InvalidImage(f"{name} has {bits}-bit samples: save it with 8 or 16 bits")
        if bits == 16 and file.mode.startswith("I"):
            image = _grey_16(file)
        elif bits == 16 and file.mode in ("RGB", "RGBA", "RGBX"):
            image = _colour_16(file, data, name)
        else:
            image = _any_8(file, name)
    alpha = None if image.alpha is None else _upright(image.alpha, orientation)
    pixels = _upright(image.pixels, orientation)
    return replace(image, pixels=pixels, alpha=alpha, exif=_exif(file, data, name, pixels, image.icc))


def _limit(size: tuple[int, int] | None, name: str, max_pixels: int) -> None:
    if size and size[0] * size[1] > max_pixels:
        raise InvalidImage(
            f"{name} has {size[0]} x {size[1]} pixels, more than the limit of {max_pixels}: "
            f"make it smaller, or raise the limit if you trust it"
        )


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Hostile bytes make the decoders raise nearly anything; around their calls all of it is the file's fault."""
    try:
        yield
    except (InvalidImage, ImportError):
        raise
    except MemoryError as error:
        raise InvalidImage(f"{name} does not fit into memory: make it smaller, or free some memory") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"{name} is not an image of {', '.join(NAMES)}: convert it, whatever its suffix") from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise InvalidImage(f"{name} has more pixels than can be opened safely: make it smaller ({error})") from error
    except Exception as error:
        raise InvalidImage(
            f"{name} is damaged or truncated ({type(error).__name__}: {error}): copy or convert it again"
        ) from error


def _bits(file: Pillow.Image, data: bytes) -> int:
    if file.format == "PNG":
        if unpack_from(">4sII", data, 12) != (b"IHDR", *file.size):
            raise ValueError("its header is not its first chunk, or there are two")  # each decoder would take another
        return data[24]  # IHDR comes first: signature 8, length and name 8, width and height 8, bit depth
    if isinstance(file, TiffImageFile):
        return int(max(file.tag_v2.get(_BITS, (1,))))
    return 8


def _orientation(file: Pillow.Image, name: str) -> int:
    try:
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # a damaged EXIF block need not cost the photograph
        _log.warning("%s: its EXIF data are broken (%s), taken as upright", name, error)
        return 1


def _exif(file: Pillow.Image, data: bytes, name: str, upright: Pixels, icc: bytes | None) -> bytes | None:
    block = data if isinstance(file, TiffImageFile) else file.info.get("exif")
    if not isinstance(block, bytes):  # absent, or a text of that name in a PNG
        return None
    try:
        return clean_exif(block, (upright.shape[1], upright.shape[0]), srgb=icc is None)
    except ValueError as error:
        _log.warning("%s: its EXIF data are broken and left out: %s", name, error)
        return None


def _upright(array: Pixels, orientation: int) -> Pixels:
    """Apply EXIF orientation 1-8 (others: none) to (H, W[, 3])."""
    if orientation not in range(2, 9):
        return array
    import cv2  # three times as fast as NumPy here

    match orientation:
        case 2 | 4:
            turned = cv2.flip(array, 1 if orientation == 2 else 0)
        case 5 | 7:
            turned = cv2.transpose(array if orientation == 5 else cv2.rotate(array, cv2.ROTATE_180))
        case _:
            turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
            turned = cv2.rotate(array, turns[orientation])
    return cast(Pixels, turned)


def _samples(image: Pillow.Image) -> Pixels:
    """(H, W) or (H, W, C) uint8 of a loaded image. In strips: NumPy's own way holds two more copies on the way."""
    channels = len(image.getbands())
    samples = np.empty((image.height, image.width) + (channels,) * (channels > 1), np.uint8)
    rows = 1 + (1 << 18) // image.width
    for top in range(0, image.height, rows):
        strip = samples[top : top + rows]
        strip[...] = np.asarray(image.crop((0, top, image.width, top + len(strip))))
    return samples


def _any_8(file: Pillow.Image, name: str) -> Image:
    grey = file.mode in ("1", "L", "LA", "La")
    alpha = None
    icc = file.info.get("icc_profile")
    if file.has_transparency_data:
        file = file if file.mode == "RGBA" else file.convert("RGBA")
        alpha = _samples(file.getchannel("A"))
    colour = _to_srgb(file, icc, name) if icc else file
    rgb = colour.convert("L").convert("RGB") if grey else _to_rgb(colour)  # a profile may have tinted the grey
    return Image(_samples(rgb), alpha, grey)


def _to_rgb(file: Pillow.Image) -> Pillow.Image:
    return file if file.mode == "RGB" else file.convert("RGB")


def _to_srgb(file: Pillow.Image, icc: bytes, name: str) -> Pillow.Image:
    from PIL import ImageCms

    try:
        profile = ImageCms.getOpenProfile(BytesIO(icc))
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return _to_rgb(file)
        space = profile.profile.xcolor_space.strip()
        source = file if space == file.mode else file.convert({"GRAY": "L"}.get(space, "RGB"))
        converted = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        _log.warning("%s: its colour profile is broken (%s), taken as sRGB", name, str(error).strip())
        return _to_rgb(file)
    return cast(Pillow.Image, converted)  # None only when converting in place


def _grey_16(file: Pillow.Image) -> Image:
    grey = np.clip(np.asarray(file), 0, 65_535).astype(np.uint16)
    alpha = None
    if isinstance(transparent := file.info.get("transparency"), int):
        alpha = np.where(grey == transparent, 0, 65_535).astype(np.uint16)
    if isinstance(file, TiffImageFile) and file.tag_v2.get(_PHOTOMETRIC) == 0:
        grey = 65_535 - grey  # white is 0; Pillow inverts 8 bits only
    return Image(np.dstack([grey, grey, grey]), alpha, grey=True)


def _colour_16(file: Pillow.Image, data: bytes, name: str) -> Image:
    import cv2

    tags = file.tag_v2 if isinstance(file, TiffImageFile) else {}
    # UNCHANGED keeps 16 bits and alpha; a TIFF is turned upright by both decoders.
    bare = bare_png(data) if file.format == "PNG" else data
    decoded = cv2.imdecode(np.frombuffer(bare, np.uint8), cv2.IMREAD_UNCHANGED)
    seen = np.asarray(file)  # by Pillow: (H, W, 3 or 4) uint8, the high bytes
    # OpenCV mixes up the planes of a TIFF that stores them apart.
    if decoded is None or decoded.dtype != np.uint16 or decoded.shape[:2] != seen.shape[:2] or tags.get(_PLANAR) == 2:
        raise InvalidImage(f"{name} is a 16-bit {file.format} of a rare kind: save it as PNG")
    samples = decoded.astype(np.uint16, copy=False)
    pixels = samples[..., 2::-1].copy()
    alpha = samples[..., 3].copy() if file.has_transparency_data and samples.shape[2] == 4 else None
    if alpha is not None and 1 in np.atleast_1d(tags.get(_EXTRA_SAMPLES, 0)):  # premultiplied; Pillow undid it
        opaque = np.maximum(alpha, 1)[..., None].astype(np.float32)
        pixels = np.minimum(np.rint(pixels * (65_535 / opaque)), 65_535).astype(np.uint16)
    elif ((pixels >> 8) != seen[..., :3]).any():
        raise InvalidImage(f"{name} is a 16-bit {file.format} that two decoders read differently: save it as PNG")
    grey = file.format == "PNG" and data[25] == 4  # IHDR's colour type: grey with alpha
    icc = file.info.get("icc_profile")
    return Image(pixels, alpha, grey, None if grey or not icc or icc[16:20] != b"RGB " else icc)
