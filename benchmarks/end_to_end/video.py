"""Video: speed, flicker and memory: `python -m bfr.benchmarks.end_to_end.video PORTRAIT --out DIR`.

A clip is made from a portrait: blurred and shrunk, panned by whole pixels, with new sensor noise in every frame. As the
movement is known, successive frames can be laid over each other exactly; what differs between them is flicker. It is
measured for the clip itself, for faces that keep their noise, and for noise drawn anew in each frame. Memory is that of
the process while a long clip is restored. Speed is that of clips of 1280 x 720, from file to file: of the portrait as
it is, and of one that talks and blinks, without key frames and with.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.environment import resident_bytes
from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.tables import page, table
from bfr.models.systems.mini.degrade import Degradation
from bfr.runtime.bundle.manifest import Precision
from bfr.runtime.errors import InputNotFound
from bfr.runtime.faces.geometry import Face, alignment, inverse, transform
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.faces.yunet import YuNet
from bfr.runtime.images.decode import read_image
from bfr.runtime.restore.restorer import Restorer
from bfr.runtime.video.formats import VideoInfo
from bfr.runtime.video.read import VideoReader
from bfr.runtime.video.restore import Film, restore_video
from bfr.runtime.video.write import VideoWriter

WIDTH, HEIGHT, RATE = 320, 240, 25
SENSOR = 2.0  # standard deviation of a frame's noise, grey levels
DEGRADATION = Degradation(blur=(2.5, 2.5), downsample=3.0, noise=6.0, jpeg=60)
CODEC_CRF = 4  # nearly lossless: the encoder's own flicker would hide what is measured
STAGES = ("decode", "find", "crop", "flow", "network", "warp", "paste", "encode")
KEY_FRAMES, SPARSE = (1, 4, 8, 16), 8
HD = (1280, 720)
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")  # whose flicker is measured


def shift(frame: int) -> tuple[int, int]:
    """Where the window lies in the portrait at a frame: a slow Lissajous curve of whole pixels."""
    return round(20 + 20 * np.sin(frame / 17)), round(12 + 12 * np.sin(frame / 11))


def frames(
    portrait: NDArray[np.uint8],
    count: int,
    rng: np.random.Generator,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    *,
    talks: bool = False,
) -> Iterator[NDArray[np.uint8]]:
    """(H, W, 3) uint8 RGB each, of a size in width and height."""
    width, height = size
    scale = max((width + 40) / portrait.shape[1], (height + 24) / portrait.shape[0])
    larger = (int(np.ceil(portrait.shape[1] * scale)), int(np.ceil(portrait.shape[0] * scale)))
    still = DEGRADATION.apply(np.asarray(cv2.resize(portrait, larger, interpolation=cv2.INTER_AREA), np.uint8), rng)
    face = max(YuNet().detect(still), key=lambda face: face.eye_distance) if talks else None
    for index in range(count):
        x, y = shift(index)
        shown = still if face is None else talking(still, face, index / RATE)
        window = shown[y : y + height, x : x + width] + rng.normal(0, SENSOR, (height, width, 3))
        yield np.clip(np.rint(window), 0, 255).astype(np.uint8)


def talking(still: NDArray[np.uint8], face: Face, seconds: float) -> NDArray[np.uint8]:
    """A picture whose mouth opens three times a second, for half of the time, and whose eyes blink every 1.6 s."""
    y, x = np.indices(still.shape[:2], np.float32)
    unit = face.eye_distance
    left, top = face.landmarks[3:].mean(axis=0)
    phrase = max(0.0, np.sin(2 * np.pi * 0.35 * seconds))
    opening = max(0.2 * unit * min(1.0, 2 * phrase) * (1 + np.sin(2 * np.pi * 3 * seconds)) / 2, 1e-3)
    across, below = (x - left) / (0.4 * unit), (y - top) / opening
    jaw = np.exp(-(across**2)) * np.clip(below, 0, 1) * np.exp(-(((y - top) / unit) ** 2))
    down = opening * jaw
    lids = max(0.0, 1 - abs(seconds % 1.6 - 0.1) / 0.1)
    for eye in face.landmarks[:2]:
        aside, low = (x - eye[0]) / (0.3 * unit), (y - eye[1]) / unit
        down += 0.22 * unit * lids * np.exp(-(aside**4)) * np.clip((low + 0.25) / 0.3, 0, 1) * (low < 0.06)
    rows = np.asarray(y - down, np.float32)
    moved = cv2.remap(still, np.asarray(x), rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = np.exp(-((across * 1.4) ** 4) - ((below - 0.5) * 2.4) ** 4)[..., None]
    return np.asarray(moved + inside * (np.array([60, 25, 25]) - moved), np.uint8)


def write_clip(
    path: Path,
    portrait: NDArray[np.uint8],
    count: int,
    seed: int,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    crf: int = CODEC_CRF,
    talks: bool = False,
) -> None:
    """A clip of `count` frames."""
    info = VideoInfo(*size, Fraction(RATE), None, None, 0, 0, "", Fraction(1, RATE))
    with VideoWriter(path, path.suffix, info, crf=crf) as writer:
        for index, pixels in enumerate(frames(portrait, count, np.random.default_rng(seed), size, talks=talks)):
            writer.write(pixels, index, Fraction(1, RATE))


def flicker(path: Path, place: tuple[slice, slice]) -> float:
    """Mean absolute difference of successive frames in grey levels, laid over each other, inside the face."""
    previous: NDArray[np.float32] | None = None
    differences = []
    with VideoReader(path) as reader:
        for frame in reader.frames():
            x, y = shift(frame.index)
            canvas = np.full((HEIGHT + 48, WIDTH + 80, 3), np.nan, np.float32)
            canvas[y : y + HEIGHT, x : x + WIDTH] = frame.pixels
            current = canvas[place]
            if previous is not None:
                differences.append(float(np.nanmean(np.abs(current - previous))))
            previous = current
    return float(np.mean(differences))


def measure_flicker(photo: PhotoRestorer, portrait: NDArray[np.uint8], count: int, folder: Path) -> dict[str, Any]:
    """The clip itself, with the noise of tracks, and with new noise in each frame."""
    clip = folder / "clip.mp4"
    write_clip(clip, portrait, count, 0)
    with VideoReader(clip) as reader:
        faces = photo.find(next(reader.frames()).pixels)
    matrix = alignment(faces[0].landmarks, 256) if faces else None
    if matrix is None:
        raise InputNotFound("no face can be aligned in the clip: choose another portrait")
    x0, y0 = shift(0)
    low, high = transform(inverse(matrix), np.array([(60, 60), (196, 220)])) + np.array([x0, y0])
    place = slice(round(low[1]), round(high[1])), slice(round(low[0]), round(high[0]))
    result: dict[str, Any] = {"frames": count, "clip": round(flicker(clip, place), 3)}
    for name, still, every in (("still_noise", True, 1), ("key_frames", True, SPARSE), ("new_noise", False, 1)):
        target = folder / f"{name}.mp4"
        film = restore_video(photo, clip, target, crf=CODEC_CRF, still_noise=still, key_frames=every)
        result[name] = {"flicker": round(flicker(target, place), 3), "faces": film.faces, "tracks": film.tracks}
    return result


def measure_memory(photo: PhotoRestorer, portrait: NDArray[np.uint8], count: int, folder: Path) -> dict[str, Any]:
    """Resident memory while a long clip is restored, at ten places of it."""
    clip = folder / "long.mp4"
    write_clip(clip, portrait, count, 1)
    samples: list[tuple[int, float]] = []

    def watch(share: float) -> None:
        done = round(share * count)
        if done // max(1, count // 10) > len(samples):
            samples.append((done, (resident_bytes() or 0) / 2**20))

    begin = time.perf_counter()
    film: Film = restore_video(photo, clip, folder / "restored.mp4", progress=watch)
    seconds = time.perf_counter() - begin
    return {
        "frames": film.frames,
        "faces": film.faces,
        "tracks": film.tracks,
        "seconds": round(seconds, 2),
        "rss_mib": [{"frame": frame, "mib": round(mib, 1)} for frame, mib in samples],
        "stages": {stage: round(film.seconds.get(stage, 0.0), 2) for stage in STAGES},
    }


def on_a_wall(portrait: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A portrait in the middle of a wall, so that the person is as tall as a frame of HD's shape."""
    height, width = portrait.shape[:2]
    wall = max(0, round(height * HD[0] / HD[1]) - width) // 2
    return np.asarray(cv2.copyMakeBorder(portrait, 0, 0, wall, wall, cv2.BORDER_REPLICATE), np.uint8)


