"""Samples of frames: to RGB as FFmpeg does, and changes of RGB back to where a player sees them."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.filter import Graph
from numpy.typing import NDArray

from bfr.runtime.video.formats import Colour, VideoInfo
from bfr.runtime.video.frames import Frame, Samples, to_rgb
from bfr.runtime.video.read import VideoReader
from bfr.runtime.video.write import VideoWriter

Array = NDArray[Any]
WIDTH, HEIGHT = 96, 64
PLACE = (24, 8, 80, 56)
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


@pytest.mark.parametrize("colour", COLOURS)
def test_a_part_in_rgb_is_that_part_of_the_whole_as_ffmpeg_converts_it(
    tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    one = frame(tmp_path, colour)
    left, top, right, bottom = PLACE
    level = 1 if colour[2] == 8 else 257
    expected = one.pixels[top:bottom, left:right]
    part = samples_of(one).rgb(PLACE)
    assert part.dtype == expected.dtype
    off = (part.astype(int) - expected)[2:-2, 2:-2] / level  # chroma is repeated beyond the part
    assert np.abs(off).max() <= 3  # blue is twice its chroma, which is rounded twice
    assert np.abs(off).mean() < 0.8
    assert np.abs(off.mean(axis=(0, 1))).max() < 0.5
    assert np.abs(one.quick.astype(int) - one.pixels // level).mean() < 3


@pytest.mark.parametrize("colour", COLOURS)
def test_a_change_comes_to_where_a_player_sees_it(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    one = frame(tmp_path, colour)
    samples, level = samples_of(one), 1 if colour[2] == 8 else 257
    before = samples.rgb(PLACE)
    after = before.astype(int)
    after[16:40, 12:44] += np.array([25, -15, 8]) * level
    after = np.clip(after, 0, 255 * level).astype(before.dtype)
    samples.add_change(PLACE, before, after)
    whole = shown(samples)
    left, top, _, _ = PLACE
    seen = whole[top + 16 : top + 40, left + 12 : left + 44].astype(int)
    off = (seen - after[16:40, 12:44])[3:-3, 3:-3] / level
    assert np.abs(off).max() <= 3
    assert np.abs(off.mean(axis=(0, 1))).max() < 1
    # Nothing changes beyond the chroma of the neighbouring pixels.
    untouched = np.ones((HEIGHT, WIDTH), bool)
    untouched[top + 16 : top + 40, left + 12 : left + 44] = False
    assert np.array_equal(samples.planes[:HEIGHT][untouched], samples_of(one).planes[:HEIGHT][untouched])
    chroma, known = (each.planes[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2) for each in (samples, samples_of(one)))
    rows, columns = np.nonzero((chroma != known).any(axis=0))
    assert (2 * rows.min(), 2 * rows.max() + 2) == (top + 16, top + 40)
    assert (2 * columns.min(), 2 * columns.max()) == (left + 12, left + 44)  # to the left of the last pixel's neighbour


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


def test_without_a_change_every_sample_stays(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    one = frame(tmp_path, (1, 1, 8), noise)
    samples = samples_of(one)
    pixels = samples.rgb(PLACE)
    samples.add_change(PLACE, pixels, pixels)
    assert np.array_equal(samples.planes, samples_of(one).planes)


def test_in_grey_pictures_the_chroma_stays(tmp_path: Path) -> None:
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    one = frame(tmp_path, (1, 1, 8), grey)
    assert one.grey
    assert not frame(tmp_path, (1, 1, 8)).grey
    samples = samples_of(one)
    pixels = samples.rgb(PLACE)
    samples.add_change(PLACE, pixels, pixels + np.array([9, 9, 0], np.uint8), colour=False)
    assert not np.array_equal(samples.planes, samples_of(one).planes)
    assert np.array_equal(samples.planes[HEIGHT:], samples_of(one).planes[HEIGHT:])


def test_changes_do_not_leave_the_range(tmp_path: Path) -> None:
    one = frame(tmp_path, (1, 2, 8), np.full((HEIGHT, WIDTH, 3), 250, np.uint8))
    samples = samples_of(one)
    pixels = samples.rgb(PLACE)
    samples.add_change(PLACE, np.zeros_like(pixels), np.full_like(pixels, 255))
    assert samples.planes[20, 40] == 255
    samples.add_change(PLACE, np.full_like(pixels, 255), np.zeros_like(pixels))
    samples.add_change(PLACE, np.full_like(pixels, 255), np.zeros_like(pixels))
    assert samples.planes[20, 40] == 0
