"""Videos in and out: times, turns, colours, sizes, sound, damage, and containers that mean harm."""

import io
import logging
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec import Codec
from av.stream import Disposition
from films import encode
from numpy.typing import NDArray

from bfr.runtime.errors import InputNotFound, InvalidImage, InvalidOption, MissingDependency, WriteFailed
from bfr.runtime.files import atomic_path
from bfr.runtime.video import codecs as video_codecs
from bfr.runtime.video.codecs import CODECS
from bfr.runtime.video.formats import HEAD, OUTPUT_SUFFIXES, SUFFIXES, Colour, VideoInfo, output_suffix, suffix_of
from bfr.runtime.video.read import VideoReader
from bfr.runtime.video.streams import StreamCopy
from bfr.runtime.video.write import VideoWriter

Array = NDArray[Any]
WIDTH, HEIGHT = 64, 48
RED = (200, 30, 30)
CLOCK = Fraction(1, 12_800)
TICKS = 512  # a frame at 25 frames a second
BT709, BT601, BT2020 = 1, 5, 9
LIMITED, FULL = 1, 2
MATRICES = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593)}
INFO = VideoInfo(WIDTH, HEIGHT, Fraction(25), None, None, 0, 0, "h264", CLOCK, Colour(BT709, LIMITED, 1, 1))


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> Array:
    """Three corners of different colour, and brightness that counts the frames."""
    pixels = np.full((height, width, 3), min(40 + 4 * index, 230), np.uint8)
    pixels[:16, :16], pixels[:16, -16:], pixels[-16:, :16] = RED, (30, 160, 40), (40, 50, 190)
    return pixels


