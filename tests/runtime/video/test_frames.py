"""Samples of frames: to RGB as FFmpeg does, and faces of RGB back to where a player sees them."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
from av.filter import Graph
from numpy.typing import NDArray

from bfr.runtime.faces.options import Detail
from bfr.runtime.faces.paste import Patch
from bfr.runtime.video.formats import Colour, VideoInfo
from bfr.runtime.video.frames import Frame, Samples, to_rgb
from bfr.runtime.video.read import VideoReader
from bfr.runtime.video.write import VideoWriter

Array = NDArray[Any]
WIDTH, HEIGHT = 96, 64
SIZE = 48
MATRIX = np.array([[1.0, 0, -24], [0, 1.0, -8]])  # a crop of SIZE pixels a side, its corner at (24, 8)
PLACE = (24, 8, 72, 56)
CLOCK = Fraction(1, 25)
COLOURS = [  # matrix, range, bits
    (1, 1, 8),
    (5, 1, 8),
    (1, 2, 8),
    (9, 1, 10),
    (1, 2, 10),
]


def picture(top: int = 255) -> Array:
    """Slow waves of all colours, so that the filters of FFmpeg and ours give the same."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack([np.sin(x / 15), np.cos(y / 12), np.sin((x + y) / 20)], axis=-1)
    return np.rint((128 + 90 * waves) * (top / 255)).astype(np.uint8 if top == 255 else np.uint16)


def frame(folder: Path, colour: tuple[int, int, int], pixels: Array | None = None) -> Frame:
    """The frame that a reader gives of a video, nearly without loss."""
    matrix, color_range, depth = colour
    info = VideoInfo(
        WIDTH, HEIGHT, Fraction(25), None, None, 0, 0, "", CLOCK, Colour(matrix, color_range, 1, 1), depth=depth
    )
    path = folder / "a.mkv"
    with VideoWriter(path, ".mkv", info, crf=1) as writer:
        writer.write(picture(255 if depth == 8 else 65535) if pixels is None else pixels, 0, CLOCK)
    with VideoReader(path) as reader:
        assert reader.info.depth == depth
        (one,) = reader.frames()
    return one


def samples_of(one: Frame) -> Samples:
    assert one.samples is not None
    return one.samples.copy()


def patch_of(pixels: Array, matrix: Array = MATRIX) -> Patch:
    """The whole square, but for its edge."""
    mask = np.zeros((SIZE, SIZE), np.float32)
    mask[2:-2, 2:-2] = 1
    return Patch(pixels.astype(np.float32), mask, matrix, SIZE)


def pasted(samples: Samples, patch: Patch, *, colour: bool = True, detail: Detail = "crop") -> Samples:
    samples.paste([patch], colour=colour, blend=1.0, detail=detail)
    return samples


