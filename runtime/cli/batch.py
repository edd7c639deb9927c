"""`bfr batch`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bfr.runtime.cli.terminal import progress_bar, say
from bfr.runtime.errors import InvalidOption

if TYPE_CHECKING:
    from bfr.runtime.faces.geometry import Selection

SHOWN = 20  # failures; the table has them all
batches = typer.Typer()


@batches.command()
def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(help="Photographs, folders, globs, or URLs of them, as 's3://bucket/photos/**/*.jpg'."),
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="Output folder, or its URL.")],
    aligned: Annotated[bool, typer.Option("--aligned", help="The images are aligned faces, nothing else.")] = False,
    bundle: Annotated[Path | None, typer.Option(help="Bundle folder, the same on every node; default: mini.")] = None,
    backend: Annotated[str, typer.Option(help="As of `bfr restore`.")] = "auto",
    preset: Annotated[str | None, typer.Option(help="A preset of the bundle, see `bfr info`.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, or fp16 or int8 where the bundle has it.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Seed of the noise, 0 to 4294967295.")] = 12345,
    size: Annotated[int, typer.Option("--batch", help="Faces that go through the networks together.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Of the CPU backend in each worker, instead of its share of the cores.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many, instead of one for each GPU, else one for each machine.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; without, this machine.")
    ] = None,
    faces: Annotated[str, typer.Option(help="Which ones: all, largest or centre.")] = "all",
    min_eye_distance: Annotated[float, typer.Option(help="Faces with less are left as they are, in pixels.")] = 5.0,
    upscale: Annotated[int, typer.Option(help="1, 2 or 4 times the photograph's size.")] = 1,
    blend: Annotated[float, typer.Option(help="0 (faces as they were) to 1 (restored).")] = 1.0,
    keep_colour: Annotated[bool, typer.Option("--keep-colour", help="Faces keep their colours and light.")] = False,
    detector: Annotated[str, typer.Option(help="auto, yunet or haar.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Skip what has a result there already.")] = False,
    image_format: Annotated[str, typer.Option("--format", help="same, png, jpg or webp.")] = "same",
    quality: Annotated[int, typer.Option(help="Of jpg and webp, 1 to 100.")] = 95,
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Write no EXIF data, place or date.")
    ] = False,
    max_pixels: Annotated[int, typer.Option(help="Larger images are refused.")] = 64_000_000,
) -> None:
    """Restore many photographs, on this machine or a Ray cluster; no videos.

    Writes results, results.csv with a row for each input, failures.csv and batch.json into the output folder.
    """
    from bfr.runtime.cluster.bulk.options import BulkOptions
    from bfr.runtime.cluster.bulk.run import run_bulk
    from bfr.runtime.faces.photo import PhotoOptions
    from bfr.runtime.jobs.report import summary

    whole = PhotoOptions(cast("Selection", faces), min_eye_distance, upscale, blend, keep_colour)
    if aligned and (whole != PhotoOptions() or detector != "auto"):
        raise InvalidOption(
            "--aligned takes each image for a face: leave out --faces, --min-eye-distance, --upscale, --blend, "
            "--keep-colour and --detector, or --aligned"
        )
    options = BulkOptions(
        bundle=bundle,
        backend=backend,
        preset=preset,
        precision=precision,
        batch=size,
        threads=threads,
        photo=None if aligned else whole,
        detector=detector,
        seed=seed,
        format=image_format if image_format == "same" else f".{image_format.removeprefix('.')}",
        quality=quality,
        metadata=not strip_metadata,
        max_pixels=max_pixels,
    )
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)
        report = run_bulk(
            inputs,
            out,
            options,
            workers=workers,
            address=address,
            resume=resume,
            progress=lambda done, total: bar.update(task, completed=done, total=total, description="restoring"),
        )
    if not report.rows:
        print("0 images")
        return
    failed = [row for row in report.rows if row.error]
    for row in failed[:SHOWN]:
        say(f"{'failed' if row.status == 'failed' else 'in part'}: {row.source}: {row.error}")
    if len(failed) > SHOWN:
        say(f"and {len(failed) - SHOWN} more, see failures.csv")
    total = None if aligned else sum(row.faces or 0 for row in report.rows)
    print(summary(report.counts, total, report.seconds, out))
    if failed:
        raise typer.Exit(1)
