"""The command line. Each command imports what it needs when it runs: `bfr restore` never sees torch."""

import signal
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from bfr.runtime.cli.commands import HELP_FLAGS, Group
from bfr.runtime.errors import BfrError

INTERRUPTED = 130  # the exit status of what Ctrl-C ended
app = typer.Typer(
    help="Restore the faces of photographs and videos with diffusion models.",
    cls=Group,
    no_args_is_help=True,
    context_settings=HELP_FLAGS,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line; a BfrError is printed as one message and decides the exit status."""
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C, so that temporary files are removed; Windows lacks the second
        number = getattr(signal, name, signal.SIGTERM)
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, signal.default_int_handler)
    if isinstance(sys.stdout, TextIOWrapper):  # a pipe of Windows, or PYTHONIOENCODING, may not know all names
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="bfr")
    except BfrError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:  # a name that is too long, a disk that fails; without a reason it is a bug
        from bfr.runtime.cli.terminal import volume

        if error.strerror is None or volume.verbose:
            raise
        if error.filename is None and isinstance(error, FileNotFoundError):
            no_scratch = "usable temporary" in error.strerror  # of Python's tempfile
            _say(
                "error: no folder for temporary files can be written: set TMPDIR to one that can"
                if no_scratch
                else "error: the current folder was deleted: change to another one"
            )
            sys.exit(BfrError.exit_code)
        what = f"{error.filename} cannot be used: {error.strerror}" if error.filename else error.strerror
        _say(f"error: {what}: check names and addresses, permissions, and the disk")
        sys.exit(BfrError.exit_code if error.filename else 1)  # without a name a stream or the network failed
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer makes this of KeyboardInterrupt, without a word
            _say("interrupted; what was finished is kept")
        raise


def _say(text: str) -> None:
    from bfr.runtime.cli.terminal import say

    say(text)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"bfr {version('bfr-runtime')}")
        raise typer.Exit


@app.callback()
def _top(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