def measure_speed(photo: PhotoRestorer, portrait: NDArray[np.uint8], count: int, folder: Path) -> list[dict[str, Any]]:
    """Frames a second, and milliseconds a frame by stage."""
    photo.restorer.run([np.zeros((photo.size, photo.size, 3), np.uint8)])
    rows = []
    for name, talks in (("still", False), ("talking", True)):
        clip = folder / f"{name}.mp4"
        write_clip(clip, portrait, count, 2, size=HD, crf=20, talks=talks)
        for every in KEY_FRAMES:
            target = folder / f"{name}_{every}.mp4"
            begin, cpu = time.perf_counter(), time.process_time()
            film = restore_video(photo, clip, target, key_frames=every)
            seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
            errors = face_errors(photo, target, folder / f"{name}_1.mp4") if every > 1 else []
            rows.append(
                {
                    "clip": name,
                    "key_frames": every,
                    "frames": film.frames,
                    "faces": film.faces,
                    "warped": film.warped,
                    "frames_a_second": round(film.frames / seconds, 2),
                    "cpu_ms": round(1000 * cpu / film.frames, 1),
                    "ms": {stage: round(1000 * film.seconds.get(stage, 0.0) / film.frames, 1) for stage in STAGES},
                    "psnr": _decibels(float(np.mean(errors))) if errors else None,
                    "worst_psnr": _decibels(max(errors)) if errors else None,
                }
            )
    return rows


