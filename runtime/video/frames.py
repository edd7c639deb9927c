"""A frame of a video: upright RGB on demand, and its 4:2:0 samples, which are written back unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.runtime.faces.geometry import Matrix, compose, crop_face
from bfr.runtime.faces.options import Detail
from bfr.runtime.faces.paste import Patch, paste_faces
from bfr.runtime.install import importing

with importing("PyAV", "video"):
    from av.video.frame import VideoFrame
    from av.video.reformatter import Interpolation

CONVERSION = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
"""Between RGB and YUV. FFmpeg's default makes 4:2:0 more than one level too dark on average; this has no bias."""
FULL = 2  # range: 0 to 255
_PACKED = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10}  # formats that pass as they are, and their bits
_BETWEEN = np.array([[-1, 9, 9, -1]], np.float32) / 16  # cubic, in the middle of two samples
_NEUTRAL = 2  # levels of 8 bits by which the chroma of a grey picture differs from the middle
# FFmpeg's number of a matrix -> its weights of red and blue (ITU-R BT.709, FCC, BT.601, SMPTE 240M, BT.2020).
_WEIGHTS = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}

_LUMA, _CHROMA = slice(0, 1), slice(1, 3)  # of Y, U and V
_SITING = np.array([[2.0, 0, 0], [0, 2.0, 0.5]])  # chroma -> luma: at the left one of two samples, between two rows

