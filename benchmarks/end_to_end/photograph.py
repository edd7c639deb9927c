"""One large photograph, end to end: `python -m bfr.benchmarks.end_to_end.photograph FACES --out DIR`.

From the portraits in FACES a group of ten is composed, 12 megapixels, written as a JPEG, and restored as `bfr restore`
does, stage after stage, so that nothing hides behind the networks. The time outside the networks is split by stage.
Geometry: faces are aligned and pasted back unrestored, with the identity in place of the networks.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from bfr.benchmarks.end_to_end.detection import read_portraits
from bfr.benchmarks.end_to_end.group import Portrait, compose_group
from bfr.benchmarks.environment import CpuWatch
from bfr.benchmarks.publish import publish
from bfr.runtime.errors import InputNotFound
from bfr.runtime.faces.detect import open_detector
from bfr.runtime.faces.geometry import crop_face, inverse, rectangle, warp
from bfr.runtime.faces.paste import make_patch, paste_faces
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import read_image
from bfr.runtime.images.encode import write_image
from bfr.runtime.restore.restorer import Restorer

WIDTH, HEIGHT, FACES = 4000, 3000, 10
T = TypeVar("T")


class Stages:
    """Seconds of the stages of each repetition."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def run(self, name: str, call: Callable[[], T]) -> T:
        """Call and take the time."""
        begin = time.perf_counter()
        result = call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begin)
        return result


def measure(portraits: Sequence[Portrait], *, detector: str, repeats: int, seed: int) -> dict[str, Any]:
    """The photograph `repeats` times, after one warm-up."""
    group = compose_group(portraits, FACES, width=WIDTH, height=HEIGHT, rng=np.random.default_rng(seed))
    stages, others = Stages(), CpuWatch()
    with tempfile.TemporaryDirectory() as folder, Restorer.open() as restorer:
        source, target = Path(folder, "group.jpg"), Path(folder, "restored.jpg")
        write_image(source, group.pixels)
        photo = PhotoRestorer(restorer, detector=open_detector(detector))
        found = 0
        for repeat in range(repeats + 1):
            if repeat == 1:
                stages = Stages()  # the first is the warm-up
            image = stages.run("decode", lambda: read_image(source))
            chosen = stages.run("detect", lambda: photo.find(image.pixels))  # noqa: B023
            faces = stages.run("crop", lambda: photo.crop(image.pixels, chosen))  # noqa: B023
            begin = time.perf_counter()
            results = restorer.run([face.crop for face in faces])
            whole = time.perf_counter() - begin
            network = sum(result.seconds["network"] for result in results)
            stages.seconds.setdefault("networks", []).append(network)
            stages.seconds.setdefault("loop, outside the networks", []).append(whole - network)
            pasted = stages.run("paste", lambda: photo.paste(image, faces, results))  # noqa: B023
            stages.run("encode", lambda: write_image(target, pasted.pixels, like=image))  # noqa: B023
            found = len(faces)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    outside = np.sum([values for name, values in stages.seconds.items() if name != "networks"], axis=0)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "faces": FACES,
        "restored": found,
        "repeats": repeats,
        "seconds_p50": {name: round(float(np.median(values)), 4) for name, values in stages.seconds.items()},
        "seconds_min": {name: round(float(np.min(values)), 4) for name, values in stages.seconds.items()},
        "outside_p50": round(float(np.median(outside)), 4),
        "outside_min": round(float(np.min(outside)), 4),
        "peak_rss_mib": round(peak),
        "cores_of_others": others.others(),
    }


