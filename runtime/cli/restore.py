"""`bfr restore`."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from bfr.runtime.cli.inputs import STANDARD
from bfr.runtime.cli.options import AS_JSON, OUT, OVERWRITE, STRIP, Flags, check_aligned, expanded
from bfr.runtime.cli.places import Places, open_places
from bfr.runtime.cli.remote import check_server_options, restore_remotely
from bfr.runtime.cli.terminal import conclude, image_progress, one_line, say, show, tell, volume
from bfr.runtime.errors import InvalidOption
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.jobs.options import JobOptions
from bfr.runtime.jobs.report import content_of, describe_entry, passed_over, summary
from bfr.runtime.restore.options import OpenOptions, SamplerOptions
from bfr.runtime.text import listed

if TYPE_CHECKING:
    from bfr.runtime.faces.photo import PhotoRestorer
    from bfr.runtime.jobs.estimate import Estimate
    from bfr.runtime.jobs.report import Report
    from bfr.runtime.jobs.sources import Inputs, Item
    from bfr.runtime.restore.restorer import Restorer

SHOWN = 20  # lines of a kind; the report has them all


@expanded
def restore(
    context: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="Photographs, videos, folders or patterns of them; - is standard input."),
    ],
    output: Annotated[JobOptions, Flags(names=OUT, negative=STRIP)],
    photo: Annotated[PhotoOptions, Flags()],
    opened: Annotated[OpenOptions, Flags()],
    sampler: Annotated[SamplerOptions, Flags()],
    aligned: Annotated[bool, typer.Option("--aligned", help="Treat each image as one aligned face.")] = False,
    reference: Annotated[
        Path | None, typer.Option(help="Another photograph of the person, for systems with identity guidance.")
    ] = None,
    server: Annotated[str | None, typer.Option(help="Address of a `bfr serve` that restores the faces.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with that server's API key. BFR_API_KEY can hold the key instead.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Estimate the time from a few of the images. Restores nothing.")
    ] = False,
    overwrite: OVERWRITE = False,
    as_json: AS_JSON = False,
) -> None:
    """Restore the faces of photographs and videos.

    bfr never changes an input. It writes results and report.json into the folder restored, or into -o. With several
    presets, as in --preset fast,reference, each gets a subfolder, and --html shows the results side by side.
    """
    check_server_options(context, server=server)
    if aligned:
        check_aligned(photo, crops=output.crops, boxes=output.boxes)
    check_printed(output, as_json=as_json)
    check_device(opened)
    presets = _split(opened.preset)
    several = len(presets) > 1
    folders = tuple(name for name in presets if name) if several else ()
    free = overwrite or estimate
    with open_places(inputs, output, overwrite=free, videos=not aligned, folders=folders) as places:
        found, options = places.found, places.options
        videos = any(item.is_video for item in found.items)
        _say_unused(output, found.items)
        if server is not None:
            if several:
                raise InvalidOption("--server takes one preset at a time: name one with --preset")
            report = restore_remotely(server, api_key_file, found, options, None if aligned else photo, presets[0])
            finish(report, places, as_json=as_json)
            return
        asked = [opened.model_copy(update={"preset": name}) for name in presets]
        _check_bundle(asked, sampler, reference)
        reports: dict[str, Report] = {}
        expected: dict[str, Estimate] = {}
        for one in asked:
            folder = options.out / (one.preset or "") if several else options.out
            chosen = options.model_copy(update={"out": folder})
            with _open(
                one, sampler, None if aligned else photo, reference, options.max_pixels, spinning=not videos
            ) as worker:
                if estimate:
                    expected[one.preset or "default"] = _estimate(worker, one, found, options)
                    continue
                reports[one.preset or ""] = report = _run(worker, found, chosen)
            if several:
                tell_results(report, replace(places, options=chosen), as_json=as_json)
            else:
                finish(report, places, as_json=as_json)
        if estimate:
            _show_estimates(expected, as_json=as_json)
        elif several:
            _conclude_comparison(reports, found, options, as_json=as_json)


def _say_unused(output: JobOptions, items: "Sequence[Item]") -> None:
    """Name the options that were given and are for videos, or for images, where there is none of them."""
    kinds = {item.is_video for item in items}
    for videos, what, names in (
        (True, "videos", ("codec", "crf", "key_frames")),
        (False, "images", ("format", "quality")),
    ):
        given = [name for name in names if getattr(output, name) != JobOptions.model_fields[name].default]
        if given and videos not in kinds:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            say(f"warning: {flags}: for {what} only, and there is none among the inputs")


def _split(text: str | None) -> tuple[str | None, ...]:
    """The requested presets; None is the bundle's default. Raises InvalidOption."""
    if text is None:
        return (None,)
    names = tuple(text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise InvalidOption(f"--preset {text!r} names nothing or one twice: name presets, as fast or fast,reference")
    return names


def _check_bundle(asked: "Sequence[OpenOptions]", sampler: SamplerOptions, reference: Path | None) -> None:
    """Raise InvalidOption for what the bundle has not or cannot do, before its networks are loaded."""
    from bfr.runtime.bundle.bundle import Bundle, default_bundle
    from bfr.runtime.restore.inputs import ImageInputs
    from bfr.runtime.restore.plan import make_plan

    bundle = Bundle.open(asked[0].bundle or default_bundle())
    for one in asked:
        make_plan(bundle, bundle.preset(one.preset, **sampler.changes))
    if reference is not None:
        ImageInputs(bundle.manifest.system, 0, bundle.manifest.inputs).check(1, {"reference": [None]})


@contextmanager
def _open(
    opened: OpenOptions,
    sampler: SamplerOptions,
    photo: PhotoOptions | None,
    reference: Path | None,
    max_pixels: int,
    *,
    spinning: bool,
) -> "Iterator[Restorer | PhotoRestorer]":
    """Open what restores; without `photo` the images are aligned faces. spinning: see `Restorer.open`."""
    from bfr.runtime.faces.background import open_background
    from bfr.runtime.faces.photo import PhotoRestorer, read_reference
    from bfr.runtime.restore.restorer import Restorer

    background = None if photo is None else open_background(photo.background, opened)
    with Restorer.open(opened, spinning=spinning, **sampler.changes) as restorer:
        worker: Restorer | PhotoRestorer = restorer
        if photo is not None:
            worker = PhotoRestorer(restorer, photo, background=background)
        if reference is not None:
            restorer.fixed = {"reference": read_reference(reference, worker, max_pixels)}
        yield worker


def _run(worker: "Restorer | PhotoRestorer", found: "Inputs", options: JobOptions) -> "Report":
    from bfr.runtime.jobs.run import run_job

    with image_progress("restoring", len(found.items)) as progress:
        return run_job(worker, found.items, options, passed_over=found.passed_over, progress=progress)


def _estimate(
    worker: "Restorer | PhotoRestorer", opened: OpenOptions, found: "Inputs", options: JobOptions
) -> "Estimate":
    from bfr.runtime.jobs.estimate import estimate
    from bfr.runtime.jobs.speed import speed_of

    restorer = cast("Restorer", getattr(worker, "restorer", worker))
    speed = speed_of(restorer, opened, tell)
    return estimate(worker, found.items, options, speed.seconds(restorer.plan))


def _show_estimates(expected: "Mapping[str, Estimate]", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({preset: asdict(one) for preset, one in expected.items()}, indent=1))
        return
    for preset, one in expected.items():
        show(f"{preset}: {one}" if len(expected) > 1 else str(one))


def _conclude_comparison(
    reports: "Mapping[str, Report]", found: "Inputs", options: JobOptions, *, as_json: bool
) -> None:
    """Write the page of several presets, print the reports as JSON where asked; exit with 1 for failures."""
    if options.html:
        from bfr.runtime.jobs.page import write_comparison

        names = {item.key: item.name for item in found.items}
        page = write_comparison(options.out, names, reports)
        if not as_json:
            conclude(f"wrote {one_line(str(page))}")
    if as_json:
        print(json.dumps({preset: content_of(report) for preset, report in reports.items()}, indent=1))
    _exit(reports.values())


def check_device(opened: OpenOptions) -> None:
    """Raise InvalidOption for a missing GPU, where `auto` would use the CPU instead."""
    from bfr.runtime.backends.cuda.bindings import device_count

    if opened.device and opened.device >= device_count():
        raise InvalidOption(f"there is no GPU {opened.device}: `nvidia-smi` lists them; leave --device out for a CPU")


def check_printed(output: JobOptions, *, as_json: bool) -> None:
    """Raise InvalidOption if what is to be printed excludes each other."""
    if as_json and str(output.out) == STANDARD:
        raise InvalidOption("--json and the image would both go to standard output: leave out --json, or name a file")


def finish(report: "Report", places: Places, *, done: str = "restored", as_json: bool = False) -> None:
    """Deliver a run's results and print a summary, or the report if `as_json`; exit with 1 for failures."""
    report = tell_results(report, places, done=done, as_json=as_json)
    if as_json:
        print(json.dumps(content_of(report), indent=1))
    elif places.options.html:
        conclude(f"wrote {one_line(str(places.options.out / 'report.html'))}")
    _exit([report])


def tell_results(report: "Report", places: Places, *, done: str = "restored", as_json: bool = False) -> "Report":
    """Deliver a run's results, print a summary, and return the report as delivered.

    Args:
        report: The run's report.
        places: The destination of its results.
        done: The word for `restored`.
        as_json: The caller prints the report; the line of counts is left out.
    """
    report = places.deliver(report)
    if volume.verbose:
        for entry in report.entries:
            say(describe_entry(entry, done=done))
    table = "report.json" if places.target is None else "--json"
    out = say if places.target == STANDARD else show
    silent = as_json or volume.quiet
    if not silent and len(report.entries) == 1:
        for path in places.written(report):
            out(f"wrote {one_line(path)}")
    print_report(report, places.out, table=table, done=done, tell=None if silent else out)
    return report


def _exit(reports: "Iterable[Report]") -> None:
    if any(entry.error for report in reports for entry in report.entries):
        raise typer.Exit(1)


def print_report(
    report: "Report", out: object, *, table: str, done: str = "restored", tell: Callable[[str], None] | None = show
) -> None:
    """Print what failed, what was reduced, skipped, or had no face, then one line of counts.

    Args:
        report: The run's report.
        out: The folder of its results, for the line of counts.
        table: The file that lists everything.
        done: The word for `restored`.
        tell: Prints the line of counts; None leaves it out.
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
        names = listed([one_line(name) for name in faceless], 3)
        enlarged = (report.settings.get("photo") or {}).get("upscale", 1) > 1
        one, more = ("only enlarged",) * 2 if enlarged else ("kept as it is", "kept as they are")
        kept = f"it was {one}" if len(faceless) == 1 else f"they were {more}"
        say(
            f"no face was found in {names}, in any orientation: {kept}. If there is one, cut the picture to it, or "
            "use --aligned for a picture that is a face and nothing else"
        )
    if tell is not None:
        tell(summary(report, out, done=done))


def _say_some(lines: list[str], table: str) -> None:
    for line in lines[:SHOWN]:
        say(line)
    if len(lines) > SHOWN:
        say(f"and {len(lines) - SHOWN} more, see {table}")