def face_errors(photo: PhotoRestorer, video: Path, reference: Path) -> list[float]:
    """Squared levels by which each frame of a video of `measure_speed` differs from another's inside the face."""
    found: list[float] = []
    with VideoReader(video) as one, VideoReader(reference) as other:
        for frame, target in zip(one.frames(), other.frames(), strict=True):
            if not found:
                (left, top, right, bottom), at = photo.find(target.pixels)[0].box, shift(0)
            x, y = np.array(at) - shift(frame.index)
            place = slice(round(top + y), round(bottom + y)), slice(round(left + x), round(right + x))
            found.append(float(np.mean((frame.pixels[place].astype(np.float32) - target.pixels[place]) ** 2)))
    return found


def _decibels(error: float) -> float:
    """PSNR of a mean squared error in levels, which is not 0."""
    return round(10 * float(np.log10(255**2 / error)), 2)


def as_markdown(figures: dict[str, Any]) -> str:
    """Render the tables as Markdown."""
    moving, memory = figures["flicker"], figures["memory"]
    at = memory["rss_mib"]
    first, *_ = moving.values()
    itself = f"the clip itself (new sensor noise of {SENSOR} levels in each frame)"
    rows: list[list[object]] = [[itself, *(one["clip"] for one in moving.values())]]
    kinds = {
        "still_noise": "a track keeps its noise",
        "key_frames": f"`--key-frames {SPARSE}`",
        "new_noise": "new noise in each frame",
    }
    for name, words in kinds.items():
        flickers = (one[name]["flicker"] for one in moving.values())
        rows.append([f"restored, {words}", *flickers, first[name]["faces"], first[name]["tracks"]])
    looks = ", ".join(f"{look['mib']} MiB at frame {look['frame']}" for look in (at[0], at[len(at) // 2], at[-1]))
    large, *_ = speeds = figures["speed"]
    return page(
        "# Video",
        f"Speed, {large['frames']} frames of {HD[0]} x {HD[1]} with one face, preset `fast`, from file to file. "
        "PSNR is that inside the face against the result without key frames, both encoded: mean, and worst frame. The "
        "still face is a portrait that pans; the talking one opens its mouth three times a second, and blinks:",
        table(
            ["face, `--key-frames`", "warped", "frames/s", "CPU ms a frame", "PSNR, worst"],
            [
                [
                    f"{one['clip']}, {one['key_frames']}",
                    f"{one['warped'] / one['faces']:.0%}",
                    one["frames_a_second"],
                    one["cpu_ms"],
                    f"{one['psnr']}, {one['worst_psnr']}" if one["psnr"] else "",
                ]
                for one in speeds
            ],
        ),
        "Milliseconds per frame by stage, still face; the other stages run in parallel with the networks, on the same "
        "cores:",
        table(
            ["stage", *(f"`--key-frames {every}`" for every in KEY_FRAMES)],
            [[stage, *(one["ms"][stage] for one in speeds if one["clip"] == large["clip"])] for stage in STAGES],
        ),
        "Flicker, the mean difference of successive frames inside the face after the known motion is undone, over "
        f"{first['frames']} frames of {WIDTH} x {HEIGHT}, `mini`'s default preset, in grey levels:",
        table(["video", *moving, "faces", "tracks"], rows),
        f"Memory over {memory['frames']} frames ({memory['faces']} faces restored in one step each, "
        f"{memory['seconds']} s in all): {looks}.",
    )


def measure(args: argparse.Namespace) -> Findings:
    """Restore the short clip for flicker, the long one for memory, and the large one for speed."""
    portrait = on_a_wall(read_image(args.portrait).pixels)
    with tempfile.TemporaryDirectory() as name:
        moving: dict[str, Any] = {}
        for precision in PRECISIONS:
            with Restorer.open(precision=precision, spinning=False) as restorer:
                moving[precision] = measure_flicker(PhotoRestorer(restorer), portrait, args.short, Path(name))
        with Restorer.open(preset="fast", precision=args.precision, spinning=False) as fast:
            speed = measure_speed(PhotoRestorer(fast), portrait, args.hd, Path(name))
        with Restorer.open(preset="fast", steps=1, spinning=False) as short:
            memory = measure_memory(PhotoRestorer(short), portrait, args.frames, Path(name))
    figures = {"speed": speed, "flicker": moving, "memory": memory}
    return figures, as_markdown(figures)


main = Command("bfr.benchmarks.end_to_end.video", __doc__, measure)
main.add_argument("portrait", type=Path, help="a photograph of one person")
main.number("--frames", 2000, "of the long clip (%(default)s)")
main.number("--short", 50, "frames of the clip for flicker (%(default)s)")
main.number("--hd", 125, "frames of the clip for speed (%(default)s)")
main.add_argument("--precision", default="fp32", help="of the networks in the clip for speed (%(default)s)")

if __name__ == "__main__":
    sys.exit(main())
