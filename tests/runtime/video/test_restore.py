"""Whole videos: every frame is restored, a face keeps its noise, and what cannot be finished leaves nothing."""

import json
import signal
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from films import encode
from interpreter import python
from numpy.typing import NDArray

from bfr.runtime.errors import InvalidImage, InvalidOption, RestorationFailed
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.jobs.cards import preview_paths
from bfr.runtime.jobs.report import REPORT, Report
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import find_images
from bfr.runtime.options import bounds, choices
from bfr.runtime.video.codecs import CODECS
from bfr.runtime.video.follow import EVERY
from bfr.runtime.video.formats import Colour, VideoInfo
from bfr.runtime.video.frames import Frame, Samples
from bfr.runtime.video.read import VideoReader
from bfr.runtime.video.restore import restore_video
from bfr.runtime.video.write import VideoWriter

Array = NDArray[Any]
Maker = Callable[..., PhotoRestorer]
WIDTH, HEIGHT, SIDE = 160, 64, 32
FACE, BAD_FACE = (230, 30, 30), (230, 30, 230)
MILLISECONDS = Fraction(1, 1000)
INFO = VideoInfo(WIDTH, HEIGHT, Fraction(25), None, None, 0, 0, "", MILLISECONDS, Colour(1, 1, 1, 1))