@pytest.mark.parametrize("colour", COLOURS)
def test_they_become_rgb_as_ffmpeg_converts_them(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    one = frame(tmp_path, colour)
    left, top, right, bottom = PLACE
    level, expected = 1 if colour[2] == 8 else 257, one.pixels
    crop = samples_of(one).crop(MATRIX, SIZE)
    assert crop.shape == (SIZE, SIZE, 3)
    for found, known in ((samples_of(one).rgb(), expected), (crop, expected[top:bottom, left:right])):
        assert found.dtype == expected.dtype
        off = (found.astype(int) - known)[2:-2, 2:-2] / level
        assert np.abs(off).max() <= 3  # blue is twice its chroma, which is rounded twice
        assert np.abs(off).mean() < 0.8
        assert np.abs(off.mean(axis=(0, 1))).max() < 0.6
    assert np.abs(one.quick.astype(int) - one.pixels // level).mean() < 3


@pytest.mark.parametrize("colour", COLOURS)
def test_a_face_comes_to_where_a_player_sees_it(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    one = frame(tmp_path, colour)
    level = 1 if colour[2] == 8 else 257
    restored = samples_of(one).crop(MATRIX, SIZE).astype(np.float32) + np.array([25, -15, 8]) * level
    restored = np.clip(restored, 0, 255 * level)
    samples = pasted(samples_of(one), patch_of(restored))
    left, top, right, bottom = PLACE
    off = (shown(samples)[top:bottom, left:right] - restored)[6:-6, 6:-6] / level
    assert np.abs(off).max() <= 4
    assert np.abs(off.mean(axis=(0, 1))).max() < 1
    # Nothing changes beyond the mask, and the chroma of the pixels beside it.
    untouched = np.ones((HEIGHT, WIDTH), bool)
    untouched[top:bottom, left:right] = False
    known = samples_of(one)
    assert np.array_equal(samples.planes[:HEIGHT][untouched], known.planes[:HEIGHT][untouched])
    changed = (samples.planes != known.planes)[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2).any(axis=0)
    assert changed[top // 2 + 3 : bottom // 2 - 3, left // 2 + 3 : right // 2 - 3].all()
    changed[top // 2 : bottom // 2, left // 2 : right // 2] = False
    assert not changed.any()


def shown(samples: Samples) -> Array:
    """What FFmpeg, and a player, makes of samples."""
    native = av.VideoFrame.from_ndarray(samples.planes, samples.format)
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(width=WIDTH, height=HEIGHT, format=native.format, time_base=CLOCK),
        graph.add("setparams", "chroma_location=left"),
        graph.add("buffersink"),
    ).configure()
    native.pts, native.time_base = 0, CLOCK
    graph.push(native)
    return to_rgb(graph.pull(), samples.depth, samples.matrix, samples.range)


@pytest.mark.parametrize("detail", get_args(Detail))
def test_a_face_that_is_left_keeps_every_sample(tmp_path: Path, detail: Detail) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    one = frame(tmp_path, (1, 1, 8), noise)
    left = replace(patch_of(noise[:SIZE, :SIZE]), pixels=None)
    assert np.array_equal(pasted(samples_of(one), left, detail=detail).planes, samples_of(one).planes)


def test_finer_detail_is_kept_of_luma_alone(tmp_path: Path) -> None:
    """As in photographs: that of colours is mostly noise."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    one, quarter = frame(tmp_path, (1, 1, 8), noise), np.array([[0.25, 0, 0], [0, 0.25, 0]])
    crop = samples_of(one).crop(quarter, SIZE // 2)
    patch = replace(patch_of(crop, quarter), size=SIZE // 2, before=crop.astype(np.float32))
    auto, photo, none = (pasted(samples_of(one), patch, detail=detail).planes for detail in ("auto", "photo", "crop"))
    assert (auto[:HEIGHT] != none[:HEIGHT]).any()
    assert np.array_equal(auto[HEIGHT:], none[HEIGHT:])
    assert (photo[HEIGHT:] != none[HEIGHT:]).any()


def test_in_grey_pictures_the_chroma_stays(tmp_path: Path) -> None:
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    one = frame(tmp_path, (1, 1, 8), grey)
    assert one.grey
    assert not frame(tmp_path, (1, 1, 8)).grey
    samples = pasted(samples_of(one), patch_of(np.full((SIZE, SIZE, 3), (200, 90, 30))), colour=False)
    assert not np.array_equal(samples.planes, samples_of(one).planes)
    assert np.array_equal(samples.planes[HEIGHT:], samples_of(one).planes[HEIGHT:])


@pytest.mark.parametrize(("depth", "white"), [(8, 255), (10, 1023)])
def test_faces_do_not_leave_the_range(tmp_path: Path, depth: int, white: int) -> None:
    one = frame(tmp_path, (1, 2, depth))
    for level, expected in ((1.2, white), (-0.2, 0)):
        pixels = np.full((SIZE, SIZE, 3), level * (255 if depth == 8 else 65535), np.float32)
        assert pasted(samples_of(one), patch_of(pixels)).planes[30, 48] == expected
