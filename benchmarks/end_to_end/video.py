"""Video: speed, flicker and memory: `python -m bfr.benchmarks.end_to_end.video PORTRAIT --out DIR`.

A clip is made from a portrait: blurred and shrunk, panned by whole pixels, with new sensor noise in every frame. As the
movement is known, successive frames can be laid over each other exactly; what differs between them is flicker. It is
measured for the clip itself, for faces that keep their noise, and for noise drawn anew in each frame. Memory is that of
the process while a long clip is restored. Speed is that of a clip of 1280 x 720, from file to file.
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
from bfr.runtime.errors import InputNotFound
from bfr.runtime.faces.geometry import alignment, inverse, transform
from bfr.runtime.faces.photo import PhotoRestorer
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
STAGES = ("decode", "find", "crop", "network", "paste", "encode")
HD = (1280, 720)


def shift(frame: int) -> tuple[int, int]:
    """Where the window lies in the portrait at a frame: a slow Lissajous curve of whole pixels."""
    return round(20 + 20 * np.sin(frame / 17)), round(12 + 12 * np.sin(frame / 11))


def frames(
    portrait: NDArray[np.uint8], count: int, rng: np.random.Generator, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> Iterator[NDArray[np.uint8]]:
    """(H, W, 3) uint8 RGB each, of a size in width and height."""
    width, height = size
    scale = max((width + 40) / portrait.shape[1], (height + 24) / portrait.shape[0])
    larger = (int(np.ceil(portrait.shape[1] * scale)), int(np.ceil(portrait.shape[0] * scale)))
    still = DEGRADATION.apply(np.asarray(cv2.resize(portrait, larger, interpolation=cv2.INTER_AREA), np.uint8), rng)
    for index in range(count):
        x, y = shift(index)
        window = still[y : y + height, x : x + width] + rng.normal(0, SENSOR, (height, width, 3))
        yield np.clip(np.rint(window), 0, 255).astype(np.uint8)


def write_clip(
    path: Path,
    portrait: NDArray[np.uint8],
    count: int,
    seed: int,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    crf: int = CODEC_CRF,
) -> None:
    """A clip of `count` frames."""
    info = VideoInfo(*size, Fraction(RATE), None, None, 0, 0, "", Fraction(1, RATE))
    with VideoWriter(path, path.suffix, info, crf=crf) as writer:
        for index, pixels in enumerate(frames(portrait, count, np.random.default_rng(seed), size)):
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
    for name, still in (("still_noise", True), ("new_noise", False)):
        target = folder / f"{name}.mp4"
        film = restore_video(photo, clip, target, crf=CODEC_CRF, still_noise=still)
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


def measure_speed(photo: PhotoRestorer, portrait: NDArray[np.uint8], count: int, folder: Path) -> dict[str, Any]:
    """Frames a second, and milliseconds a frame by stage; one person in the middle of a wall, as tall as the frame."""
    height, width = portrait.shape[:2]
    wall = max(0, round(height * HD[0] / HD[1]) - width) // 2
    wide = np.asarray(cv2.copyMakeBorder(portrait, 0, 0, wall, wall, cv2.BORDER_REPLICATE), np.uint8)
    clip = folder / "hd.mp4"
    write_clip(clip, wide, count, 2, size=HD, crf=20)
    photo.restorer.run([np.zeros((photo.size, photo.size, 3), np.uint8)])
    begin, cpu = time.perf_counter(), time.process_time()
    film = restore_video(photo, clip, folder / "hd_restored.mp4")
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {
        "frames": film.frames,
        "faces": film.faces,
        "frames_a_second": round(film.frames / seconds, 2),
        "cpu_ms": round(1000 * cpu / film.frames, 1),
        "ms": {stage: round(1000 * film.seconds.get(stage, 0.0) / film.frames, 1) for stage in STAGES},
    }


def as_markdown(figures: dict[str, Any]) -> str:
    """Render the tables as Markdown."""
    moving, memory = figures["flicker"], figures["memory"]
    at = memory["rss_mib"]
    rows = [[f"the clip itself (new sensor noise of {SENSOR} levels in each frame)", moving["clip"]]]
    for name, words in (("still_noise", "a track keeps its noise"), ("new_noise", "new noise in each frame")):
        rows.append([f"restored, {words}", *(moving[name][key] for key in ("flicker", "faces", "tracks"))])
    looks = ", ".join(f"{look['mib']} MiB at frame {look['frame']}" for look in (at[0], at[len(at) // 2], at[-1]))
    speed = figures["speed"]
    return page(
        "# Video",
        f"Speed, {speed['frames']} frames of {HD[0]} x {HD[1]} with one face, preset `fast`, from file to file: "
        f"**{speed['frames_a_second']} frames/s**, {speed['cpu_ms']} ms of CPU time per frame. Milliseconds per frame "
        "by stage; the other stages run in parallel with the networks:",
        table(["stage", "ms"], [[stage, speed["ms"][stage]] for stage in STAGES]),
        "Flicker, the mean difference of successive frames inside the face after the known motion is undone, over "
        f"{moving['frames']} frames of {WIDTH} x {HEIGHT}, `mini`'s default preset:",
        table(["video", "flicker, grey levels", "faces", "tracks"], rows),
        f"Memory over {memory['frames']} frames ({memory['faces']} faces restored in one step each, "
        f"{memory['seconds']} s in all): {looks}.",
    )


def measure(args: argparse.Namespace) -> Findings:
    """Restore the short clip for flicker, the long one for memory, and the large one for speed."""
    portrait = read_image(args.portrait).pixels
    with tempfile.TemporaryDirectory() as name:
        with Restorer.open() as reference:
            moving = measure_flicker(PhotoRestorer(reference), portrait, args.short, Path(name))
        with Restorer.open(preset="fast", precision=args.precision) as fast:
            speed = measure_speed(PhotoRestorer(fast), portrait, args.hd, Path(name))
        with Restorer.open(preset="fast", steps=1) as short:
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
