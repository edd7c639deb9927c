"""Decode one image: any file that is allowed becomes RGB, with alpha and bit depth; `encode.py` writes them back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from struct import unpack_from
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from bfr.runtime.errors import InputNotFound, InvalidImage
from bfr.runtime.images.colour import png_profile, to_srgb
from bfr.runtime.images.deep import colour_16, grey_16, grey_to_srgb
from bfr.runtime.images.formats import NAMES, Format, format_of
from bfr.runtime.images.headers import MOST_RUNS, check_parts, check_size, check_tags, header_size, read_tags
from bfr.runtime.images.metadata import Metadata, read_metadata
from bfr.runtime.images.png import read_raw_profile, settle_colours
from bfr.runtime.images.tiff import check_kind, is_grey, plain_tiff, sample_bits

Pixels = NDArray[np.unsignedinteger]  # uint8 or uint16
MAX_PIXELS = 64_000_000
NEUTRAL = 2  # levels: compressing grey as colour leaves as much
_ORIENTATION = 0x0112
_RUN_LENGTHS = (1, 2)  # compressions of a BMP
# EXIF orientation: whether the image is transposed, and how OpenCV then flips it.
_TURNS = {2: (False, 1), 3: (False, -1), 4: (False, 0), 5: (True, None), 6: (True, 1), 7: (True, -1), 8: (True, 0)}
_PAGES = {"PNG": "frames", "WEBP": "frames", "TIFF": "pages"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A decoded image, upright (its EXIF orientation is applied).

    Attributes:
        pixels: (H, W, 3) uint8 or uint16 RGB, full range; not premultiplied by alpha.
        alpha: (H, W) of the same type, or None if the file has none.
        grey: Whether the file was greyscale; its three channels are equal then.
        icc: The profile of a 16-bit colour image, whose pixels stay in that profile; None for sRGB, as for all others.
        metadata: The file's metadata, see `Metadata`.
        notes: A sentence for each part of the file that was dropped, reduced or reinterpreted.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    grey: bool = False
    icc: bytes | None = None
    metadata: Metadata = field(default_factory=Metadata)
    notes: tuple[str, ...] = ()

    @property
    def colourless(self) -> bool:
        """Whether it shows no colour: it was greyscale, or its channels are equal but for NEUTRAL levels of 255."""
        if self.grey:
            return True
        import cv2  # 17 times as fast as NumPy here

        most = NEUTRAL * (np.iinfo(self.pixels.dtype).max // 255)
        for rows in (self.pixels[::64], self.pixels):  # a few rows show most colours
            red, green, blue = cv2.split(rows)
            if max(cv2.absdiff(red, green).max(), cv2.absdiff(blue, green).max()) > most:
                return False
        return True


def byte_limit(max_pixels: int) -> int:
    """Return the most bytes of a file of so many pixels: 16-bit RGBA without compression, and metadata."""
    return 8 * max_pixels + (64 << 20)


def read_image(path: Path | str, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read one image file and log its notes; see `decode_image`. Raises InputNotFound and InvalidImage."""
    image = decode_image(read_file(Path(path), max_pixels=max_pixels), name=str(path), max_pixels=max_pixels)
    for note in image.notes:
        _log.warning("%s: %s", path, note)
    return image


