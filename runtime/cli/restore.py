"""`bfr restore`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bfr.runtime.cli.options import (
    AS_JSON,
    OUT,
    OVERWRITE,
    QUIET,
    STRIP,
    VERBOSE,
    Flags,
    check_aligned,
    expanded,
)
from bfr.runtime.cli.places import STANDARD, Places, open_places
from bfr.runtime.cli.remote import check_server_options, restore_remotely
from bfr.runtime.cli.terminal import one_line, progress_bar, say, show
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import content_of, describe_entry, passed_over, summary
from bfr.runtime.restore.options import OpenOptions, SamplerOptions

if TYPE_CHECKING:
    from bfr.runtime.jobs.report import Report

SHOWN = 20  # lines of a kind; the report has them all


@expanded
def restore(
    context: typer.Context,
    inputs: Annotated[
        list[str], typer.Argument(help="Photographs, videos, folders or patterns of them; - is standard input.")
    ],
    output: Annotated[JobOptions, Flags(panel="Output", names=OUT, negative=STRIP)],
    photo: Annotated[PhotoOptions, Flags(panel="Photographs")],
    opened: Annotated[OpenOptions, Flags(panel="Networks")],
    sampler: Annotated[SamplerOptions, Flags(panel="Sampler, in place of the preset's")],
    aligned: Annotated[bool, typer.Option("--aligned", help="The images are aligned faces, nothing else.")] = False,
    background: Annotated[Path | None, typer.Option(help="Bundle of one network for the rest of the picture.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Another photograph of the person, for systems that keep an identity.")
    ] = None,
    server: Annotated[str | None, typer.Option(help="Address of a `bfr serve` that restores instead.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Of such a server; or the key itself in BFR_API_KEY.")
    ] = None,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    as_json: AS_JSON = False,
) -> None:
    """Restore the faces of photographs and videos. Writes results and report.json into the output folder.

    Inputs are never changed. `bfr restore old.jpg` writes restored/old.jpg, `bfr restore old.jpg -o new.jpg` that file.
    """
    from bfr.runtime.backends.registry import open_device
    from bfr.runtime.faces.background import NetworkBackground
    from bfr.runtime.faces.detect import open_detector
    from bfr.runtime.faces.photo import PhotoRestorer, read_reference
    from bfr.runtime.jobs.run import run_job
    from bfr.runtime.restore.restorer import Restorer

    check_server_options(context, server=server)
    if aligned:
        check_aligned(photo, background)
    check_printed(output, quiet=quiet, verbose=verbose, as_json=as_json)
    with open_places(inputs, output, overwrite=overwrite, videos=not aligned) as places:
        found, options = places.found, places.options
        if server is not None:
            asked = None if aligned else photo
            report = restore_remotely(server, api_key_file, found, options, asked, opened.preset, quiet=quiet)
            finish(report, places, quiet=quiet, verbose=verbose, as_json=as_json)
            return
        restorer = Restorer.open(opened, **sampler.changes)
        worker: Restorer | PhotoRestorer = restorer
        if not aligned:
            detector, network = open_detector(photo.detector), None
            if background is not None:
                device = open_device(opened.backend, threads=opened.threads, index=opened.device)
                network = NetworkBackground(background, device)
            worker = PhotoRestorer(restorer, photo, detector=detector, background=network)
        if reference is not None:
            restorer.fixed = {"reference": read_reference(reference, worker, options.max_pixels)}
            restorer.inputs.check(1, {name: [picture] for name, picture in restorer.fixed.items()})
        with restorer, progress_bar(quiet=quiet) as bar:
            task = bar.add_task("restoring", total=len(found.items))
            report = run_job(
                worker,
                found.items,
                options,
                passed_over=found.passed_over,
                progress=lambda done, name: bar.update(task, completed=done, description=name),
            )
        finish(report, places, quiet=quiet, verbose=verbose, as_json=as_json)


def check_printed(output: JobOptions, *, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Raise InvalidOption where what is to be printed excludes each other."""
    if quiet and verbose:
        raise InvalidOption("--quiet and --verbose exclude each other: leave one out")
    if as_json and str(output.out) == STANDARD:
        raise InvalidOption("--json and the image would both go to standard output: leave out --json, or name a file")


def finish(
    report: "Report",
    places: Places,
    *,
    done: str = "restored",
    quiet: bool = False,
    verbose: bool = False,
    as_json: bool = False,
) -> None:
    """Deliver a run's results and print what became of them; exit with 1 for failures.

    done: what `restored` is called. quiet: of what went well nothing is printed. verbose: a line for each input.
    as_json: the report is printed in place of the line of counts.
    """
    report = places.deliver(report)
    if verbose:
        for entry in report.entries:
            say(describe_entry(entry, done=done))
    table = "report.json" if places.target is None else "--json"
    tell = say if places.target == STANDARD else show
    shown = as_json or quiet
    if not shown and len(report.entries) == 1:
        for path in places.written(report):
            tell(f"wrote {one_line(path)}")
    print_report(report, places.out, table=table, done=done, tell=None if shown else tell)
    if as_json:
        print(json.dumps(content_of(report), indent=1))
    if any(entry.error for entry in report.entries):
        raise typer.Exit(1)


def print_report(
    report: "Report", out: object, *, table: str, done: str = "restored", tell: Callable[[str], None] | None = show
) -> None:
    """Print what failed, what was reduced, passed over, or had no face, then one line of counts.

    table: where all of it stands. tell: prints the line of counts; None for no such line.
    """
    failed = [entry for entry in report.entries if entry.error]
    noted = [(entry.source, note) for entry in report.entries for note in entry.notes]
    passed = passed_over(report)
    _say_some(
        [f"{'failed' if e.status == 'failed' else 'in part'}: {one_line(e.source)}: {e.error}" for e in failed], table
    )
    _say_some([f"warning: {one_line(source)}: {note}" for source, note in noted], table)
    _say_some([f"passed over: {one_line(one['source'])}: {one['reason']}" for one in passed], table)
    if faceless := [entry.source for entry in report.entries if entry.status == "no face"]:
        better = (
            "" if report.settings.get("detector") == "yunet" else ", or run `bfr fetch yunet` for a better detector"
        )
        names = ", ".join(map(one_line, faceless[:3])) + (f" and {len(faceless) - 3} more" if faceless[3:] else "")
        kept = "it was kept as it is" if len(faceless) == 1 else "they were kept as they are"
        say(f"no face was found in {names}: {kept}. If there is one, turn the picture upright{better}")
    if tell is not None:
        tell(summary(report, out, done=done))


def _say_some(lines: list[str], table: str) -> None:
    for line in lines[:SHOWN]:
        say(line)
    if len(lines) > SHOWN:
        say(f"and {len(lines) - SHOWN} more, see {table}")
