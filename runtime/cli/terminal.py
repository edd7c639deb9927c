"""What the commands print with: messages and progress go to standard error, results to standard output."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def say(text: str) -> None:
    """Print a line of progress or an error, as it is."""
    stderr.print(text, markup=False)


def progress_bar(*, download: bool = False) -> Progress:
    """A bar with elapsed and remaining time, of images or of bytes."""
    amount = (DownloadColumn(), TransferSpeedColumn()) if download else (MofNCompleteColumn(),)
    return Progress(
        TextColumn("{task.description}", markup=False),  # the names of files
        BarColumn(),
        *amount,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=stderr,
    )
