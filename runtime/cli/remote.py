"""`bfr restore --server`: what a server decides is refused here, and files go through `client/job.py`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bfr.runtime.cli.options import STRIP
from bfr.runtime.cli.terminal import image_progress
from bfr.runtime.errors import InputNotFound, InvalidOption
from bfr.runtime.jobs.options import RestoreOptions

if TYPE_CHECKING:
    from bfr.runtime.faces.options import PhotoOptions
    from bfr.runtime.jobs.options import JobOptions
    from bfr.runtime.jobs.report import Report
    from bfr.runtime.jobs.sources import Inputs

HERE = (
    "inputs", "out", "aligned", "format", "compare", "html", "resume", "overwrite", "quiet", "verbose", "as_json",
    "server", "api_key_file",
)  # fmt: skip
"""Options of `bfr restore` for this side. Of the others, the server decides those that are no RestoreOptions."""
KEY_VARIABLE = "BFR_API_KEY"


def check_server_options(context: typer.Context, *, server: str | None) -> None:
    """Raise InvalidOption for options of `bfr restore` that do not go with --server, or only with it."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    if server is None:
        os.environ.pop(KEY_VARIABLE, None)  # decoders of strangers' pictures do without it
        if "api_key_file" in given:
            raise InvalidOption("--api-key-file is for a server: give its address with --server, or leave it out")
        return
    asked = RestoreOptions.model_fields.keys() - {"bundle"}  # a folder here, a name there
    decided = [name for name in given if name not in HERE and name not in asked]
    if decided:
        flags = ", ".join(STRIP.get(name, f"--{name.replace('_', '-')}") for name in decided)
        raise InvalidOption(f"{flags} cannot go with --server: leave it out, or --server")


def restore_remotely(
    server: str,
    api_key_file: Path | None,
    found: "Inputs",
    options: "JobOptions",
    photo: "PhotoOptions | None",
    preset: str | None,
) -> "Report":
    """As `run_remote_job`, with a progress bar."""
    from bfr.runtime.client import Client
    from bfr.runtime.client.job import run_remote_job

    items, passed_over = found.items, found.passed_over
    with (
        Client(server, api_key=_key(api_key_file)) as client,
        image_progress("restoring", len(items)) as progress,
    ):
        return run_remote_job(client, items, options, photo, preset=preset, passed_over=passed_over, progress=progress)


def _key(file: Path | None) -> str | None:
    """The API key: the first of the file, which may be the server's own, else the environment's, else none."""
    if file is None:
        return os.environ.pop(KEY_VARIABLE, None) or None  # decoders of strangers' pictures do without it
    try:
        lines = [line.split() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputNotFound(f"{file} cannot be read ({error}): it holds the API key in its first line") from error
    keys = [words[0] for words in lines if words and not words[0].startswith("#")]
    if not keys:
        raise InvalidOption(f"{file} holds no API key: write the server's into it")
    return keys[0]