def geometry(portraits: Sequence[Portrait], *, seed: int) -> dict[str, Any]:
    """What aligning and pasting back an unrestored face changes, and what pasting its resampled crop would."""
    group = compose_group(portraits, FACES, width=WIDTH, height=HEIGHT, rng=np.random.default_rng(seed))
    with Restorer.open() as restorer:
        photo = PhotoRestorer(restorer, detector=open_detector("yunet"))
        faces = photo.align(group.pixels)
        size = restorer.size
    out = group.pixels.copy()
    patches = [make_patch(face.crop, face.crop, face.matrix, keep_colour=False, grey=False) for face in faces]
    paste_faces(out, patches)
    inside = np.zeros(out.shape[:2], bool)
    resampled = []
    for face in faces:
        left, top, right, bottom = rectangle(face.matrix, size, out.shape)
        inside[top:bottom, left:right] = True
        resampled.append(_resampled(group.pixels, face.matrix, size, (left, top, right, bottom)))
    difference = np.abs(out.astype(int) - group.pixels)
    return {
        "faces": len(faces),
        "mean_inside": float(difference[inside].mean()),
        "max_outside": int(difference[~inside].max()),
        "resampled_mean_p50": round(float(np.median(resampled)), 3),
        "resampled_mean_max": round(float(np.max(resampled)), 3),
    }


def _resampled(pixels: NDArray[np.uint8], matrix: Any, size: int, place: tuple[int, int, int, int]) -> float:
    """Mean change in grey levels where a face is replaced by its crop, taken and put back: what a copy would cost."""
    left, top, right, bottom = place
    back = inverse(matrix)
    back[:, 2] -= (left, top)
    crop = crop_face(pixels, matrix, size)
    copy = warp(crop, back, (right - left, bottom - top), cv2.BORDER_REPLICATE)
    covered = warp(np.full_like(crop, 255), back, (right - left, bottom - top), 0)[..., 0] == 255
    return float(np.abs(copy.astype(int) - pixels[top:bottom, left:right])[covered].mean())


def as_markdown(result: dict[str, Any], command: str) -> str:
    """The tables as Markdown."""
    time_, place = result["time"], result["geometry"]
    rows = [f"| {name} | {value} | {time_['seconds_min'][name]} |" for name, value in time_["seconds_p50"].items()]
    return "\n".join(
        [
            "# A photograph of ten",
            "",
            f"{WIDTH} x {HEIGHT} pixels, JPEG in and out, {time_['restored']} of {FACES} faces found and restored "
            f"one after the other by `mini`; {time_['repeats']} repetitions after a warm-up, stage after stage. "
            f"Outside the networks: {time_['outside_p50']} s (p50), {time_['outside_min']} s (least). Peak memory of "
            f"the process, composing the photograph included: {time_['peak_rss_mib']} MiB.",
            "",
            "```",
            command,
            "```",
            "",
            "| stage | p50 s | least s |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"Geometry: {place['faces']} faces aligned and pasted back unrestored change their rectangles by "
            f"{place['mean_inside']:.3f} grey levels in the mean, and what lies outside by {place['max_outside']}. It "
            "is exact because the difference to the crop is pasted, not the crop: replacing the faces by their "
            f"resampled crops would change them by {place['resampled_mean_p50']} levels (median over the faces; "
            f"{place['resampled_mean_max']} at most), since a crop of 256 pixels cannot hold a larger face.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path, help="folder of portraits")
    parser.add_argument("--out", type=Path, required=True, help="folder for photograph.json and photograph.md")
    parser.add_argument("--detector", default="yunet", help="yunet or haar (%(default)s)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args(arguments)
    command = (
        f"python -m bfr.benchmarks.end_to_end.photograph PHOTOS --out DIR --repeats {args.repeats} --seed {args.seed}"
    )

    def call() -> tuple[dict[str, Any], str]:
        portraits, _ = read_portraits(args.faces)
        if not portraits:
            raise InputNotFound(f"{args.faces} has no portrait in which a face is found")
        result = {
            "time": measure(portraits, detector=args.detector, repeats=args.repeats, seed=args.seed),
            "geometry": geometry(portraits, seed=args.seed),
        }
        return result, as_markdown(result, command)

    return publish(args.out, "photograph", command, call)


if __name__ == "__main__":
    sys.exit(main())
