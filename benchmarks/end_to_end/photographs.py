"""Measure photographs end to end, as `bfr restore` runs them.

    python -m bfr.benchmarks.end_to_end.photographs FACES --out DIR

FACES holds portraits. Two runs are measured. A folder of small JPEGs: reading, finding faces, pasting and writing
should hide behind the networks. The share of the wall time in which the networks run says how well they do; the bare
Restorer on the same crops says how much they slow it. One photograph of 12 megapixels of a composed group of ten, again
and again: alone it overlaps with nothing, so the time of each stage shows.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from bfr.benchmarks.end_to_end.detection import HEIGHT, WIDTH, read_portraits
from bfr.benchmarks.end_to_end.group import compose_group
from bfr.benchmarks.environment import CpuWatch, peak_rss_bytes
from bfr.benchmarks.publish import Command, Findings
from bfr.benchmarks.tables import page, table
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import read_image
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import Item, find_images
from bfr.runtime.restore.restorer import Restorer

LONGEST = 400  # pixels of the small pictures
BARE = 40  # pictures that the Restorer alone is timed on
PEOPLE = 10
BESIDE = ("read", "align", "background", "paste", "write")  # stages that run in threads beside the networks


def write_small(sources: Sequence[Item], folder: Path, count: int) -> list[Item]:
    """Write `count` small JPEGs, the sources repeated as often as that needs."""
    for i in range(count):
        pixels = read_image(Path(sources[i % len(sources)].source)).pixels
        scale = min(1.0, LONGEST / max(pixels.shape[:2]))
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        write_image(folder / f"{i:04d}.jpg", np.asarray(small, np.uint8))
    return find_images([folder])


def measure_folder(photo: PhotoRestorer, items: Sequence[Item], batch: int, out: Path) -> dict[str, Any]:
    """Restore a folder, then the bare crops of its first BARE pictures."""
    others = CpuWatch()
    report = run_job(photo, items, JobOptions(out=out))
    crops = [face.crop for item in items[:BARE] for face in photo.align(read_image(Path(item.source)).pixels)]
    begin = time.perf_counter()
    for i in range(0, len(crops), batch):
        photo.restorer.run(crops[i : i + batch])
    bare = time.perf_counter() - begin
    return {
        "pictures": len(items),
        "batch": batch,
        "faces": sum(entry.faces or 0 for entry in report.entries),
        "seconds": report.facts["seconds"],
        "network_seconds": report.facts["network_seconds"],
        "beside_seconds": sum(entry.seconds.get(stage, 0.0) for entry in report.entries for stage in BESIDE),
        "bare": {"faces": len(crops), "seconds": bare},
        "cores_of_others": others.others(),
    }


def measure_group(photo: PhotoRestorer, item: Item, repeats: int, out: Path) -> dict[str, Any]:
    """Restore one photograph `repeats` times, after one warm-up."""
    others, seconds = CpuWatch(), list[dict[str, float]]()
    for repeat in range(repeats + 1):
        report = run_job(photo, [item], JobOptions(out=out / str(repeat)))
        entry = report.entries[0]
        whole = report.facts["seconds"]
        seconds.append({**entry.seconds, "outside the networks": whole - report.facts["network_seconds"], "all": whole})
    peak = peak_rss_bytes()
    return {
        "restored": entry.faces or 0,
        "repeats": repeats,
        "seconds": {stage: [one.get(stage, 0.0) for one in seconds[1:]] for stage in seconds[0]},
        "peak_rss_mib": None if peak is None else peak >> 20,
        "cores_of_others": others.others(),
    }


def measure(args: argparse.Namespace) -> Findings:
    """Measure the folder and the group. Raises InvalidOption for a number below 1, InputNotFound without a face."""
    if min(args.count, args.repeats, args.batch) < 1:
        raise InvalidOption("--count, --repeats and --batch: choose 1 or more of each")
    portraits, _ = read_portraits(args.faces)
    if not portraits:
        raise InputNotFound(f"{args.faces} has no portrait in which a face is found")
    group = compose_group(portraits, PEOPLE, width=WIDTH, height=HEIGHT, rng=np.random.default_rng(args.seed))
    with tempfile.TemporaryDirectory() as scratch, Restorer.open(batch=args.batch) as restorer:
        folder = Path(scratch)
        write_image(folder / "group.jpg", group.pixels)
        (item,) = find_images([folder / "group.jpg"])
        photo = PhotoRestorer(restorer, PhotoOptions(restore_sharp=True))
        restorer.warm_up()
        figures = {
            "group": measure_group(photo, item, args.repeats, folder / "groups"),
            "folder": measure_folder(
                photo, write_small(find_images([args.faces]), folder / "small", args.count), args.batch, folder / "out"
            ),
        }
    return figures, as_markdown(figures)


def as_markdown(figures: dict[str, Any]) -> str:
    """Render both runs as tables."""
    folder, group, bare = figures["folder"], figures["group"], figures["folder"]["bare"]
    rows = []
    for name, run in (("photographs", folder), ("Restorer alone", bare)):
        rows.append([name, run["faces"], f"{run['seconds']:.1f}", f"{run['faces'] / run['seconds']:.2f}"])
    rows[0] += [f"{folder['network_seconds'] / folder['seconds']:.1%}", f"{folder['beside_seconds']:.1f}"]
    stages = [[s, f"{np.median(values):.4f}", f"{min(values):.4f}"] for s, values in group["seconds"].items()]
    return page(
        "# Photographs",
        "## A folder\n"
        f"{folder['pictures']} JPEGs of at most {LONGEST} pixels a side, `mini`, batch {folder['batch']}. `networks` "
        "is the share of the wall time in which the networks ran; `beside` is the time of reading, detection, pasting "
        "and writing, in threads that share the same cores. `Restorer alone` restores the crops of the first "
        f"{BARE} pictures from memory.",
        table(["run", "faces", "s", "faces/s", "networks", "beside s"], rows),
        "## A group of ten\n"
        f"{WIDTH} x {HEIGHT} pixels, JPEG in and out, {group['restored']} of {PEOPLE} faces detected and restored by "
        f"`mini`; {group['repeats']} repetitions after a warm-up, one at a time. Peak memory of the process, including "
        f"the composition of the photograph: {group['peak_rss_mib']} MiB.",
        table(["stage", "p50 s", "least s"], stages),
    )


main = Command("bfr.benchmarks.end_to_end.photographs", __doc__, measure)
main.add_argument("faces", type=Path, help="folder of portraits")
main.number("--count", 200, "pictures of the folder (%(default)s)")
main.number("--repeats", 7, "of the group (%(default)s)")
main.number("--batch", 1)
main.number("--seed", 3)

if __name__ == "__main__":
    sys.exit(main())
