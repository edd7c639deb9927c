"""A folder of small photographs: `python -m bfr.benchmarks.end_to_end.folder FACES --out DIR`.

Pictures of one person each are written as small JPEGs and restored as `bfr restore FOLDER` does. Reading, finding
faces, pasting and writing should hide behind the networks: the share of the wall time in which these run says how well
they do, and the bare Restorer on the same crops, how much the neighbours slow them.
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

from bfr.benchmarks.environment import CpuWatch
from bfr.benchmarks.publish import publish
from bfr.runtime.errors import InputNotFound
from bfr.runtime.faces.detect import open_detector
from bfr.runtime.faces.photo import PhotoRestorer
from bfr.runtime.images.decode import read_image
from bfr.runtime.images.encode import write_image
from bfr.runtime.jobs.report import Report
from bfr.runtime.jobs.run import JobOptions, run_job
from bfr.runtime.jobs.sources import Item, find_images
from bfr.runtime.restore.restorer import Restorer

LONGEST = 400  # pixels of the small pictures
BARE = 40  # pictures that the Restorer alone is timed on


def write_small(sources: Sequence[Item], folder: Path, count: int) -> list[Item]:
    """`count` small JPEGs, the sources repeated as often as that needs."""
    for i in range(count):
        pixels = read_image(sources[i % len(sources)].source).pixels
        scale = min(1.0, LONGEST / max(pixels.shape[:2]))
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        write_image(folder / f"{i:04d}.jpg", np.asarray(small, np.uint8))
    return find_images([folder])


def measure(faces: Path, *, count: int, batch: int, detector: str) -> dict[str, Any]:
    """Photographs, then the bare Restorer on the crops of the first BARE of them."""
    sources = find_images([faces])
    if not sources:
        raise InputNotFound(f"{faces} holds no image")
    others = CpuWatch()
    with tempfile.TemporaryDirectory() as folder, Restorer.open(batch=batch) as restorer:
        items = write_small(sources, Path(folder, "in"), count)
        restorer.warm_up()
        photo = PhotoRestorer(restorer, detector=open_detector(detector))
        photographs = run_job(photo, items, JobOptions(Path(folder, "photographs")))
        crops = [face.crop for item in items[:BARE] for face in photo.align(read_image(item.source).pixels)]
        begin = time.perf_counter()
        for i in range(0, len(crops), batch):
            restorer.run(crops[i : i + batch])
        bare = time.perf_counter() - begin
    return {
        "photographs": _figures(photographs),
        "bare": {"faces": len(crops), "seconds": round(bare, 3)},
        "count": count,
        "batch": batch,
        "cores_of_others": others.others(),
    }


def _figures(report: Report) -> dict[str, Any]:
    stages: dict[str, float] = {}
    for entry in report.entries:
        for stage, seconds in entry.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    seconds, network = report.facts["seconds"], report.facts["network_seconds"]
    return {
        "seconds": seconds,
        "network_seconds": network,
        "share": round(network / seconds, 4),
        "faces": sum(entry.faces or 0 for entry in report.entries),
        "restored": report.count("restored"),
        "stages": {stage: round(total, 3) for stage, total in stages.items()},
    }


def as_markdown(result: dict[str, Any], command: str) -> str:
    """The table as Markdown."""
    run, rows = result["photographs"], []
    beside = sum(run["stages"].get(stage, 0.0) for stage in ("read", "align", "background", "paste", "write"))
    rows.append(
        f"| photographs | {run['faces']} | {run['seconds']:.1f} | {run['share']:.1%} | "
        f"{run['faces'] / run['seconds']:.2f} | {beside:.1f} |"
    )
    bare = result["bare"]
    rows.append(
        f"| Restorer alone | {bare['faces']} | {bare['seconds']:.1f} | | {bare['faces'] / bare['seconds']:.2f} | |"
    )
    return "\n".join(
        [
            "# A folder",
            "",
            f"{result['count']} JPEGs of at most {LONGEST} pixels a side, `mini`, batch {result['batch']}. `networks` "
            "is the share of the wall time in which the networks ran; `beside` are the seconds of reading, finding, "
            "pasting and writing, in threads beside them, which share the same cores. `Restorer alone` has its "
            f"crops, those of the first {BARE} pictures, in memory.",
            "",
            "```",
            command,
            "```",
            "",
            "| run | faces | s | networks | faces/s | beside s |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faces", type=Path, help="folder of pictures of one person each")
    parser.add_argument("--out", type=Path, required=True, help="folder for folder.json and folder.md")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--detector", default="yunet", help="yunet or haar (%(default)s)")
    args = parser.parse_args(arguments)
    command = f"python -m bfr.benchmarks.end_to_end.folder FACES --out DIR --count {args.count} --batch {args.batch}"

    def call() -> tuple[dict[str, Any], str]:
        result = measure(args.faces, count=args.count, batch=args.batch, detector=args.detector)
        return result, as_markdown(result, command)

    return publish(args.out, "folder", command, call)


if __name__ == "__main__":
    sys.exit(main())
