"""Images of more than 8 bits a sample.

Pillow keeps 8 bits of 16-bit colour: that is OpenCV's, checked against Pillow's 8 bits. 16-bit grey is Pillow's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.TiffImagePlugin import TiffImageFile

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.colour import grey_curve
from bfr.runtime.images.png import bare_png

Deep = NDArray[np.uint16]
_PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES = 262, 284, 338


def grey_16(file: Pillow.Image, bits: int, notes: list[str]) -> tuple[Deep, Deep | None]:
    """(H, W) grey and alpha of a loaded image of 9 to 16 bits; fewer than 16 are widened."""
    grey = np.clip(np.asarray(file), 0, 65_535).astype(np.uint16)
    if bits < 16:  # of a TIFF
        most = (1 << bits) - 1
        grey = np.rint(np.minimum(grey, most) * (65_535 / most)).astype(np.uint16)
    alpha = None
    if isinstance(transparent := file.info.get("transparency"), int):
        alpha = np.where(grey == transparent, 0, 65_535).astype(np.uint16)
    if isinstance(file, TiffImageFile) and file.tag_v2.get(_PHOTOMETRIC) == 0:
        grey = 65_535 - grey  # white is 0; Pillow inverts 8 bits only
    return grey_to_srgb(grey, file, notes), alpha


def grey_to_srgb(grey: Deep, file: Pillow.Image, notes: list[str]) -> Deep:
    """Apply a PNG's gAMA to 16-bit grey; a profile is not applied, which a note reports."""
    if isinstance(icc := file.info.get("icc_profile"), bytes):
        if b"sRGB" not in icc and "sRGB".encode("utf-16-be") not in icc:
            notes.append("its profile of 16-bit grey is left out, and it is taken as sRGB grey")
        return grey
    curve = grey_curve(file.info) if file.format == "PNG" else None
    return grey if curve is None else curve[grey]


def colour_16(file: Pillow.Image, data: bytes, name: str) -> tuple[Deep, Deep | None]:
    """(H, W, 3) RGB and (H, W) alpha of a loaded image of 16 bits. Raises InvalidImage for rare kinds."""
    import cv2

    tags: Any = file.tag_v2 if isinstance(file, TiffImageFile) else {}
    # UNCHANGED keeps 16 bits and alpha; a TIFF is turned upright by both decoders.
    bare = bare_png(data) if file.format == "PNG" else data
    decoded = cv2.imdecode(np.frombuffer(bare, np.uint8), cv2.IMREAD_UNCHANGED)
    seen = np.asarray(file)  # by Pillow: (H, W, 3 or 4) uint8, the high bytes
    # OpenCV mixes up the planes of a TIFF that stores them apart: `tiff.py` has joined those that it could.
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
    return pixels, alpha