def drawn(*squares: tuple[int, int, tuple[int, int, int]], across: bool = True) -> Array:
    """A frame: bands of green from left to right, or of blue from top to bottom, and squares at (left, top)."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    if across:
        frame[..., 1] = np.linspace(40, 200, WIDTH).astype(np.uint8)[None]
    else:
        frame[..., 2] = np.linspace(200, 40, HEIGHT).astype(np.uint8)[:, None]
    for left, top, colour in squares:
        frame[top : top + SIDE, left : left + SIDE] = colour
    return frame


def moving(count: int) -> list[Array]:
    """A face that moves by two pixels a frame."""
    return [drawn((8 + 2 * index, 16, FACE)) for index in range(count)]


def clip(
    path: Path,
    frames: Sequence[Array],
    *,
    times: Sequence[int] | None = None,
    sound: bool = False,
    speed: str = "fast",
    crf: int = 6,
) -> Path:
    """A video at 25 frames a second, or with the given times in milliseconds; `sound` is a tone."""
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", container_options=options) as output:
        stream: Any = output.add_stream("libx264", 25, {"crf": str(crf), "preset": speed}, width=WIDTH, height=HEIGHT)
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", MILLISECONDS
        track: Any = output.add_stream("aac", 48_000, layout="mono") if sound else None
        encode(output, stream, frames, times or range(0, 40 * len(frames), 40), MILLISECONDS)
        for begin in range(0, 48_000 * len(frames) // 25 if sound else 0, 1024):
            wave = np.sin(np.arange(begin, begin + 1024, dtype=np.float32) / 20)[None]
            heard = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
            heard.sample_rate, heard.pts, heard.time_base = 48_000, begin, Fraction(1, 48_000)
            output.mux(track.encode(heard))
        if sound:
            output.mux(track.encode(None))
    return path


def shown(path: Path) -> list[tuple[float, Array]]:
    with VideoReader(path) as reader:
        return [(frame.seconds, frame.pixels) for frame in reader.frames()]


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        packets = container.demux(audio=0)
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in packets if packet.pts is not None]


def assert_restored(frame: Array, left: int, top: int, restored: Any) -> None:
    """In the middle of a square."""
    middle = frame[top + 12 : top + 20, left + 12 : left + 20].astype(int)
    assert np.abs(middle - np.array(restored)).max() <= 12


def keys_of(worker: PhotoRestorer) -> list[int | None]:
    return [key for call in worker.restorer.calls for key in call]  # type: ignore[attr-defined]


def test_a_video_is_not_its_own_target(photo: Maker, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4", moving(2))
    before = source.read_bytes()
    (tmp_path / "link.mp4").symlink_to(source)
    for target in (source, tmp_path / "link.mp4"):
        with pytest.raises(InvalidOption, match="is the source and would be overwritten"):
            restore_video(photo(), source, target)
    with pytest.raises(InvalidOption, match="make a PhotoRestorer"):
        restore_video(photo().restorer, source, tmp_path / "b.mp4")  # type: ignore[arg-type]
    assert source.read_bytes() == before
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_every_frame_is_restored_at_its_time_and_the_sound_is_kept(
    photo: Maker, tmp_path: Path, fakes: Any, suffix: str
) -> None:
    times = np.cumsum([0, 40, 40, 20, 100, 40, 33, 47, 300, 40]).tolist()
    source, target = clip(tmp_path / f"a{suffix}", moving(10), times=times, sound=True), tmp_path / f"new/b{suffix}"
    told: list[float] = []
    film = restore_video(photo(), str(source), str(target), progress=told.append)  # paths or text
    assert (film.width, film.height, film.frames, film.faces, film.tracks) == (WIDTH, HEIGHT, 10, 10, 1)
    assert film.error is None
    assert {"decode", "find", "crop", "network", "paste", "encode"} <= film.seconds.keys()
    before, after = shown(source), shown(target)
    assert [seconds for seconds, _ in after] == [seconds for seconds, _ in before] == [ms / 1000 for ms in times]
    assert sound_of(target) == sound_of(source) != []
    for index, ((_, old), (_, new)) in enumerate(zip(before, after, strict=True)):
        assert_restored(new, 8 + 2 * index, 16, fakes.restored)
        assert np.abs(new[:, 100:].astype(int) - old[:, 100:]).mean() < 3
    assert film.stills is not None
    assert np.array_equal(film.stills[0], before[0][1])
    assert_restored(film.stills[1], 8, 16, fakes.restored)
    assert told == sorted(told)
    assert len(told) == 10
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_face_keeps_its_noise_through_all_frames(photo: Maker, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4", moving(8))
    worker = photo()
    restore_video(worker, source, tmp_path / "b.mp4")
    assert keys_of(worker) == [0] * 8
    worker = photo()
    restore_video(worker, source, tmp_path / "b.mp4", still_noise=False)
    assert keys_of(worker) == [None] * 8  # that of its pixels, which differ from frame to frame


@pytest.mark.parametrize(("most", "restored"), [(250, 3), (2, 4)])
def test_a_frame_that_is_shown_again_is_restored_once(
    photo: Maker, tmp_path: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch, most: int, restored: int
) -> None:
    monkeypatch.setattr("bfr.runtime.video.restore.MOST_REPEATS", most)
    frames = [drawn((8, 16, FACE))] * 4 + [drawn((40, 16, FACE)) for _ in range(5)]
    frames[0] = frames[0].copy()
    frames[0][0, 0] += 20  # far from the face: another frame all the same
    times = np.cumsum([0, 40, 20, 100, 40, 33, 47, 300, 40]).tolist()
    source, worker = clip(tmp_path / "a.mp4", frames, times=times, crf=0), photo()  # 0: no sample changes
    shares: list[float] = []
    film = restore_video(worker, source, tmp_path / "b.mp4", progress=shares.append)
    assert (len(keys_of(worker)), film.frames, film.faces) == (restored, 9, 9)
    assert shares == [count / 9 for count in range(1, 10)]  # a server counts the frames of a job by these
    after = shown(tmp_path / "b.mp4")
    assert [seconds for seconds, _ in after] == [ms / 1000 for ms in times]
    for index, (_, pixels) in enumerate(after):
        assert_restored(pixels, 8 if index < 4 else 40, 16, fakes.restored)


def test_between_key_frames_faces_are_warped(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    """After a cut faces are those of other people, with or without key frames."""
    frames = moving(10)
    frames[6:] = [drawn((8 + 2 * index, 16, FACE), across=False) for index in range(4)]  # a cut
    source, worker = clip(tmp_path / "a.mp4", frames), photo()
    assert restore_video(worker, source, tmp_path / "b.mp4").tracks == 2
    assert keys_of(worker) == [0] * 6 + [1] * 4
    worker = photo()
    film = restore_video(worker, source, tmp_path / "b.mp4", key_frames=4)
    assert keys_of(worker) == [0, 0, 1]  # frames 0, 4 and 6
    assert (film.frames, film.faces, film.warped, film.tracks) == (10, 10, 7, 2)
    assert {"flow", "warp"} <= film.seconds.keys()
    for index, (_, pixels) in enumerate(shown(tmp_path / "b.mp4")):
        assert_restored(pixels, 8 + 2 * (index if index < 6 else index - 6), 16, fakes.restored)


def test_two_people_have_noise_of_their_own(photo: Maker, tmp_path: Path) -> None:
    """Also where the one on the right comes first."""
    frames = [drawn((110 - index, 16, FACE)) for index in range(6)]
    for index in range(1, 6):
        frames[index][20:44, 10 + index : 34 + index] = FACE
    worker = photo(batch=2)
    film = restore_video(worker, clip(tmp_path / "a.mp4", frames), tmp_path / "b.mp4")
    assert (film.tracks, film.faces, film.frames) == (2, 11, 6)
    assert keys_of(worker) == [0, *([0, 1] * 5)]


def test_batches_go_across_frames(photo: Maker, tmp_path: Path) -> None:
    worker = photo(batch=4)
    film = restore_video(worker, clip(tmp_path / "a.mp4", moving(10)), tmp_path / "b.mp4")
    assert [len(call) for call in worker.restorer.calls] == [4, 4, 2]  # type: ignore[attr-defined]
    assert film.faces == 10
    assert len(shown(tmp_path / "b.mp4")) == 10


class TestSamples:
    """What no face touches is not converted; what is written has the source's bits and no colour of its own."""

    def test_a_grey_video_stays_grey(self, photo: Maker, tmp_path: Path) -> None:
        """The fake networks colour faces."""
        white = np.full(3, 250, np.uint8)
        frames = []
        for index in range(4):
            frame = np.repeat(drawn()[..., 1:2] // 2, 3, axis=2)
            frame[16 : 16 + SIDE, 40 + index : 40 + index + SIDE] = white
            frames.append(frame)
        film = restore_video(photo(), clip(tmp_path / "a.mp4", frames), tmp_path / "b.mp4")
        assert film.faces == 4
        for (_, old), (_, new) in zip(shown(tmp_path / "a.mp4"), shown(tmp_path / "b.mp4"), strict=True):
            assert np.abs(new.astype(int) - old).max() > 20  # it was restored
            assert np.ptp(new, axis=2).max() <= 3

    def test_outside_of_faces_samples_reach_the_encoder_as_they_are(
        self, photo: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written: list[Array] = []
        known = VideoWriter.write_samples

        def write_samples(writer: VideoWriter, samples: Samples, *times: Any) -> None:
            written.append(samples.planes)
            known(writer, samples, *times)

        monkeypatch.setattr(VideoWriter, "write_samples", write_samples)
        frames = [drawn((8 + 2 * index, 16, FACE)) if index % 4 else drawn() for index in range(8)]
        source = clip(tmp_path / "a.mp4", frames)
        restore_video(photo(), source, tmp_path / "b.mp4")
        with av.open(str(source)) as container:
            planes = [frame.to_ndarray() for frame in container.decode(video=0)]
        assert len(written) == 8
        for index, (old, new) in enumerate(zip(planes, written, strict=True)):
            assert np.array_equal(old[:HEIGHT, 80:], new[:HEIGHT, 80:])
            assert np.array_equal(old, new) == (index == 0)  # held for a frame or two where it is not drawn

    def test_ten_bits_stay_ten_bits(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        with VideoWriter(tmp_path / "a.mp4", ".mp4", replace(INFO, depth=10), crf=4) as writer:
            for index, pixels in enumerate(moving(3)):
                writer.write(pixels.astype(np.uint16) * 257, 40 * index, MILLISECONDS)
        film = restore_video(photo(), tmp_path / "a.mp4", tmp_path / "b.mp4")
        assert film.faces == 3
        assert film.stills is not None
        assert {one.dtype for one in film.stills} == {np.dtype(np.uint8)}
        with VideoReader(tmp_path / "b.mp4") as reader:
            assert (reader.info.depth, reader.info.codec) == (10, "hevc")
            for index, frame in enumerate(reader.frames()):
                assert_restored((frame.pixels >> 8).astype(np.uint8), 8 + 2 * index, 16, fakes.restored)

    def test_the_last_frame_keeps_its_duration(self, photo: Maker, tmp_path: Path) -> None:
        with VideoWriter(tmp_path / "a.mp4", ".mp4", INFO) as writer:
            for index, pixels in enumerate(moving(6)):
                writer.write(pixels, 40 * index, MILLISECONDS, 2000 if index == 5 else 40)
        restore_video(photo(), tmp_path / "a.mp4", tmp_path / "b.mp4")
        with av.open(str(tmp_path / "b.mp4")) as container:
            assert container.duration == 2_200_000

    @pytest.mark.parametrize("rotation", [90, 180])
    def test_turned_frames_are_converted_whole(self, photo: Maker, tmp_path: Path, fakes: Any, rotation: int) -> None:
        source = tmp_path / "a.mp4"
        stored = np.rot90(drawn((20, 16, FACE)), -rotation // 90)
        with av.open(str(source), "w") as output:
            stream: Any = output.add_stream("libx264", 25, {"crf": "6"}, width=stored.shape[1], height=stored.shape[0])
            stream.pix_fmt = "yuv420p"
            stream.set_display_rotation(rotation)
            encode(output, stream, [stored] * 3)
        assert restore_video(photo(), source, tmp_path / "b.mp4").faces == 3
        for _, pixels in shown(tmp_path / "b.mp4"):
            assert_restored(pixels, 20, 16, fakes.restored)


class TestWithoutFaces:
    @pytest.fixture
    def empty(self, tmp_path: Path) -> Path:
        return clip(tmp_path / "a.mp4", [drawn() for _ in range(4)], sound=True)

    def test_the_file_is_copied(self, photo: Maker, empty: Path, tmp_path: Path) -> None:
        film = restore_video(photo(), empty, tmp_path / "b.mp4")
        assert (film.frames, film.faces, film.error, film.stills) == (4, 0, None, None)
        assert (tmp_path / "b.mp4").read_bytes() == empty.read_bytes()

    @pytest.mark.parametrize(
        "asked", [{"metadata": False}, {"codec": "h264"}, {"crf": 30}, {"upscale": 2}, {"suffix": ".mkv"}]
    )
    def test_but_not_where_something_else_was_asked_for(
        self, photo: Maker, empty: Path, tmp_path: Path, asked: dict[str, Any]
    ) -> None:
        upscale, target = asked.pop("upscale", 1), tmp_path / f"b{asked.pop('suffix', '.mp4')}"
        restore_video(photo(upscale=upscale), empty, target, **asked)
        assert target.read_bytes() != empty.read_bytes()
        frames = shown(target)
        assert len(frames) == 4
        assert frames[0][1].shape == (HEIGHT * upscale, WIDTH * upscale, 3)


def test_the_result_is_enlarged(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    film = restore_video(photo(upscale=2), clip(tmp_path / "a.mp4", moving(3)), tmp_path / "b.mp4")
    assert (film.width, film.height) == (2 * WIDTH, 2 * HEIGHT)
    frames = shown(tmp_path / "b.mp4")
    for index, (_, frame) in enumerate(frames):
        assert frame.shape == (2 * HEIGHT, 2 * WIDTH, 3)
        assert_restored(frame, 2 * (8 + 2 * index) + 16, 48, fakes.restored)
    assert len(frames) == 3


def test_of_a_truncated_source_all_that_can_be_decoded_is_restored(photo: Maker, tmp_path: Path, fakes: Any) -> None:
    whole = clip(tmp_path / "a.mp4", moving(40)).read_bytes()
    source = tmp_path / "cut.mp4"
    source.write_bytes(whole[: len(whole) * 2 // 3])
    film = restore_video(photo(batch=4), source, tmp_path / "b.mp4")
    assert 10 < film.frames < 40
    assert str(film.error).startswith("the source ")
    frames = shown(tmp_path / "b.mp4")
    assert len(frames) == film.frames
    assert_restored(frames[9][1], 8 + 18, 16, fakes.restored)


def test_what_is_no_video_is_refused(photo: Maker, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(InvalidImage, match=r"a\.mp4"):
        restore_video(photo(), tmp_path / "a.mp4", tmp_path / "out/b.mp4")
    assert not list((tmp_path / "out").glob("*"))


class TestNotFinite:
    """P6."""

    def test_a_face_that_fails_stays_as_it_was_and_is_reported(self, photo: Maker, tmp_path: Path, fakes: Any) -> None:
        frames = [drawn((20, 16, FACE), *([(110, 16, BAD_FACE)] if index >= 2 else [])) for index in range(5)]
        film = restore_video(photo(batch=3), clip(tmp_path / "a.mp4", frames), tmp_path / "b.mp4")
        assert film.faces == 5
        assert str(film.error).startswith("3 of 8 faces failed, the first in frame 2: ")
        last = shown(tmp_path / "b.mp4")[-1][1]
        assert_restored(last, 20, 16, fakes.restored)
        assert np.abs(last[20:44, 114:138].astype(int) - BAD_FACE).max() < 25

    def test_nothing_is_written_where_all_fail(self, photo: Maker, tmp_path: Path) -> None:
        source = clip(tmp_path / "a.mp4", [drawn((20, 16, BAD_FACE)) for _ in range(3)])
        with pytest.raises(RestorationFailed, match="3 of 3"):
            restore_video(photo(), source, tmp_path / "out/b.mp4")
        assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("place", ["detect", "paste", "progress"])
def test_an_exception_on_the_way_leaves_nothing_and_the_next_run_works(
    photo: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: Any, place: str
) -> None:
    frames = [drawn((60 + index % 2, 16, FACE)) for index in range(90)]
    source, target = clip(tmp_path / "a.mp4", frames, speed="ultrafast"), tmp_path / "out/b.mp4"
    calls, begun = 0, 0
    late = 80  # the encoder holds frames back; of squares without texture, every frame is looked at

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls, begun
            calls += 1
            if calls == late:
                begun = sum(path.stat().st_size for path in target.parent.glob(".b.mp4.*.part"))
                raise ZeroDivisionError
            return function(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        worker = photo()
        if place == "detect":
            patch.setattr(worker.detector, "detect", failing(worker.detector.detect))
        elif place == "paste":
            patch.setattr(worker, "patches", failing(worker.patches))
        progress = failing(lambda _share: None) if place == "progress" else lambda _share: None
        with pytest.raises(ZeroDivisionError):
            restore_video(worker, source, target, progress=progress)
    assert begun > 0
    assert not list(target.parent.iterdir())
    assert restore_video(photo(), clip(tmp_path / "c.mp4", frames[:4]), target).frames == 4
    assert len(shown(target)) == 4


def test_a_killed_run_leaves_nothing_under_the_final_name_and_does_not_block(photo: Maker, tmp_path: Path) -> None:
    """P16. In a process of its own, with a detector that ends it when the encoder has given its first frames."""
    (tmp_path / "in").mkdir()
    source = clip(tmp_path / "in/a.mp4", [drawn((i, 16, (40, 60, 130))) for i in range(100)], speed="ultrafast")
    code = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from bfr.runtime.video.restore import restore_video
from bfr.runtime.faces.photo import PhotoRestorer
class Deadly:
    name, seen = "deadly", 0
    def detect(self, pixels):
        self.seen += 1
        if self.seen == 6:  # each time sixteen frames on
            os.kill(os.getpid(), signal.SIGKILL)
        return []
restore_video(PhotoRestorer(SimpleNamespace(batch=1, size=32, run=None), detector=Deadly()), *map(Path, sys.argv[1:]))
"""
    out = tmp_path / "out"
    python(code, source, out / "a.mp4", status=-signal.SIGKILL, timeout=120)
    left = [path.name for path in out.iterdir()]
    assert [name.startswith(".a.mp4.") and name.endswith(".part") for name in left] == [True]
    report = run_job(photo(), find_images([tmp_path / "in"], videos=True), JobOptions(out, resume=True))
    assert [entry.status for entry in report.entries] == ["no face"]
    assert {"a.mp4", REPORT} <= {path.name for path in out.iterdir()}
    assert not list(out.glob(".*"))
    assert len(shown(out / "a.mp4")) == 100


def test_key_frames_count_from_one(photo: Maker, tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4", [drawn((0, 16, (40, 60, 130)))])
    with pytest.raises(InvalidOption, match="key_frames"):
        restore_video(photo(), source, tmp_path / "b.mp4", key_frames=0)
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize("key_frames", [1, 8])
def test_memory_does_not_grow_with_the_length(
    photo: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key_frames: int
) -> None:
    """No more frames live than the pipeline lets fly, those between two looks, and those in hands at both ends."""
    worker = photo(batch=2)
    live, most, seen = 0, 0, 0
    made = Frame.__init__

    def died() -> None:
        nonlocal live
        live -= 1

    def counted(frame: Frame, *arguments: Any) -> None:
        nonlocal live, most, seen
        made(frame, *arguments)
        weakref.finalize(frame, died)
        live, seen = live + 1, seen + 1
        most = max(most, live)

    monkeypatch.setattr(Frame, "__init__", counted)
    frames = [drawn(*([(8 + index % 60, 16, FACE)] if index % 3 == 0 else [])) for index in range(100)]
    source = clip(tmp_path / "a.mp4", frames, speed="ultrafast")
    film = restore_video(worker, source, tmp_path / "b.mp4", key_frames=key_frames)
    assert film.frames == seen == 100
    assert most <= (2 * 2 + 1 + 1 + 1) + (key_frames - 1) + (EVERY + 1) + 3


class TestInARun:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "in").mkdir()
        return tmp_path / "in"

    def run(self, worker: PhotoRestorer, folder: Path, out: Path, **options: Any) -> Report:
        return run_job(worker, find_images([folder], videos=True, out=out), JobOptions(out, **options))

    def test_beside_photographs(self, photo: Maker, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        whole = clip(folder / "a.mp4", moving(40)).read_bytes()
        (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
        (folder / "a.mp4").unlink()
        clip(folder / "face.mkv", moving(4))
        clip(folder / "none.mp4", [drawn()] * 3)
        (folder / "text.webm").write_text("no video")
        clip(folder / "wrong.mp4", [drawn((20, 16, BAD_FACE))] * 2)
        av.VideoFrame.from_ndarray(drawn((40, 16, FACE)), "rgb24").to_image().save(folder / "still.png")
        told: list[float] = []
        items, options = find_images([folder], videos=True), JobOptions(out, html=True, compare=True)
        report = run_job(photo(), items, options, progress=lambda done, _name: told.append(done))
        entries = {Path(entry.source).name: entry for entry in report.entries}
        assert {name: entry.status for name, entry in entries.items()} == {
            "cut.mp4": "restored",
            "face.mkv": "restored",
            "none.mp4": "no face",
            "still.png": "restored",
            "text.webm": "failed",
            "wrong.mp4": "failed",
        }
        assert [name for name, entry in entries.items() if entry.error] == ["cut.mp4", "text.webm", "wrong.mp4"]
        face = entries["face.mkv"]
        assert (face.output, face.frames, face.faces, face.width, face.height) == ("face.mkv", 4, 4, WIDTH, HEIGHT)
        assert {"decode", "network", "encode"} <= face.seconds.keys()
        assert (out / "none.mp4").read_bytes() == (folder / "none.mp4").read_bytes()
        for path in preview_paths("face"):
            assert (out / path).is_file()
            assert path in (out / "report.html").read_text()
        assert (out / "face.compare.png").is_file()
        assert not (out / "wrong.mp4").exists()
        assert told == sorted(told)
        assert told[-1] == 6
        assert json.loads((out / REPORT).read_text())["network_seconds"] > 0
        again = self.run(photo(), folder, out, resume=True)
        assert again.count("skipped") == 4
        assert next(entry for entry in again.entries if entry.source.endswith("face.mkv")).frames == 4

    def test_the_codec_of_the_options(self, photo: Maker, folder: Path, tmp_path: Path) -> None:
        """One that a container cannot hold fails the video alone."""
        clip(folder / "a.mkv", moving(2))
        clip(folder / "b.mov", moving(2))
        report = self.run(photo(), folder, tmp_path / "out", codec="vp9", crf=40)
        assert [entry.status for entry in report.entries] == ["restored", "failed"]
        assert "--codec h264" in str(report.entries[1].error)
        with av.open(str(tmp_path / "out/a.mkv")) as container:
            assert container.streams.video[0].codec_context.name == "vp9"

    def test_the_options_know_the_codecs(self) -> None:
        assert set(choices(JobOptions.model_fields["codec"])) == set(CODECS)
        assert max(codec.worst_crf for codec in CODECS.values()) == bounds(JobOptions.model_fields["crf"])["le"]

    def test_warped_faces_are_counted(self, photo: Maker, folder: Path, tmp_path: Path) -> None:
        """Without key frames the settings are those of earlier versions, whose runs can thus be resumed."""
        out = tmp_path / "out"
        clip(folder / "a.mp4", moving(6))
        (entry,) = self.run(photo(), folder, out, key_frames=3).entries
        assert (entry.faces, entry.warped) == (6, 4)
        assert json.loads((out / REPORT).read_text())["images"][0]["warped"] == 4
        with pytest.raises(InvalidOption, match="key_frames: 3 then, None now"):
            self.run(photo(), folder, out, resume=True)
        too_large = self.run(photo(), folder, out, max_pixels=WIDTH * HEIGHT - 1)
        assert [entry.status for entry in too_large.entries] == ["failed"]
        assert "key_frames" not in too_large.settings
