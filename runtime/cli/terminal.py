"""What the commands print with: messages and progress go to standard error, results to standard output.

Names of files, texts of bundles and a server's words come from outside: what a terminal would obey is escaped, and
addresses lose passwords and signatures.
"""

import logging

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from bfr.runtime.text import printable, without_secrets

stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Print a line of progress or an error."""
    stderr.print(harmless(text), markup=False)


def show(text: str) -> None:
    """Print a result."""
    print(harmless(text))


def harmless(text: str) -> str:
    """A text without what a terminal obeys, and without secrets."""
    return printable(without_secrets(text))


def one_line(name: str) -> str:
    """The name of a file, in one line: it could hold line feeds, and pass for further messages."""
    return printable(without_secrets(name), lines=False)


class _NameColumn(TextColumn):
    """The name of a file."""

    def render(self, task: Task) -> Text:
        return Text(one_line(task.description))


class _Messages(logging.Handler):
    """Log records as messages."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def say_warnings() -> None:
    """Print what the package warns of to standard error; a command that logs otherwise replaces the handler."""
    logging.getLogger("bfr").handlers[:] = [_Messages()]


def progress_bar(*, download: bool = False, quiet: bool = False) -> Progress:
    """A bar with elapsed and remaining time, of images or of bytes; none if `quiet`, and none in a log."""
    amount = (DownloadColumn(), TransferSpeedColumn()) if download else (MofNCompleteColumn(),)
    return Progress(
        _NameColumn("{task.description}"),
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr,
        disable=quiet or not stderr.is_terminal,
    )