def read_file(path: Path, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Read an image file. Raises InputNotFound, and InvalidImage if it is above `byte_limit` or unreadable."""
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
        return path.read_bytes()
    except InputNotFound:  # an OSError too
        raise
    except OSError as error:
        raise InvalidImage(f"{path} cannot be read ({error.strerror}): check its permissions and its disk") from error


def decode_image(data: bytes, *, name: str = "the file", max_pixels: int = MAX_PIXELS) -> Image:
    """Decode PNG, JPEG, WebP, BMP or TIFF bytes; of an animation or a stack of pages, the first picture.

    More than `max_pixels` pixels (and more than Pillow's own limit of 179 million) are refused from the header, before
    a decoder sees it. An 8-bit image is converted to sRGB by its ICC profile, or a PNG's gAMA and cHRM; a broken
    profile is taken as sRGB. A 16-bit colour image stays in its profile, which is kept in `icc`; 16-bit grey is taken
    as sRGB grey. Broken metadata are left out. All of that, and frames and pages beyond the first, are named in the
    image's `notes`.

    Args:
        data: The file.
        name: Name of the file, for messages.
        max_pixels: The most pixels that are decoded.

    Raises:
        InvalidImage: It is no such file, damaged, or beyond a limit.
    """
    if not data:
        raise InvalidImage(f"{name} is empty: copy or download it again")
    if (found := format_of(data)) is None:
        raise InvalidImage(
            f"{name} is not an image of {', '.join(NAMES)}: convert it to one of them (its bytes count, not its suffix)"
        )
    check_size(header_size(data), name, max_pixels)
    notes: list[str] = []
    turned = grey = False
    with _decoding(name, found):
        data, pages = check_parts(data, notes)
        if found.name == "TIFF":
            tags = read_tags(BytesIO(data))
            check_kind(tags, data, notes, name=name, max_pixels=max_pixels)
            turned = tags.get(_ORIENTATION) in range(5, 9)
            grey = is_grey(tags)
            data = plain_tiff(data, tags, notes)
        file = Pillow.open(BytesIO(data), formats=NAMES)
    check_size(file.size, name, max_pixels)
    with _decoding(name, found):
        if file.format == "PNG":
            settle_colours(file.info, data, notes)
        runs = file.format == "BMP" and file.info["compression"] in _RUN_LENGTHS
        if runs and max(len(data), file.width * file.height) > MOST_RUNS:
            raise InvalidImage(
                f"{name} is a compressed BMP of more than {MOST_RUNS} pixels or bytes, which takes long to read: "
                "save it as PNG"
            )
        bits = _bits(file, data)
        if not isinstance(file, TiffImageFile):
            pages = getattr(file, "n_frames", 1)
        if pages > 1:
            notes.append(f"the first of its {pages} {_PAGES.get(file.format or '', 'pictures')} is used")
        file.load()
        if file.info.get("icc_profile", b"") is None:  # parts of it are missing
            notes.append("its colour profile is broken, and it is taken as sRGB: it is not whole")
        # Read after loading: Pillow turns a TIFF while it loads, and takes its orientation away.
        orientation = _orientation(file)
        if bits > 8 and file.mode.startswith("I"):
            level, alpha = grey_16(file, bits, notes)
            image = Image(np.dstack([level, level, level]), alpha, grey=True)
        elif bits == 16 and file.mode in ("RGB", "RGBA", "RGBX"):
            image = _any_16(file, data, name, notes)
        else:
            if bits > 8:
                notes.append(f"its {bits} bits a sample become 8: as an RGB or grey PNG it would keep 16")
            image = _any_8(file, notes)
        alpha = None if image.alpha is None else _upright(image.alpha, orientation)
        pixels = _upright(image.pixels, orientation)
        size = pixels.shape[1], pixels.shape[0]
        turned = turned or 5 <= orientation <= 8
        metadata, left_out = read_metadata(file, data, size, turned=turned, srgb=image.icc is None)
    notes += left_out
    grey = grey or image.grey
    return replace(image, pixels=pixels, alpha=alpha, grey=grey, metadata=metadata, notes=tuple(notes))


@contextmanager
def _decoding(name: str, found: Format) -> Iterator[None]:
    """Turn what the decoders raise into InvalidImage: hostile bytes make them raise nearly anything."""
    try:
        yield
    except (InvalidImage, ImportError):
        raise
    except MemoryError as error:
        raise InvalidImage(f"{name} does not fit into memory: make it smaller, or free some memory") from error
    except UnidentifiedImageError as error:
        raise InvalidImage(f"{name} is a {found.name} that is damaged or of a rare kind: save it as PNG") from error
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
        return sample_bits(file.tag_v2)
    return 8


def _orientation(file: Pillow.Image) -> int:
    """From the EXIF data, 1 to 8; 1 if there are none, or Pillow would copy more of them than there are."""
    try:
        raw = file.info.get("Raw profile type exif")  # in a PNG's texts
        check_tags(file.info.get("exif") or (read_raw_profile(raw) if isinstance(raw, str) else b""))
        return int(file.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block, which `read_metadata` names, need not cost the photograph
        return 1


def _upright(array: Pixels, orientation: int) -> Pixels:
    """Apply EXIF orientation 1-8 (others: none) to (H, W[, 3])."""
    if orientation not in _TURNS:
        return array
    import cv2  # three times as fast as NumPy here

    transposed, flipped = _TURNS[orientation]
    turned = cv2.transpose(array) if transposed else array
    return cast(Pixels, turned if flipped is None else cv2.flip(turned, flipped))


def _samples(image: Pillow.Image) -> Pixels:
    """(H, W) or (H, W, C) uint8 of a loaded image. In strips: NumPy's own way holds two more copies on the way."""
    channels = len(image.getbands())
    samples = np.empty((image.height, image.width) + (channels,) * (channels > 1), np.uint8)
    rows = 1 + (1 << 18) // image.width
    for top in range(0, image.height, rows):
        strip = samples[top : top + rows]
        strip[...] = np.asarray(image.crop((0, top, image.width, top + len(strip))))
    return samples


def _any_8(file: Pillow.Image, notes: list[str]) -> Image:
    file = file.convert("LA") if file.mode == "La" else file  # premultiplied
    grey = file.mode in ("1", "L", "LA")
    alpha = None
    icc = _profile(file, notes)
    if file.has_transparency_data:
        file = file if file.mode == "RGBA" else file.convert("RGBA")
        alpha = _samples(file.getchannel("A"))
        if file.format == "BMP" and not alpha.any():  # Windows' clipboard leaves it empty; browsers show the picture
            alpha = None
            notes.append("its alpha is 0 everywhere and is left out")
    colour = file.convert("L") if grey else file
    if icc:
        try:
            colour = to_srgb(colour, icc)
        except ValueError as error:
            notes.append(f"its colour profile is broken, and it is taken as sRGB: {error}")
    if grey:
        colour = colour.convert("L")  # a profile may have tinted it
    return Image(_samples(colour if colour.mode == "RGB" else colour.convert("RGB")), alpha, grey)


def _any_16(file: Pillow.Image, data: bytes, name: str, notes: list[str]) -> Image:
    pixels, alpha = colour_16(file, data, name)
    if file.format == "PNG" and data[25] == 4:  # IHDR's colour type: grey with alpha
        grey = grey_to_srgb(pixels[..., 0], file, notes)
        return Image(np.dstack([grey, grey, grey]), alpha, grey=True)
    icc = _profile(file, notes)
    if icc and icc[16:20] != b"RGB ":
        notes.append("its colour profile is not of RGB and is left out; it is taken as sRGB")
        icc = None
    return Image(pixels, alpha, icc=icc or None)


def _profile(file: Pillow.Image, notes: list[str]) -> bytes | None:
    """The ICC profile of a file, or of a PNG what stands for one."""
    if isinstance(icc := file.info.get("icc_profile"), bytes):  # or a text of that name in a PNG
        return icc
    if file.format != "PNG" or not {"gamma", "chromaticity"} & file.info.keys():
        return None
    try:
        return png_profile(file.info)
    except ValueError as error:
        notes.append(f"its colours are taken as sRGB: {error}")
        return None