def assert_alike(first: Array, second: Array) -> None:
    """In their corners and in the middle, away from edges, which 4:2:0 smears."""
    assert first.shape == second.shape
    rows, columns = [7, first.shape[0] // 2, -7], [7, first.shape[1] // 2, -7]
    off = first[np.ix_(rows, columns)].astype(int) - second[np.ix_(rows, columns)]
    assert abs(off).max() <= 5


def clip(
    path: Path,
    *,
    count: int = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    times: Sequence[int] | None = None,
    clock: Fraction = CLOCK,
    rotation: int = 0,
    mirrored: bool = False,
    sound: str | None = None,
    sound_first: bool = False,
    muxer: str | None = None,
    encoding: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """A small video made with PyAV alone. times: pts of the frames in ticks of `clock`. sound: the codec of a sine."""
    with av.open(str(path), "w", format=muxer, container_options=options or {}) as output:
        output.metadata.update(metadata or {})
        encoder = encoding or {"libx264": {"crf": "4", "g": "10"}, "mpeg4": {"qmax": "2"}}.get(codec)
        stream: Any = output.add_stream(codec, 25, encoder, width=size[0], height=size[1], time_base=clock)
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = clock
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        track: Any = output.add_stream(sound, 48_000, layout="stereo", bit_rate=128_000) if sound else None
        if track:
            track.metadata["language"] = "ger"
        if sound_first:
            _sine(output, track, count / 25)
        ticks = times or [round(index * Fraction(1, 25) / clock) for index in range(count)]
        encode(output, stream, (picture(index, *size) for index in range(count)), ticks, clock)
        if sound and not sound_first:
            _sine(output, track, count / 25)
    return path


def _sine(output: Any, track: Any, seconds: float) -> None:
    wave = (0.3 * np.sin(np.arange(int(48_000 * seconds)) * 2 * np.pi * 440 / 48_000)).astype(np.float32)
    for begin in range(0, len(wave), 1024):
        part = wave[begin : begin + 1024]
        frame = av.AudioFrame.from_ndarray(np.stack([part, part]), "fltp", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, begin, Fraction(1, 48_000)
        output.mux(track.encode(frame))
    output.mux(track.encode(None))


def copy(source: Path, target: Path, *, keep_metadata: bool = True, codec: str | None = None) -> str | None:
    """Read and write again, as a restoration that changes nothing; returns what the reader said was damaged."""
    with VideoReader(source) as reader:
        with VideoWriter(target, target.suffix, reader.info, codec=codec) as writer:
            writer.copy_streams_from(reader, keep_metadata=keep_metadata)
            for frame in reader.frames():
                writer.write(frame.pixels, frame.pts, frame.time_base, frame.duration)
        return reader.damage


def write(path: Path, *frames: Array, info: VideoInfo = INFO, **options: Any) -> Path:
    """A video of these frames, at 25 a second."""
    with VideoWriter(path, path.suffix, info, **options) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame, index * TICKS, CLOCK)
    return path


def times(path: Path) -> list[Fraction]:
    with VideoReader(path) as reader:
        return [frame.pts * frame.time_base for frame in reader.frames()]


def packets(path: Path, kind: str = "audio") -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        found = container.demux(**{kind: 0})
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in found if packet.pts is not None]


def pixels(path: Path) -> list[Array]:
    with VideoReader(path) as reader:
        return [frame.pixels for frame in reader.frames()]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second with sound; its header comes first, so that it can be cut."""
    path = tmp_path_factory.mktemp("clips") / "spoken.mp4"
    return clip(path, sound="aac", options={"movflags": "faststart"}, metadata={"title": "Two faces"})


def test_a_video_is_written_in_its_own_container_or_in_mp4() -> None:
    assert [output_suffix(suffix) for suffix in SUFFIXES] == [".mp4", ".mov", ".mkv", ".webm", *[".mp4"] * 10]
    assert output_suffix(".MKV") == ".mkv"
    with pytest.raises(InvalidOption, match=r"\.gif.*\.mp4"):
        output_suffix(".gif")


def test_frames_come_in_the_order_of_their_showing(spoken: Path) -> None:
    with VideoReader(spoken) as reader:
        frames = list(reader.frames())
        info = reader.info
    assert (info.width, info.height, info.rate, info.frames, info.rotation) == (WIDTH, HEIGHT, 25, 25, 0)
    assert (info.audio, info.codec, info.seconds, info.aspect) == (1, "h264", 1.0, None)
    assert [frame.index for frame in frames] == list(range(25))
    assert [frame.seconds for frame in frames] == pytest.approx([index / 25 for index in range(25)])
    assert all(frame.pixels.shape == (HEIGHT, WIDTH, 3) and frame.pixels.dtype == np.uint8 for frame in frames)
    for frame in frames:  # B-frames are stored in another order
        assert abs(frame.pixels[24, 32].astype(int) - (40 + 4 * frame.index)).max() <= 3


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_times_and_sound_are_kept(tmp_path: Path, suffix: str) -> None:
    vp9 = suffix == ".webm"
    source = clip(tmp_path / f"in{suffix}", codec="libvpx-vp9" if vp9 else "libx264", sound="libopus" if vp9 else "aac")
    target = tmp_path / f"out{suffix}"
    assert copy(source, target) is None
    assert times(target) == times(source)
    assert packets(target) == packets(source)
    with av.open(str(target)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert container.streams.video[0].codec_context.name == ("vp9" if vp9 else "h264")
        assert container.streams.audio[0].metadata["language"] == "ger"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_varying_rate_and_a_late_begin_are_kept(tmp_path: Path, suffix: str) -> None:
    milliseconds = (500 + np.cumsum([0, 20, 40, 11, 300, 33, 34, 33, 100, 7, 40, 40])).tolist()
    source = clip(
        tmp_path / f"in{suffix}", count=12, times=milliseconds, clock=Fraction(1, 1000), sound="aac", sound_first=True
    )
    assert times(source) == [Fraction(ms, 1000) for ms in milliseconds]
    target = tmp_path / f"out{suffix}"
    copy(source, target)
    assert times(target) == times(source)
    assert packets(target) == packets(source)


def test_an_ntsc_clock_is_kept_exactly(tmp_path: Path) -> None:
    clock = Fraction(1001, 30_000)
    source = clip(tmp_path / "in.mp4", times=range(25), clock=clock)
    copy(source, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == [index * clock for index in range(25)]


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_a_turned_video_is_read_upright_and_written_unturned(tmp_path: Path, rotation: int) -> None:
    """rotation: counterclockwise, as PyAV and FFmpeg count; NumPy too."""
    source = clip(tmp_path / "in.mp4", count=3, rotation=rotation, aspect=Fraction(4, 3))
    copy(source, tmp_path / "out.mp4")
    expected = np.rot90(picture(0), rotation // 90)
    for path, degrees in ((source, -rotation % 360), (tmp_path / "out.mp4", 0)):
        with VideoReader(path) as reader:
            first = next(iter(reader.frames())).pixels
            assert reader.info.rotation == degrees
            assert (reader.info.height, reader.info.width) == expected.shape[:2]
            assert reader.info.aspect == (Fraction(4, 3) if rotation in (0, 180) else Fraction(3, 4))
        assert_alike(first, expected)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_a_mirrored_video_is_read_upright(tmp_path: Path) -> None:
    assert_alike(pixels(clip(tmp_path / "in.mp4", count=2, mirrored=True))[0], picture(0)[:, ::-1])


@pytest.mark.parametrize(("degrees", "said"), [(88, False), (45, True)])
def test_a_turn_by_other_than_quarters_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, degrees: int, said: bool
) -> None:
    VideoReader(clip(tmp_path / "in.mp4", count=1, rotation=degrees)).__exit__(None, None, None)
    assert ("turned by other than quarters" in caplog.text) == said


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("sample_range", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT709, BT601, BT2020])
def test_colours_survive_and_are_tagged(tmp_path: Path, matrix: int, sample_range: int, suffix: str) -> None:
    flat = np.full((HEIGHT, WIDTH, 3), RED, np.uint8)
    info = replace(INFO, colour=Colour(matrix, sample_range, 1, 1))
    path = write(tmp_path / f"a{suffix}", flat, flat, flat, info=info)
    with av.open(str(path)) as container:  # the samples are what the tags say, by H.273's own arithmetic
        samples = [int(bytes(plane)[0]) for plane in next(container.decode(video=0)).planes]
    red, green, blue = np.array(RED) / 255
    kr, kb = MATRICES[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    expected = np.array([luma, (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)])
    scale, offset = ((219, 224, 224), (16, 128, 128)) if sample_range == LIMITED else ((255,) * 3, (0, 128, 128))
    np.testing.assert_allclose(samples, expected * scale + offset, atol=1.5)
    with VideoReader(path) as reader:
        assert reader.info.colour.matrix == matrix or (matrix, suffix) == (BT601, ".webm")  # VP9 calls it SMPTE 170M
        assert reader.info.colour.range == sample_range
    assert abs(pixels(path)[0].astype(int) - RED).max() <= 3


@pytest.mark.parametrize(("size", "matrix"), [((WIDTH, HEIGHT), BT601), ((1280, 64), BT709), ((64, 1280), BT709)])
def test_without_tags_the_matrix_is_that_of_the_size(tmp_path: Path, size: tuple[int, int], matrix: int) -> None:
    tagged, bare = (tmp_path / name for name in ("tagged.mkv", "bare.mkv"))
    info = replace(INFO, width=size[0], height=size[1])
    flat = np.full((size[1], size[0], 3), RED, np.uint8)
    for path, colour in ((tagged, Colour(matrix, LIMITED)), (bare, Colour())):
        write(path, flat, info=replace(info, colour=colour))
    assert packets(tagged, "video")[0][1][-200:] == packets(bare, "video")[0][1][-200:]
    with VideoReader(bare) as reader:
        assert (reader.info.colour.matrix, reader.info.colour.range) == (2, 0)
    assert abs(pixels(bare)[0].astype(int) - RED).max() <= 3


def test_conversion_neither_darkens_nor_moves_colours(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:64, :64] / 63
    gradient = (np.stack([rows, columns, 1 - rows * columns], 2) * 255).astype(np.uint8)
    path = write(tmp_path / "a.mkv", gradient, info=replace(INFO, width=64, height=64), crf=1)
    off = pixels(path)[0].astype(float) - gradient
    assert abs(off.mean(axis=(0, 1))).max() < 0.5
    assert np.sqrt((off**2).mean()) < 1.2


def test_ten_bits_and_rgb_samples_are_read(tmp_path: Path) -> None:
    deep = clip(tmp_path / "deep.mkv", count=2, pixel_format="yuv420p10le")
    rgb = clip(tmp_path / "rgb.mov", count=2, codec="png", pixel_format="rgb24")
    (first, _), depth = pixels(deep), VideoReader(deep).info.depth
    assert (first.dtype, depth) == (np.uint16, 10)
    assert_alike((first >> 8).astype(np.uint8), picture(0))
    assert_alike(pixels(rgb)[0], picture(0))
    with VideoReader(rgb) as reader:
        assert reader.info.colour.matrix == BT709
    copy(rgb, tmp_path / "out.mov")
    assert_alike(pixels(tmp_path / "out.mov")[0], picture(0))


@pytest.mark.parametrize(("codec", "size"), [("h264", (64, 50)), ("vp9", (63, 49))])
def test_an_odd_size_is_padded_only_where_the_codec_needs_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, size: tuple[int, int]
) -> None:
    frame = picture(0, 63, 49)
    read = pixels(write(tmp_path / "a.mkv", frame, info=replace(INFO, width=63, height=49), codec=codec))[0]
    assert read.shape == (size[1], size[0], 3)
    assert_alike(read[:49, :63], frame)
    assert abs(read[-1].astype(int) - read[-2]).max() <= 8  # no black border
    assert caplog.messages == (["h264 needs even sizes: 63 x 49 becomes 64 x 50"] if codec == "h264" else [])


def test_an_odd_source_is_read(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", count=2, size=(63, 49), pixel_format="yuv444p")
    assert pixels(path)[1].shape == (49, 63, 3)


def test_metadata_are_kept_or_dropped(tmp_path: Path, spoken: Path) -> None:
    for keep in (True, False):
        copy(spoken, tmp_path / "out.mp4", keep_metadata=keep)
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert container.metadata.get("title") == ("Two faces" if keep else None)
            assert container.streams.audio[0].metadata["language"] == "ger"


def test_what_phones_and_titles_say_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = {"com.apple.quicktime.location.ISO6709": "+37.1-122.1/", "com.apple.quicktime.model": "phone"}
    source = clip(tmp_path / "in.mov", count=2, options={"movflags": "use_metadata_tags"}, metadata=said)
    copy(source, tmp_path / "out.mov")
    with av.open(str(tmp_path / "out.mov")) as container:
        assert said.items() <= container.metadata.items()
    with av.open(str(tmp_path / "in.mp4"), "w") as output:
        stream: Any = output.add_stream("libx264", 25, width=WIDTH, height=HEIGHT)
        stream.metadata.update({"language": "jpn", "title": "main"})
        part = {"id": 1, "start": 0, "end": 40, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
        output.set_chapters([part])  # type: ignore[list-item]
        encode(output, stream, [picture(0)])
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert {"language": "jpn", "name": "main"}.items() <= container.streams.video[0].metadata.items()
        assert [one["metadata"]["title"] for one in container.chapters()] == ["one"]
    assert not caplog.records


def test_further_streams_are_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as output:
        streams: Any = [output.add_stream("libx264", 25, width=WIDTH, height=HEIGHT) for _ in range(2)]
        for stream in streams:
            encode(output, stream, [picture(0)])
    copy(source, tmp_path / "out.mkv")
    assert caplog.messages == [f"{source}: its further streams (video) are left out"]


def test_an_mp4_can_be_played_while_it_loads(tmp_path: Path, spoken: Path) -> None:
    copy(spoken, tmp_path / "out.mp4")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_subtitles_fonts_and_chapters_are_kept_in_matroska(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "in.mkv"
    with av.open(str(source), "w") as output:
        stream: Any = output.add_stream("libx264", 25, width=WIDTH, height=HEIGHT)
        text = output.add_mux_stream("subrip", time_base=Fraction(1, 1000))
        text.disposition = Disposition.forced
        output.add_attachment("a.ttf", "font/ttf", b"letters")
        part = {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
        output.set_chapters([part])  # type: ignore[list-item]
        for index in range(10):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), "rgb24")))
        for begin in (80, 80, 200):  # two of them at one time
            packet: Any = av.Packet(f"line {begin}".encode())
            packet.stream, packet.pts, packet.dts, packet.duration = text, begin, begin, 100
            packet.time_base = Fraction(1, 1000)
            output.mux(packet)
        output.mux(stream.encode(None))
    copy(source, tmp_path / "out.mkv")
    assert packets(tmp_path / "out.mkv", "subtitles") == packets(source, "subtitles")
    assert len(packets(source, "subtitles")) == 3
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert [one["metadata"]["title"] for one in container.chapters()] == ["one"]
        assert container.streams.attachments[0].data == b"letters"
        assert container.streams.subtitles[0].disposition == Disposition.forced
    assert not caplog.records
    copy(source, tmp_path / "out.mp4")
    assert caplog.messages == [f"{source}: its subtitle (srt) is left out: .mp4 cannot hold it"]


@pytest.mark.parametrize(
    ("sound", "suffix", "expected"),
    [("pcm_s16le", ".mp4", "aac"), ("pcm_s16le", ".mkv", None), ("wmav2", ".mp4", "aac"), ("mp3", ".webm", "opus")],
)
def test_sound_is_encoded_anew_only_where_it_must(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sound: str, suffix: str, expected: str | None
) -> None:
    source = clip(tmp_path / "in.avi", codec="mpeg4", clock=Fraction(1, 25), sound=sound)
    target = tmp_path / f"out{suffix}"
    copy(source, target)
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.name == (expected or sound)
        decoded = [frame.to_ndarray() for frame in container.decode(audio=0)]
    if expected is None:
        assert caplog.messages == []
        assert b"".join(data for _, data in packets(target)) == b"".join(data for _, data in packets(source))
        return
    (message,) = caplog.messages
    assert message.startswith(f"{source}: its sound ({sound}")  # or the name of its decoder
    assert message.endswith(f") is re-encoded for {suffix}")
    wave = np.concatenate(decoded, axis=1)[0]
    assert len(wave) / 48_000 == pytest.approx(1, abs=0.15)
    assert abs(wave).max() == pytest.approx(0.3, abs=0.05)
    middle = wave[12_000:36_000]  # half a second: one bin is 2 Hz
    assert np.argmax(abs(np.fft.rfft(middle))) * 2 == 440
    assert np.sort(abs(np.diff(middle)))[-1] < 0.05  # no clicks


def test_sound_encoded_anew_runs_on_its_samples_and_keeps_gaps() -> None:
    copier = StreamCopy.__new__(StreamCopy)
    copier._clocks = {0: -(1 << 62)}
    begins = []
    for milliseconds in (500, 521, 543, None, 585, 2000, 2021):  # frames of 21.33 ms
        frame = av.AudioFrame(format="s16", layout="mono", samples=1024)
        frame.sample_rate, frame.pts, frame.time_base = 48_000, milliseconds, Fraction(1, 1000)
        frame = copier._timed(frame, 0)
        assert frame.time_base == Fraction(1, 48_000)
        begins.append(frame.pts)
    assert begins == [24_000, 25_024, 26_048, 27_072, 28_096, 96_000, 97_024]


def test_sound_is_not_gathered_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets reach the output side by side, in the order of their times."""
    source = clip(tmp_path / "in.mov", count=80, sound="pcm_s16le")
    written: list[tuple[str, Fraction]] = []

    class Spy:
        def __init__(self, output: Any) -> None:
            self.output = output

        def __getattr__(self, name: str) -> Any:
            return getattr(self.output, name)

        def mux(self, packet: Any) -> None:
            written.append((packet.stream.type, packet.dts * packet.time_base))
            self.output.mux(packet)

    with VideoReader(source) as reader, VideoWriter(tmp_path / "out.mov", ".mov", reader.info) as writer:
        monkeypatch.setattr(writer, "_output", Spy(writer._output))
        writer.copy_streams_from(reader)
        for frame in reader.frames():
            writer.write(frame.pixels, frame.pts, frame.time_base)
    video = [time for kind, time in written if kind == "video"]
    assert video == sorted(video)
    during = written[: written.index(("video", video[-1]))]
    assert len(during) > len(video) + 10
    now = video[0]
    for kind, time in during:
        now = time if kind == "video" else now
        assert abs(time - now) <= Fraction(1, 10)
    assert {kind for kind, _ in written} == {"video", "audio"}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_of_a_truncated_file_all_that_is_there_is_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    options = {"movflags": "faststart"} if suffix == ".mp4" else None
    codec, clock = ("mpeg4", Fraction(1, 25)) if suffix == ".avi" else ("libx264", CLOCK)
    whole = clip(tmp_path / f"whole{suffix}", count=50, codec=codec, clock=clock, options=options)
    expected = times(whole)
    assert caplog.messages == []
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: len(data) * (8 if suffix == ".avi" else 6) // 10])  # an AVI's header is half of this one
    damage = copy(cut, tmp_path / "out.mp4")
    assert damage is not None
    # FFmpeg takes the length of an AVI from what is left of it.
    assert damage.startswith("is damaged in " if suffix == ".avi" else "ends after ")
    kept = times(tmp_path / "out.mp4")
    assert 12 < len(kept) < 45
    assert kept == expected[: len(kept)]
    assert f"{cut} {damage}: what can be decoded is used; copy or download it again" in caplog.messages


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_that_begins_late_is_whole(tmp_path: Path, suffix: str) -> None:
    late = clip(tmp_path / f"late{suffix}", count=3, times=[(125 + i) * TICKS for i in range(3)])
    assert copy(late, tmp_path / "out.mkv") is None


def test_a_hole_costs_its_frames_only(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mp4", count=50, options={"movflags": "faststart"})
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 20] = np.random.default_rng(0).bytes(len(data) // 20)
    (tmp_path / "hole.mp4").write_bytes(data)
    damage = copy(tmp_path / "hole.mp4", tmp_path / "out.mp4")
    assert damage is not None
    assert damage.startswith("is damaged in ")
    kept = times(tmp_path / "out.mp4")
    assert 35 < len(kept) < 50
    assert kept[-1] == times(whole)[-1]  # what comes after it stays where it was


def test_what_is_missing_of_a_frame_is_concealed(tmp_path: Path) -> None:
    """H.264's decoder left there what lay in its memory: green, or parts of other pictures."""
    holed = tmp_path / "holed.ts"
    with av.open(str(holed), "w") as output:
        options = {"crf": "10", "x264-params": "slices=3:bframes=0:scenecut=0"}
        stream: Any = output.add_stream("libx264", 25, options, width=WIDTH, height=HEIGHT)
        stream.pix_fmt = "yuv420p"
        sent = [stream.encode(av.VideoFrame.from_ndarray(picture(index), "rgb24")) for index in range(8)]
        for index, packet in enumerate(chain(*sent, stream.encode(None))):
            units = bytes(packet).split(b"\0\0\1")
            less = av.Packet(b"\0\0\1".join(units[: -2 if index == 4 else None]))  # one slice of three is there
            less.pts, less.dts, less.time_base, less.stream = packet.pts, packet.dts, packet.time_base, stream
            output.mux(less)
    with VideoReader(holed) as reader:
        frames = list(reader.frames())  # all of them in memory at once, as beside the networks
    for index, frame in enumerate(frames):
        assert np.abs(frame.pixels.astype(int) - picture(index)).mean() < 12
    assert len(frames) == 8


@pytest.mark.parametrize("begin", [0, 10 * 3600 * 90_000, (1 << 33) - 90_000])  # from where its clock starts anew
def test_a_transport_stream_begins_at_0_wherever_its_clock_does(tmp_path: Path, begin: int) -> None:
    """Hours without a picture came first, and of a clock that starts anew nothing could be decoded."""
    plain, shifted, out = clip(tmp_path / "a.ts", count=10, sound="mp2"), tmp_path / "b.ts", tmp_path / "out.mp4"
    with av.open(str(plain)) as source, av.open(str(shifted), "w") as output:
        targets = {one.index: output.add_stream_from_template(one) for one in source.streams}
        for packet in (one for one in source.demux() if one.dts is not None):
            packet.stream = targets[packet.stream_index]
            packet.pts, packet.dts = packet.pts + begin, packet.dts + begin
            output.mux(packet)
    assert copy(shifted, out) is None
    first = times(out)
    assert 0 <= first[0] < Fraction(1, 5)
    assert [time - first[0] for time in first] == pytest.approx([index / 25 for index in range(10)], abs=1e-4)
    assert abs(packets(out)[0][0] - first[0]) == pytest.approx(
        abs(packets(plain)[0][0] - packets(plain, "video")[0][0]), abs=1e-2
    )


def test_a_pause_of_an_hour_is_kept(tmp_path: Path) -> None:
    """Frames that are reordered over it have decoding times an hour before."""
    frames = [*range(9), *range(90_000, 90_009)]
    paused = clip(tmp_path / "in.mp4", count=18, times=[frame * TICKS for frame in frames])
    copy(paused, tmp_path / "out.mkv")
    assert [round(time * 25) for time in times(tmp_path / "out.mkv")] == frames


def test_a_size_that_changes_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small, large = (clip(tmp_path / f"{side}.ts", count=3, size=(side, 64)) for side in (64, 128))
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    assert {frame.shape for frame in pixels(tmp_path / "both.ts")} == {(64, 64, 3)}
    assert "changes its size: all frames are scaled" in caplog.text


def test_a_clock_that_goes_back_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = clip(tmp_path / "one.ts", sound="aac").read_bytes()
    (tmp_path / "joined.ts").write_bytes(one + one)
    assert len(times(tmp_path / "joined.ts")) == 50
    assert "its clock goes back by 1.0 s" in caplog.text


def test_grey_samples_have_no_finer_colours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels(clip(tmp_path / "grey.mkv", count=2, codec="ffv1", pixel_format="gray"))
    assert caplog.messages == []


def test_what_is_no_video_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("A letter.\n" * 100)
    (tmp_path / "empty.mp4").touch()
    clip(tmp_path / "gif.mp4.gif", count=2, codec="gif", pixel_format="rgb8").rename(tmp_path / "gif.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        _sine(output, output.add_stream("aac", 48_000, layout="stereo"), 0.1)
    clip(tmp_path / "a.avi", count=2, codec="ffvhuff", clock=Fraction(1, 25))
    for name, error, said in (
        ("gone.mp4", InputNotFound, r"gone\.mp4"),
        ("", InvalidImage, "is not a file but a folder"),
        ("empty.mp4", InvalidImage, r"empty\.mp4 is empty"),
        ("text.mp4", InvalidImage, r"text\.mp4.*\.mp4, "),
        ("gif.mp4", InvalidImage, r"gif\.mp4.*\.mp4, "),
        ("sound.mp4", InvalidImage, r"sound\.mp4"),
        ("a.avi", InvalidImage, r"a\.avi.*ffvhuff.*convert"),  # a codec that is not listed
    ):
        with pytest.raises(error, match=said):
            VideoReader(tmp_path / name)


def test_a_file_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path, spoken: Path) -> None:
    data = spoken.read_bytes()
    begin = data.index(b"mdat") + 4
    for damaged in (data[:begin] + bytes(len(data) - begin), data[:200]):
        (tmp_path / "a.mp4").write_bytes(damaged)
        with pytest.raises(InvalidImage, match=r"a\.mp4"):
            VideoReader(tmp_path / "a.mp4")


def test_too_many_pixels_are_refused_before_they_are_decoded(spoken: Path) -> None:
    with pytest.raises(InvalidImage, match=r"64 x 48.* 3071"):
        VideoReader(spoken, max_pixels=WIDTH * HEIGHT - 1)
    VideoReader(spoken, max_pixels=4096).__exit__(None, None, None)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile secret.mkv\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.mkv\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>secret.mkv</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
    ids=["concat", "hls", "dash", "sdp"],
)
def test_a_playlist_in_disguise_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, playlist: str) -> None:
    clip(tmp_path / "secret.mkv", count=2)
    (tmp_path / "list.mp4").write_text(playlist)
    monkeypatch.chdir(tmp_path)
    if playlist.startswith("ffconcat"):  # opened without care, FFmpeg does follow it
        with av.open(io.FileIO("list.mp4")) as container:
            assert next(container.decode(video=0)).width == WIDTH
    with pytest.raises(InvalidImage, match=r"list\.mp4"):
        VideoReader(Path("list.mp4"))


