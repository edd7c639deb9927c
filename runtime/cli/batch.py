"""`bfr batch`."""

import json
import os
from typing import Annotated

import typer

from bfr.runtime.cli.options import AS_JSON, OVERWRITE, STRIP, Flags, check_aligned, expanded
from bfr.runtime.cli.places import check_folder
from bfr.runtime.cli.remote import KEY_VARIABLE
from bfr.runtime.cli.restore import print_report
from bfr.runtime.cli.terminal import progress_bar, show, volume
from bfr.runtime.cluster.bulk.options import BulkOptions, PoolOptions
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.store import local_path


@expanded
def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT", help="Photographs, folders, globs, or their URLs, such as 's3://bucket/photos/**/*.jpg'."
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", help="Output folder, or its URL.")],
    options: Annotated[BulkOptions, Flags(without=("photo",), negative=STRIP)],
    pool: Annotated[PoolOptions, Flags(panel="Machines")],
    photo: Annotated[PhotoOptions, Flags(without=("background",))],
    aligned: Annotated[bool, typer.Option("--aligned", help="Treat each image as one aligned face.")] = False,
    overwrite: OVERWRITE = False,
    as_json: AS_JSON = False,
) -> None:
    """Restore many photographs, here or on a Ray cluster.

    Writes results, results.csv with a row for each input, failures.csv and batch.json into the folder. Restores no
    videos.
    """
    from bfr.runtime.backends.host import check_threads
    from bfr.runtime.cluster.bulk.run import run_bulk

    os.environ.pop(KEY_VARIABLE, None)  # workers decode strangers' pictures
    if aligned:
        check_aligned(photo)
    if not out:
        raise InvalidOption("-o is empty: name a folder, or its URL; a variable of the shell may not be set")
    if (folder := local_path(out)) is not None:
        check_folder(folder)
    if pool.address is None:  # the workers check theirs, but a local Ray takes seconds to start
        check_threads(options.threads)
    options = options.model_copy(update={"photo": None if aligned else photo})
    with progress_bar() as bar:
        task = bar.add_task("starting", total=None)
        report = run_bulk(
            inputs,
            out,
            options,
            **dict(pool),
            overwrite=overwrite,
            progress=lambda done, total: bar.update(task, completed=done, total=total, description="restoring"),
        )
    print_report(report, out, table="results.csv and batch.json", tell=None if volume.quiet or as_json else show)
    if as_json:
        print(json.dumps({**report.facts, "settings": report.settings}, indent=1))
    if any(entry.error for entry in report.entries):
        raise typer.Exit(1)