Pixels = NDArray[Any]
"""(H, W, 3) RGB, uint8, or uint16 of a video with more than 8 bits a sample."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The samples of a frame.

    Attributes:
        planes: (H * 3 / 2, W) uint8 or uint16, Y, then U and V, as FFmpeg packs them.
        format: FFmpeg's name of the packing.
        matrix: Colour matrix, by the number of FFmpeg's converter.
        range: FULL or not.
    """

    planes: NDArray[Any]
    format: str
    matrix: int
    range: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.planes.shape[1], self.planes.shape[0] * 2 // 3

    @property
    def depth(self) -> int:
        """Bits a sample."""
        return _PACKED[self.format]

    @property
    def grey(self) -> bool:
        """Whether the picture has no colour."""
        middle, most = 1 << (self.depth - 1), _NEUTRAL << (self.depth - 8)
        chroma = self.planes[self.size[1] :]
        return bool(chroma.min() >= middle - most and chroma.max() <= middle + most)

    def copy(self) -> "Samples":
        """A copy with separate planes."""
        return Samples(self.planes.copy(), self.format, self.matrix, self.range)

    def rgb(self) -> Pixels:
        """The pixels of the whole frame."""
        luma, chroma = self._split()
        return self._converted([luma, *(_doubled(plane) for plane in chroma)])

    def crop(self, matrix: Matrix, size: int) -> Pixels:
        """The aligned crop of a face, (size, size, 3), as of `crop_face`; no other samples are converted."""
        luma, chroma = self._split()
        to_crop = compose(matrix, _SITING)
        return self._converted([crop_face(luma, matrix, size), *(crop_face(plane, to_crop, size) for plane in chroma)])

    def paste(self, patches: Sequence[Patch], *, colour: bool, blend: float, detail: Detail) -> None:
        """Paste restored faces, as `paste_faces` does; samples outside their masks keep their value.

        Args:
            patches: Patches of the faces.
            colour: Whether to restore the chroma too; not in a grey picture.
            blend: See `paste_faces`.
            detail: See `paste_faces`.
        """
        luma, chroma = self._split()
        white = None if self.depth == 8 else (1 << self.depth) - 1
        brightness = [
            replace(patch, pixels=self._planes(patch.pixels, _LUMA), before=self._planes(patch.before, _LUMA))
            for patch in patches
        ]
        paste_faces(luma, brightness, blend=blend, detail=detail, white=white)
        if not colour:
            return
        colours = [
            replace(
                patch,
                pixels=self._planes(patch.pixels, _CHROMA),
                # As in RGB: the finer detail of colours is mostly noise.
                before=None if detail == "auto" else self._planes(patch.before, _CHROMA),
                matrix=compose(patch.matrix, _SITING),
            )
            for patch in patches
        ]
        both = cv2.merge(list(chroma))
        paste_faces(both, colours, blend=blend, detail=detail, white=white)
        chroma[:] = cv2.split(both)

    def _planes(self, pixels: NDArray[np.float32] | None, which: slice) -> NDArray[np.float32] | None:
        """Y, (H, W), or U and V, (H, W, 2), of (H, W, 3) RGB."""
        if pixels is None:
            return None
        to_yuv = np.hstack([self._from_rgb(_top(self.depth)), self._black[:, None]])
        # A plane at a time: for two at once OpenCV takes three times as long.
        return np.asarray(cv2.merge([cv2.transform(pixels, row[None]) for row in to_yuv[which]]), np.float32)

    def _converted(self, planes: Sequence[NDArray[Any]]) -> Pixels:
        """Y, U and V of the same size, (H, W) each -> RGB."""
        back = np.linalg.inv(self._from_rgb(_top(self.depth)))
        dtype = np.uint8 if self.depth == 8 else np.uint16
        return np.asarray(cv2.transform(cv2.merge(planes), np.hstack([back, -(back @ self._black)[:, None]])), dtype)

    @property
    def _black(self) -> NDArray[np.int64]:
        """(3,): Y, U and V of black."""
        middle = 1 << (self.depth - 1)
        return np.array([0 if self.range == FULL else 16 << (self.depth - 8), middle, middle])

    def _split(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(H, W) of Y and (2, H / 2, W / 2) of U and V: views of the planes."""
        width, height = self.size
        return self.planes[:height], self.planes[height:].reshape(2, height // 2, width // 2)

    def _from_rgb(self, top: int) -> NDArray[np.float64]:
        """(3, 3): a change of R, G, B, which end at `top` -> of Y, U, V, each in its own levels."""
        red, blue = _WEIGHTS[self.matrix]
        y = np.array([red, 1 - red - blue, blue])
        u, v = (np.array([0, 0, 1]) - y) / (2 - 2 * blue), (np.array([1, 0, 0]) - y) / (2 - 2 * red)
        levels = (255, 255) if self.range == FULL else (219, 224)
        scale = np.array([levels[0], levels[1], levels[1]]) * (1 << (self.depth - 8)) / top
        if self.range == FULL:  # 0 to 1023, not to 1020
            scale *= ((1 << self.depth) - 1) / (255 << (self.depth - 8))
        return np.stack([y, u, v]) * scale[:, None]


def _doubled(plane: NDArray[Any]) -> NDArray[Any]:
    """Chroma at twice the height and width: a sample lies at the left one of two luma samples, and between two rows."""
    rows = cv2.resize(plane, (plane.shape[1], 2 * plane.shape[0]), interpolation=cv2.INTER_CUBIC)
    full = np.empty((rows.shape[0], 2 * rows.shape[1]), plane.dtype)
    full[:, ::2] = rows
    full[:, 1::2] = cv2.filter2D(rows, -1, _BETWEEN, anchor=(1, 0), borderType=cv2.BORDER_REPLICATE)
    return full


def _top(depth: int) -> int:
    """The highest level of RGB for samples of so many bits."""
    return 255 if depth == 8 else 65535


@dataclass(frozen=True, slots=True)
class Layout:
    """How the frames of a video become upright pixels.

    Attributes:
        width: Width of frames as stored, pixels; frames of another size are scaled to it.
        height: Height of frames as stored, pixels.
        turn: FFmpeg's display matrix, ((a, b), (c, d)) with x' = a x + c y, y' = b x + d y, rows downwards.
        matrix: As FFmpeg's converter counts, None for RGB.
        range: FULL or not.
        depth: Bits a sample.
    """

    width: int
    height: int
    turn: tuple[tuple[int, int], tuple[int, int]]
    matrix: int | None
    range: int
    depth: int

    def upright(self, pixels: Pixels) -> Pixels:
        """Stored pixels -> as they are shown."""
        (a, b), (c, d) = self.turn
        if abs(a) < abs(b):
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    @property
    def turned(self) -> bool:
        """Whether upright and stored pixels differ."""
        (a, b), (_, d) = self.turn
        return abs(a) < abs(b) or a < 0 or d < 0


class Frame:
    """One frame, converted on demand.

    Attributes:
        pts: When it is shown, in ticks.
        time_base: Seconds a tick.
        index: From 0.
        duration: Ticks, None if the file names none.
        repeats: When the frames after it are shown that have the same samples, and for how long, in ticks.
    """

    def __init__(
        self, native: VideoFrame, layout: Layout, pts: int, time_base: Fraction, index: int, duration: int | None
    ) -> None:
        self._native, self._layout = native, layout
        self.pts, self.time_base, self.index, self.duration = pts, time_base, index, duration
        self.repeats: list[tuple[int, int | None]] = []

    @property
    def seconds(self) -> float:
        """When it is shown, on the clock of the file."""
        return float(self.pts * self.time_base)

    @property
    def pixels(self) -> Pixels:
        """(H, W, 3), upright."""
        one = self._layout
        return one.upright(to_rgb(self._native, one.depth, one.matrix, one.range, (one.width, one.height)))

    @property
    def quick(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8, upright: to find faces in, at a twentieth of the cost; a level or two off."""
        one = self._layout
        array = self._native.to_ndarray(
            format="rgb24",
            width=one.width,
            height=one.height,
            src_colorspace=one.matrix,
            interpolation=Interpolation.BILINEAR,
        )
        return one.upright(array)

    @cached_property
    def samples(self) -> Samples | None:
        """As decoded; None for frames that have to be converted: turned, of another size or format than 4:2:0."""
        one, native = self._layout, self._native
        if one.matrix is None or one.turned or native.format.name not in _PACKED:
            return None
        if (native.width, native.height) != (one.width, one.height) or one.width % 2 or one.height % 2:
            return None
        return Samples(native.to_ndarray(), native.format.name, one.matrix, one.range)

    def equals(self, other: "Frame") -> bool:
        """Whether it has `samples`, and another frame of its video has the same."""
        one, two = self.samples, other.samples
        return one is not None and two is not None and one.depth == two.depth and np.array_equal(one.planes, two.planes)

    @property
    def grey(self) -> bool:
        """Whether it has no colour."""
        if self.samples is not None:
            return self.samples.grey
        if self._native.format.name.startswith("gray"):
            return True
        channels = cv2.split(self.quick)
        return all(cv2.absdiff(channels[1], other).max() <= 2 * _NEUTRAL for other in (channels[0], channels[2]))


def to_rgb(
    frame: VideoFrame, depth: int, matrix: int | None, color_range: int, size: tuple[int, int] | None = None
) -> Pixels:
    """The pixels of a stored frame; size: width and height, where they differ from the frame's."""
    width, height = size or (frame.width, frame.height)
    return frame.to_ndarray(
        format="rgb24" if depth == 8 else "rgb48le",
        width=width,
        height=height,
        src_colorspace=matrix,
        src_color_range=None if matrix is None else color_range,
        interpolation=CONVERSION,
    )
