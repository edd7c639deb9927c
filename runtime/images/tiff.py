"""TIFF: which kinds are refused, and how those are read that Pillow and OpenCV refuse or misread.

A kind is what a directory says of the samples: their size, how many a pixel has, and whether they lie apart, in planes.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from struct import pack, unpack_from
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.headers import check_size

Tags = Mapping[int, Any]
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS = 254, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANES = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 317, 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _DNG_VERSION = 338, 339, 50706
_CHANNELS = {0: 1, 1: 1, 2: 3, 5: 4}  # grey whose white is 0, grey, RGB, CMYK
_WHITE_IS_0, _CMYK = 0, 5
_UNSIGNED, _FORMATS = 1, {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_JPEG = (6, 7)  # compressions
_NOT_BY_OPENCV = (34925, 50000)  # compressions: LZMA, Zstandard
_MOST_EXTRA = 2  # channels beside the colours that are read


def check_kind(tags: Tags, data: bytes, notes: list[str], *, name: str, max_pixels: int) -> None:
    """Note channels that are left out. Raises InvalidImage for raw files, large tiles, and samples that are not read.

    Args:
        tags: Those of the first directory.
        data: The file.
        notes: Gets a sentence for what is left out.
        name: Name of the file, for messages.
        max_pixels: The most pixels of a tile, which is decoded whole, also outside the picture.
    """
    check_size((tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)), f"a tile of {name}", max_pixels)
    if _DNG_VERSION in tags or data[8:10] == b"CR" or int(tags.get(_SUBFILE, 0)) & 1:
        raise InvalidImage(f"{name} begins with a preview, as cameras' raw files do: develop it, save it as PNG")
    bits, formats = sample_bits(tags), np.atleast_1d(tags.get(_SAMPLE_FORMAT, _UNSIGNED))
    if bits > 16:
        raise InvalidImage(f"{name} has {bits}-bit samples: save it with 8 or 16 bits")
    if strange := set(formats.tolist()) & _FORMATS.keys():  # some are taken for unsigned
        raise InvalidImage(f"{name} has {_FORMATS[min(strange)]} samples: save it with unsigned ones of 8 or 16 bits")
    extra = np.atleast_1d(tags.get(_EXTRA_SAMPLES, ()))
    if 0 in extra:
        notes.append("a channel that is neither a colour nor alpha is left out")
    if tags.get(_COLOURS) == _CMYK and extra.any():
        notes.append("its alpha is left out: as an RGB file it would keep it")


def is_grey(tags: Tags) -> bool:
    """Whether the colours are grey."""
    return _CHANNELS.get(tags.get(_COLOURS, -1)) == 1


def sample_bits(tags: Tags) -> int:
    """The bits of a sample, the most where they differ."""
    return int(max(tags.get(_BITS, (1,))))


def plain_tiff(data: bytes, tags: Tags, notes: list[str]) -> bytes:
    """Return the file, or of a kind that is misread one that is not, with the same metadata.

    Of 16 bits these are planes, grey with alpha or whose white is 0, more than one channel beside the colours, and what
    OpenCV cannot unpack; of 8 bits planes of other than colours, and alpha beside CMYK or grey whose white is 0.
    """
    colours, samples, bits = tags.get(_COLOURS, -1), int(tags.get(_SAMPLES, 1)), sample_bits(tags)
    channels = _CHANNELS.get(colours, 0)
    apart, more, deep = tags.get(_PLANES) == 2, samples - channels, bits == 16
    extra = np.atleast_1d(tags.get(_EXTRA_SAMPLES, 2))[:more]
    misread = (
        (apart and (deep or more))
        or (deep and (samples not in (1, 3, 4) or tags.get(_COMPRESSION) in _NOT_BY_OPENCV))
        or (colours == _WHITE_IS_0 and (deep or more))
        or (colours == _CMYK and extra.any())
    )
    readable = channels and 0 <= more <= _MOST_EXTRA and bits in (8, 16) and tags.get(_COMPRESSION) not in _JPEG
    if not (misread and readable and data[2:4] in (b"*\0", b"\0*")):  # no BigTIFF
        return data
    stored = _stored(data, tags, samples, apart=apart)
    pixels = stored[..., :channels]
    if colours == _WHITE_IS_0:
        pixels = ~pixels
    if colours == _CMYK and deep:
        pixels = (pixels >> 8).astype(np.uint8)
        notes.append("its 16 bits a sample become 8: as an RGB or grey PNG it would keep 16")
    alphas = [] if colours == _CMYK else [i for i, kind in enumerate(extra) if kind in (1, 2)][:1]
    if alphas:
        grey_as_rgb = deep and channels == 1  # 16 bits of two channels are not read
        pixels = np.dstack([*[pixels] * (3 if grey_as_rgb else 1), stored[..., channels + alphas[0]]])
    colours = colours if colours == _CMYK else 1 if pixels.shape[2] < 3 else 2
    body = pixels.astype(f"{_order(data)}u{pixels.itemsize}").tobytes()
    return _with_directory(
        data + body,
        {
            _BITS: [8 * pixels.itemsize] * pixels.shape[2],
            _COMPRESSION: [1],
            _COLOURS: [colours],
            _STRIPS: [len(data)],
            _SAMPLES: [pixels.shape[2]],
            _ROWS: [len(pixels)],
            _STRIP_BYTES: [len(body)],
            _EXTRA_SAMPLES: [int(extra[i]) for i in alphas],
            **dict.fromkeys((_PLANES, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES), ()),
        },
    )


def _stored(data: bytes, tags: Tags, samples: int, *, apart: bool) -> NDArray[Any]:
    """(H, W, C) samples as they are stored, uint8 or uint16.

    Pillow reads them as grey: each plane as a file of its own, channels that are not apart as one of so many times the
    width.
    """
    grey: dict[int, Sequence[int]] = {_BITS: [sample_bits(tags)], _COLOURS: [1], _SAMPLES: [1], _PLANES: [1]}
    grey |= {_EXTRA_SAMPLES: (), _ORIENTATION: ()}
    if apart:
        planes: list[NDArray[Any]] = []
        for i in range(samples):
            parts: dict[int, Sequence[int]] = {}
            for tag in (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES):
                values = np.atleast_1d(tags.get(tag, ()))
                parts[tag] = values[i * len(values) // samples : (i + 1) * len(values) // samples].tolist()
            planes.append(_grey(_with_directory(data, grey | parts)))
        return np.dstack(planes)
    wide = {tag: [samples * tags[tag]] for tag in (_WIDTH, _TILE_WIDTH) if tag in tags}
    pixels = _grey(_with_directory(data, {**grey, **wide, _PREDICTOR: ()}))
    pixels = pixels.reshape(len(pixels), -1, samples)
    if tags.get(_PREDICTOR) != 2:
        return pixels
    if _TILES in tags:
        raise ValueError("tiles of differences are not read")
    return np.add.accumulate(pixels, axis=1, dtype=pixels.dtype)


def _grey(data: bytes) -> NDArray[Any]:
    return np.asarray(Pillow.open(BytesIO(data), formats=("TIFF",)))


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _with_directory(data: bytes, changes: Mapping[int, Sequence[int]]) -> bytes:
    """The file with another first directory at its end. changes: tag -> its values; none removes it."""
    order, at = _order(data), len(data)
    (first,) = unpack_from(f"{order}I", data, 4)
    (count,) = unpack_from(f"{order}H", data, first)
    entries = [data[first + 2 + 12 * i :][:12] for i in range(count)]
    kept = {unpack_from(f"{order}H", entry)[0]: entry for entry in entries}
    tags = {tag for tag in {*kept, *changes} if len(changes.get(tag, "kept"))}
    directory, lists, lists_at = pack(f"{order}H", len(tags)), b"", at + 2 + 12 * len(tags) + 4
    for tag in sorted(tags):
        if tag not in changes:
            directory += kept[tag]
            continue
        value = pack(f"{order}{len(changes[tag])}I", *changes[tag])
        if len(value) > 4:
            value, lists = pack(f"{order}I", lists_at + len(lists)), lists + value
        directory += pack(f"{order}HHI", tag, 4, len(changes[tag])) + value
    return data[:4] + pack(f"{order}I", at) + data[8:] + directory + bytes(4) + lists
