"""Colour: the pixels of any 8-bit file as sRGB, and the ICC profile that a PNG's gAMA and cHRM chunks stand for."""

from collections.abc import Mapping
from io import BytesIO
from struct import pack
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

SRGB_GAMMA = 0.45455  # of gAMA: of an sRGB picture by PNG's specification
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # cHRM: white, red, green, blue, x and y each
_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_GREY = ("1", "L")
_SHADES = np.arange(0, 256, 51, dtype=np.uint8)
_PROBE = np.stack(np.meshgrid(_SHADES, _SHADES, _SHADES), -1).reshape(1, -1, 3)
_SAME = 2  # levels by which the conversion from one sRGB profile to another may change colours


def to_srgb(file: Pillow.Image, icc: bytes) -> Pillow.Image:
    """Convert an 8-bit image from its profile. Raises ValueError if the profile is broken or of another kind."""
    from PIL import ImageCms

    if file.mode == "LAB":  # its samples are colours without a profile
        return file.convert("RGB")
    try:
        profile = ImageCms.getOpenProfile(BytesIO(icc))
        space = profile.profile.xcolor_space.strip()
        if (space == "GRAY" and file.mode not in _GREY) or (space == "CMYK" and file.mode != "CMYK"):
            raise ValueError(f"it is one of {space}, not of {file.mode}")
        source = file if space == file.mode else file.convert({"GRAY": "L"}.get(space, "RGB"))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), source.mode, "RGB")
        if source.mode == "RGB":  # whatever the profile is called: some linear ones are called sRGB, too
            probe = np.asarray(ImageCms.applyTransform(Pillow.fromarray(_PROBE), transform), np.int16)
            if np.abs(probe - _PROBE).max() <= _SAME:
                return source
        return cast(Pillow.Image, ImageCms.applyTransform(source, transform))  # None only when converting in place
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(str(error).strip()) from error


def png_profile(info: Mapping[Any, Any]) -> bytes | None:
    """Make the ICC profile that gAMA and cHRM stand for; None if they are missing, or those of sRGB.

    Args:
        info: `info` of Pillow's image.

    Raises:
        ValueError: Their numbers mean no colours.
    """
    gamma, chromaticity = info.get("gamma"), info.get("chromaticity")
    if "srgb" in info or not (isinstance(gamma, float) or isinstance(chromaticity, tuple)):
        return None
    gamma = gamma if isinstance(gamma, float) else SRGB_GAMMA
    chromaticity = chromaticity if isinstance(chromaticity, tuple) else _SRGB
    if not 0.05 <= gamma <= 5 or len(chromaticity) != 8:
        raise ValueError("gAMA or cHRM is out of range")
    if abs(gamma - SRGB_GAMMA) < 0.001 and np.abs(np.subtract(chromaticity, _SRGB)).max() < 0.002:
        return None
    return _profile(_columns(chromaticity), gamma)


def grey_curve(info: Mapping[Any, Any]) -> NDArray[np.uint16] | None:
    """(65536,) uint16, 16-bit grey by a PNG's gAMA -> sRGB grey; None if gAMA is missing, or that of sRGB."""
    gamma = info.get("gamma")
    if "srgb" in info or not isinstance(gamma, float) or not 0.05 <= gamma <= 5 or abs(gamma - SRGB_GAMMA) < 0.001:
        return None
    linear = np.linspace(0, 1, 65_536) ** (1 / gamma)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return cast(NDArray[np.uint16], np.rint(65_535 * encoded).astype(np.uint16))


def _columns(chromaticity: tuple[float, ...]) -> NDArray[np.float64]:
    """(3, 3): XYZ under D50 of red, green and blue, a row each."""
    x, y = np.array(chromaticity, np.float64).reshape(4, 2).T
    if not (np.isfinite(x).all() and (y > 1e-4).all() and (x + y < 1.0001).all()):
        raise ValueError("cHRM is out of range")
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    white, primaries = xyz[:, 0], xyz[:, 1:]
    if abs((x[1] - x[3]) * (y[2] - y[3]) - (x[2] - x[3]) * (y[1] - y[3])) < 0.005:  # 0.22 for sRGB's triangle
        raise ValueError("cHRM's primaries are nearly on a line")
    rgb = primaries * np.linalg.solve(primaries, white)
    cones = (_BRADFORD @ _D50) / (_BRADFORD @ white)
    adapted = np.linalg.inv(_BRADFORD) @ (cones[:, None] * (_BRADFORD @ rgb))
    if not (np.isfinite(adapted).all() and np.abs(adapted).max() < 10):
        raise ValueError("cHRM's white is too far from its primaries")
    return cast(NDArray[np.float64], adapted.T)


def _profile(columns: NDArray[np.float64], gamma: float) -> bytes:
    """An ICC profile of version 2 with a matrix and one gamma (ICC.1:2001-04)."""

    def xyz(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(pack(">i", round(float(value) * 65_536)) for value in values)

    name = b"PNG gAMA and cHRM\0"
    curve = b"curv\0\0\0\0" + pack(">IH", 1, round(256 / gamma)) + bytes(2)
    tags = {
        b"desc": b"desc\0\0\0\0" + pack(">I", len(name)) + name + bytes(4 + 4 + 2 + 1 + 67),
        b"cprt": b"text\0\0\0\0CC0\0",
        b"wtpt": xyz(_D50),
        **{key: xyz(column) for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    at = 128 + 4 + 12 * len(tags)
    table, bodies = pack(">I", len(tags)), b""
    for key, body in tags.items():
        table += key + pack(">II", at + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    head = bytes(8) + b"\x02\x10\0\0mntrRGB XYZ " + pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(pack(">i", round(value * 65_536)) for value in _D50)
    head = head.ljust(128, b"\0")
    return pack(">I", at + len(bodies)) + head[4:] + table + bodies
