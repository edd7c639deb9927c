"""The command line. Each command imports what it needs when it runs: `bfr restore` never sees torch."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from bfr.runtime.cli.batch import batch
from bfr.runtime.cli.build import build
from bfr.runtime.cli.help import Command, Group
from bfr.runtime.cli.inpaint import inpaint
from bfr.runtime.cli.inspect import doctor, info
from bfr.runtime.cli.live import live
from bfr.runtime.cli.push import push
from bfr.runtime.cli.restore import restore
from bfr.runtime.cli.serve import serve
from bfr.runtime.cli.terminal import say, say_warnings
from bfr.runtime.cli.tools import bench, export, fetch, verify
from bfr.runtime.cli.triton import export_triton
from bfr.runtime.cli.wrap import wrap
from bfr.runtime.errors import BfrError

INTERRUPTED = 130  # the exit status of what Ctrl-C ended
COMMANDS = {
    "Restore": (restore, inpaint, live),
    "Serve and scale": (serve, batch),
    "Export and build": (fetch, export, wrap, build, verify, export_triton, push),
    "Measure": (bench,),
    "Inspect": (info, doctor),
}
app = typer.Typer(
    help="Diffusion-based blind face restoration, deployed.",
    cls=Group,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _group, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_group, cls=Command)(_command)


def main() -> None:
    """Run the command line; a BfrError is printed as one message and decides the exit status."""
    say_warnings()
    try:
        app(prog_name="bfr")
    except BfrError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer makes this of KeyboardInterrupt, without a word
            say("interrupted; what was finished is kept")
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bfr {version('bfr-runtime')}")
        raise typer.Exit


@app.callback()
def _top(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