@pytest.mark.parametrize(
    ("suffix", "options", "said"),
    [
        (".avi", {}, r"'\.avi'.*choose one of \.mp4, \.mov, \.mkv, \.webm"),
        (".mp4", {"codec": "av2"}, r"'av2' is not offered: choose --codec h264 or hevc or vp9"),
        (".webm", {"codec": "h264"}, r"\.webm.*h264.*--codec vp9"),
        (".mp4", {"crf": 52}, r"crf 52.* 0 and 51.*h264"),
        (".mp4", {"crf": "20"}, "crf '20' is not accepted: a whole number"),
    ],
)
def test_options_out_of_range_name_the_remedy(tmp_path: Path, suffix: str, options: Any, said: str) -> None:
    with pytest.raises(InvalidOption, match=said):
        VideoWriter(tmp_path / "a.part", suffix, INFO, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["libx264", "libx265"])
def test_an_encoder_that_ffmpeg_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without H.264's nothing is written; without HEVC's ten bits become H.264."""
    chosen = [video_codecs.default_codec(suffix, depth) for suffix in (".mp4", ".webm") for depth in (8, 10)]
    assert chosen == ["h264", "hevc", "vp9", "vp9"]

    def absent(name: str, mode: str) -> Codec:
        if name == missing:
            raise av.codec.codec.UnknownCodecError(name)
        return Codec(name, mode)

    monkeypatch.setattr(video_codecs, "Codec", absent)
    if missing == "libx265":
        assert video_codecs.default_codec(".mp4", 10) == "h264"
        return
    with pytest.raises(MissingDependency, match=r"libx264.*--codec.*\[video\]"):
        VideoWriter(tmp_path / "a.part", ".mp4", INFO)
    assert not list(tmp_path.iterdir())


def test_every_container_has_a_codec() -> None:
    assert all(any(suffix in encoder.suffixes for encoder in CODECS.values()) for suffix in OUTPUT_SUFFIXES)


def test_crf_is_handed_on(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    sizes = {}
    for codec in CODECS:
        for crf in (10, 40):
            sizes[codec, crf] = write(tmp_path / f"{crf}.mkv", noise, codec=codec, crf=crf).stat().st_size
    assert all(sizes[codec, 10] > 1.5 * sizes[codec, 40] for codec in CODECS)


def test_a_frame_of_another_size_is_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(48, 60, 3\).*64 x 48"):
        write(tmp_path / "a.mkv", picture(0), picture(0)[:, :60])


def test_an_interrupted_writer_leaves_nothing_under_the_name(tmp_path: Path, spoken: Path) -> None:
    def restore() -> None:
        with (
            VideoReader(spoken) as reader,
            atomic_path(tmp_path / "a.mp4") as temporary,
            VideoWriter(temporary, ".mp4", reader.info) as writer,
        ):
            writer.copy_streams_from(reader)
            for frame in reader.frames():
                writer.write(frame.pixels, frame.pts, frame.time_base)
                if frame.index == 10:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    noise = np.random.default_rng(0).integers(0, 256, (60, HEIGHT, WIDTH, 3), np.uint8)

    def fill() -> None:
        with atomic_path(tmp_path / "a.mkv") as temporary:
            temporary.symlink_to("/dev/full")
            with VideoWriter(temporary, ".mkv", INFO) as writer:
                for index, frame in enumerate(noise):
                    writer.write(frame, index * TICKS, CLOCK)

    with pytest.raises(WriteFailed, match=r"a\.mkv.*full"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_times_that_stand_still_are_moved_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip(tmp_path / "a.mkv", count=5)
    with VideoReader(path) as reader:
        stored = [0, 40, 40, 30, None]

        class Broken:
            def __init__(self, frame: Any, pts: int | None) -> None:
                self.frame, self.pts = frame, pts

            def __getattr__(self, name: str) -> Any:
                return getattr(self.frame, name)

        first, *rest = [
            Broken(frame, pts) for frame, pts in zip([reader._first, *reader._decoded], stored, strict=True)
        ]
        monkeypatch.setattr(reader, "_first", first)
        monkeypatch.setattr(reader, "_decoded", iter(rest))
        assert [frame.pts for frame in reader.frames()] == [0, 40, 41, 42, 82]


def test_an_hdr_source_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.mkv", picture(0), info=replace(INFO, colour=Colour(BT2020, LIMITED, 9, 16)))
    with caplog.at_level(logging.WARNING):
        VideoReader(path).__exit__(None, None, None)
    hdr = f"{path} is HDR: networks know no HDR, its faces may come out too dark or too bright"
    assert caplog.messages == [hdr]
    path = tmp_path / "b.mkv"
    light = {"x265-params": "log-level=error:max-cll=1000,400"}
    clip(path, count=1, codec="libx265", pixel_format="yuv420p10le", encoding=light)
    VideoReader(path).__exit__(None, None, None)
    assert caplog.messages == [hdr, f"{path}: its HDR10 metadata cannot be written and is lost"]


CONTAINERS = [
    (".3gp", "libx264", None),
    (".ts", "libx264", None),
    (".mts", "libx264", "mpegts"),
    (".m2ts", "libx264", "mpegts"),
    (".mpg", "mpeg2video", "vob"),
    (".mpeg", "mpeg1video", None),
    (".wmv", "wmv2", "asf"),
]


@pytest.mark.parametrize(("suffix", "codec", "muxer"), CONTAINERS)
def test_further_containers_are_read_by_their_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str, muxer: str | None
) -> None:
    """Also under another name."""
    source = clip(tmp_path / f"in{suffix}", codec=codec, muxer=muxer, clock=Fraction(1, 25))
    assert suffix_of(source.read_bytes()[:HEAD]) in SUFFIXES
    disguised = source.rename(tmp_path / "in.mp4")
    assert copy(disguised, tmp_path / "out.mp4") is None
    assert caplog.messages == []
    found = times(tmp_path / "out.mp4")
    assert len(found) == 25
    assert np.diff([float(time) for time in found]) == pytest.approx(0.04, abs=0.002)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("last", [40, 2660])
def test_the_last_frame_keeps_its_duration(tmp_path: Path, suffix: str, last: int) -> None:
    """Through two generations, beside frames that an encoder reorders, at a varying rate."""
    milliseconds = [0, 40, 80, 120, 160, 200, 240, 700]
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    clock = Fraction(1, 1000)
    with VideoWriter(first, suffix, replace(INFO, time_base=clock)) as writer:
        for index, time in enumerate(milliseconds):
            writer.write(picture(index), time, clock, last if time == 700 else 40)
    copy(first, second)
    for path in (first, second):
        assert [round(1000 * time) for time in times(path)] == milliseconds
        with VideoReader(path) as reader:
            *_, end = reader.frames()
        assert end.duration * end.time_base == Fraction(last, 1000)
        with av.open(str(path)) as container:
            assert container.duration == 1000 * (700 + last)


def test_of_a_cut_file_every_whole_packet_gives_a_frame(tmp_path: Path) -> None:
    """Without reordering; threads that decode a frame each would lose the last ones."""
    path = clip(tmp_path / "a.mp4", count=40, encoding={"bf": "0"}, options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    whole = path.read_bytes()
    for count in (5, 23, 39):
        path.write_bytes(whole[: ends[count - 1] + 3])
        with VideoReader(path) as reader:
            frames = list(reader.frames())
        assert len(frames) == count
        assert frames[-1].duration * frames[-1].time_base == Fraction(1, 25)  # not what the header says of the whole


def test_ten_bits_stay_ten_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A ramp finer than 8 bits can tell."""
    ramp = np.repeat(np.linspace(20_000, 24_000, WIDTH).astype(np.uint16)[None, :, None], HEIGHT, axis=0)
    for suffix in (".mp4", ".mkv"):
        target = tmp_path / f"b{suffix}"
        copy(write(tmp_path / f"a{suffix}", np.repeat(ramp, 3, axis=2), info=replace(INFO, depth=10), crf=2), target)
        with VideoReader(target) as reader:
            assert (reader.info.depth, reader.info.codec) == (10, "hevc")
            (frame,) = reader.frames()
        assert len(np.unique(frame.pixels[HEIGHT // 2, :, 1] >> 6)) > 40  # 16 with 8 bits
        assert np.abs(frame.pixels.astype(int) - ramp)[8:-8, 8:-8].max() < 400
    assert caplog.messages == []
    with VideoReader(tmp_path / "a.mp4") as reader, VideoWriter(tmp_path / "c.mp4", ".mp4", reader.info, codec="h264"):
        pass
    assert caplog.messages == ["h264 is written with 8 bits a sample here: hevc keeps 10, in .mp4, .mov and .mkv"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_videos_of_one_to_three_frames_are_written_whole(tmp_path: Path, codec: str, count: int) -> None:
    path = write(tmp_path / "a.mkv", *map(picture, range(count)), codec=codec)
    assert [float(time) for time in times(path)] == pytest.approx([0.0, 0.04, 0.08][:count])


def test_a_transparent_video_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("png", 25, width=WIDTH, height=HEIGHT)
        stream.pix_fmt = "rgba"
        frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 4), 99, np.uint8), "rgba")
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    VideoReader(path).__exit__(None, None, None)
    assert caplog.messages == [
        f"{path} is transparent in places: that is lost, and hidden colours show",
        f"{path} has finer colours (rgba) than are written (4:2:0)",
    ]
