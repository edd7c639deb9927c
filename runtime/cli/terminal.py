"""What the commands print with: messages and progress go to standard error, results to standard output.

Names of files, texts of bundles and a server's words come from outside: what a terminal would obey is escaped, and
addresses lose passwords and signatures.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console

from bfr.runtime.errors import InvalidOption
from bfr.runtime.text import printable, without_secrets

if TYPE_CHECKING:
    from rich.progress import Progress

    from bfr.runtime.bundle.bundle import Bundle

stderr = Console(stderr=True, soft_wrap=True, highlight=False)


@dataclass(slots=True)
class Volume:
    """How much is printed.

    Attributes:
        quiet: `--quiet` of the command that runs.
        verbose: `--verbose` of it.
        began: When it did, seconds of `time.perf_counter`.
    """

    quiet: bool = False
    verbose: bool = False
    began: float = field(default_factory=time.perf_counter)

    def set_quiet(self, quiet: bool) -> bool:
        """Take the flag, and return it."""
        self.quiet = quiet
        return quiet

    def set_verbose(self, verbose: bool) -> bool:
        """Take the flag, and return it. Raises InvalidOption beside the other one, which is parsed first."""
        self.verbose = verbose
        if verbose and self.quiet:
            raise InvalidOption("--quiet and --verbose exclude each other: leave one out")
        return verbose


volume = Volume()


def say(text: str) -> None:
    """Print a line of progress or an error."""
    stderr.print(harmless(text), markup=False)


def tell(text: str) -> None:
    """Print a line of progress, with `--verbose` when it was; nothing with `--quiet`."""
    if not volume.quiet:
        say(f"{time.perf_counter() - volume.began:7.1f} s  {text}" if volume.verbose else text)


def conclude(text: str) -> None:
    """Print what a command came to, which its exit status says too; nothing with `--quiet`."""
    if not volume.quiet:
        show(text)


def conclude_with(facts: dict[str, Any], text: str, *, as_json: bool) -> None:
    """Print what a command came to: facts in one line of JSON where `as_json`, else as `conclude`."""
    if as_json:
        print(json.dumps(facts))
    else:
        conclude(text)


def conclude_bundle(bundle: "Bundle", done: str, *, as_json: bool) -> None:
    """Print that a bundle was made."""
    facts = {"folder": str(bundle.folder), "hash": bundle.hash}
    conclude_with(facts, f"{bundle.folder}: {done}, hash {bundle.hash}", as_json=as_json)


def show(text: str) -> None:
    """Print a result."""
    print(harmless(text))


def harmless(text: str) -> str:
    """A text without what a terminal obeys, and without secrets."""
    return printable(without_secrets(text))


def one_line(name: str) -> str:
    """The name of a file, in one line: it could hold line feeds, and pass for further messages."""
    return printable(without_secrets(name), lines=False)


class _Messages(logging.Handler):
    """Log records as messages."""

    def emit(self, record: logging.LogRecord) -> None:
        (say if record.levelno >= logging.WARNING else tell)(self.format(record))


def say_warnings() -> None:
    """Print what the package warns of to standard error, with `--verbose` what it logs of its steps too.

    A command that logs otherwise replaces the handler.
    """
    logger = logging.getLogger("bfr")
    logger.handlers[:] = [_Messages()]
    logger.setLevel(logging.INFO if volume.verbose else logging.NOTSET)
    if not volume.verbose:  # what it says of damaged files stands in their notes and errors, by name
        warnings.filterwarnings("ignore", module=r"PIL\.")


def progress_bar(*, download: bool = False) -> "Progress":
    """A bar with elapsed and remaining time, of images or of bytes; none with `--quiet`, and none in a log."""
    from rich import progress as bar
    from rich.text import Text

    class NameColumn(bar.TextColumn):
        def render(self, task: bar.Task) -> Text:
            return Text(one_line(task.description))

    amount = (bar.DownloadColumn(), bar.TransferSpeedColumn()) if download else (bar.MofNCompleteColumn(),)
    return bar.Progress(
        NameColumn("{task.description}"),
        bar.BarColumn(),
        *amount,
        bar.TimeElapsedColumn(),
        bar.TimeRemainingColumn(),
        console=stderr,
        disable=volume.quiet or not stderr.is_terminal,
    )


@contextmanager
def image_progress(doing: str, images: int) -> Iterator[Callable[[float, str], None]]:
    """Show a bar of so many images; yield what takes how many are done, with parts, and a name."""
    with progress_bar() as bar:
        task = bar.add_task(doing, total=images)
        yield lambda done, name: bar.update(task, completed=done, description=name)
