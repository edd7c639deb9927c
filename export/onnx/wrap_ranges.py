"""What `bfr wrap` says of a file: what it assumed, and whether the range of values looks wrong."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from bfr.export.onnx.wrap_original import BYTES, SIGNED, UNIT, Original, Say, raw_result, scaled
from bfr.export.onnx.wrap_read import Interface, Range
from bfr.export.options import WrapOptions
from bfr.export.verify.walk import synthetic
from bfr.runtime.restore.plan import DEGRADED
from bfr.runtime.text import listed

STRAY = 0.25  # of the declared range: results further outside belong to another range


def tell_assumed(face: Interface, options: WrapOptions, file: str, say: Say) -> None:
    """Say how the file is read, and name the flags that override an assumption."""
    ranges = " to ".join(f"{black:g}..{white:g}" for black, white in (face.input_range, face.output_range))
    say(
        f"{file}: {face.source.name} {face.side}x{face.side} to {face.target.name} {face.out_side}x{face.out_side}, "
        f"{face.colour.upper()} in {ranges}"
    )
    if options.input_range is None or options.output_range is None:
        say("the value range is assumed: --input-range and --output-range override it")
    if face.source.side is None and options.size is None:
        say(f"the size is assumed: --size chooses another than {face.side}")
    if face.others and options.output is None:
        say(f"further images are left out: --output chooses {listed(face.others)} instead")
    if face.weight:
        say(
            f"{face.weight} is assumed to be a fidelity weight, {face.values[face.weight]:g} by default: "
            "`bfr restore --weight` changes it"
        )


def check_ranges(original: Original, face: Interface, say: Say) -> None:
    """Warn where another range makes the result much more like the picture than the declared one does."""
    if TensorProto.UINT8 in (face.source.type, face.target.type) or face.reference:
        return
    picture = synthetic(DEGRADED, (3, face.side, face.side), face.source.batch or 1)

    def likeness(pair: tuple[Range, Range]) -> float:
        tried = replace(face, input_range=pair[0], output_range=pair[1])
        return _likeness(scaled(raw_result(original, tried, picture), tried), 2.0 * picture - 1.0)

    if (found := likeness((face.input_range, face.output_range))) >= 15.0:
        return
    best, (black, white) = max((likeness((one, one)), one) for one in (SIGNED, UNIT, BYTES))
    if best > 25.0:
        say(
            f"warning: with {black:g}..{white:g} as the range of values the result is {best:.0f} dB from the "
            f"picture, with {face.input_range[0]:g}..{face.input_range[1]:g} {found:.0f} dB: is --input-range right?"
        )


def warn_of_range(y: NDArray[np.float64], face: Interface, say: Say) -> None:
    """Warn where a result lies outside the declared output range, or fills little of it."""
    (black, white), problem = face.output_range, None
    reach = STRAY * (white - black)
    if (share := float(np.mean((y < black - reach) | (y > white + reach)))) > 0.05:
        problem = f"{share:.0%} of the result lie far outside {black:g}..{white:g}, in {y.min():.3g}..{y.max():.3g}"
    elif float(y.max() - y.min()) < 0.05 * (white - black):
        problem = f"the result lies in {y.min():.3g}..{y.max():.3g}, a small part of {black:g}..{white:g}"
    if problem:
        say(f"warning: {problem}: is --output-range right?")


def _likeness(found: NDArray[np.float32], picture: NDArray[np.float32]) -> float:
    """PSNR of coarse means, in dB with peak 2: a restorer changes detail, and keeps what is large."""
    cells = 8

    def coarse(image: NDArray[np.float32]) -> NDArray[np.float64]:
        side = image.shape[-1] // cells * cells
        blocks = image[..., :side, :side].reshape(*image.shape[:2], cells, side // cells, cells, side // cells)
        return np.asarray(blocks.mean(axis=(3, 5), dtype=np.float64))

    if picture.shape[-1] < cells or not np.isfinite(found).all():
        return 0.0
    return float(-10.0 * np.log10(np.mean((coarse(found) - coarse(picture)) ** 2) / 4.0 + 1e-12))
