"""`bfr live`: restore a live camera or stream."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from bfr.runtime.cli.options import AS_JSON, Flags, expanded
from bfr.runtime.cli.terminal import conclude, stderr, tell, volume
from bfr.runtime.errors import BfrError, InputNotFound
from bfr.runtime.faces.options import PhotoOptions
from bfr.runtime.live.options import PAGE, WINDOW, LiveOptions, check_sink, kind_of
from bfr.runtime.restore.options import OpenOptions, SamplerOptions
from bfr.runtime.text import without_secrets


@expanded
def live(
    source: Annotated[str, typer.Argument(help="A camera (/dev/video0), rtsp://HOST/NAME, or udp://0.0.0.0:PORT.")],
    options: Annotated[LiveOptions, Flags(panel="Stream", negative={"overlay": "--no-overlay"})],
    photo: Annotated[PhotoOptions, Flags(without=("restore_sharp",))],
    opened: Annotated[OpenOptions, Flags()],
    sampler: Annotated[SamplerOptions, Flags()],
    sinks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SINK",
            help=f"rtsp://HOST/NAME, udp://HOST:PORT, a file (.mkv, .mp4, .mov), {WINDOW}, or http://HOST:PORT for a "
            f"page and /metrics. You can name several. [default: {PAGE}]",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: AS_JSON = False,
) -> None:
    """Restore the faces of a live camera or stream.

    Late frames are dropped, never queued. Ctrl-C ends the command.
    """
    if kind_of(source) == "camera" and not Path(source).exists():
        raise InputNotFound(f"there is no {source}: `ls /dev/video*` lists the cameras")
    targets = sinks or [PAGE]
    for target in targets:
        check_sink(target, overwrite=overwrite)
    from bfr.runtime.faces.photo import PhotoRestorer
    from bfr.runtime.live.counts import Counts
    from bfr.runtime.live.page import Page
    from bfr.runtime.live.run import run_live
    from bfr.runtime.live.sinks import Encoded, Sent, Sink, Window
    from bfr.runtime.restore.restorer import Restorer

    counts, made = Counts(), list[Sink]()
    with Restorer.open(opened, spinning=False, **sampler.changes) as restorer:
        worker = PhotoRestorer(restorer, photo)
        try:
            for target in targets:
                if target == WINDOW:
                    made.append(Window(f"bfr live: {without_secrets(source)}"))
                elif target.lower().startswith("http:"):
                    page = Page(target, counts)
                    made.append(page)
                    tell(f"page: {page.address}, metrics: {page.address}metrics")
                elif urlsplit(target).scheme:
                    made.append(Sent(target, options.reconnect, counts))
                else:
                    made.append(Encoded(target))
        except BfrError:
            for sink in made:
                sink.close()
            raise
        status: Any = nullcontext() if volume.quiet or not stderr.is_terminal else stderr.status("waiting for a frame")
        with status as line:
            seconds = run_live(
                worker, source, made, options, counts, tell=line.update if line is not None else lambda _line: None
            )
    found = counts.summary(seconds)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        conclude(
            f"{counts.shown} frames in {seconds:.1f} s ({found['frames_per_second']} a second), {counts.faces} faces; "
            f"delay {found['delay_mean'] * 1000:.0f} ms in the mean, {counts.worst * 1000:.0f} at most; "
            f"{counts.dropped} frames dropped, {counts.late} late, {counts.left} faces left, "
            f"{counts.reconnects} reconnects"
        )
