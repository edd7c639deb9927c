"""Errors that a user can fix. Every message names what was found, where, and the remedy; other errors are bugs."""

from pathlib import Path
from traceback import extract_tb

from bfr.runtime.text import without_secrets


class BfrError(Exception):
    """Base of all errors that a user can fix; `bfr` prints its text alone and exits with `exit_code`.

    Its text has addresses without passwords and signatures: it goes to terminals, logs, reports and servers' answers.
    """

    exit_code = 2

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class InvalidOption(BfrError, ValueError):
    """An option is out of its range, or two options exclude each other."""


class InputNotFound(BfrError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class MissingDependency(BfrError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class InvalidImage(BfrError, ValueError):
    """An image cannot be decoded, is of a refused format, or exceeds a limit."""


class InvalidCheckpoint(BfrError, ValueError):
    """A checkpoint is damaged, of another network, or holds more than tensors."""


class BundleInvalid(BfrError, ValueError):
    """A bundle is missing, incomplete, or of an unknown format."""


class BundleCorrupt(BfrError):
    """A file of a bundle is not the one that its manifest describes."""


class EngineMissing(BfrError):
    """No engine was built for a network; `bfr build` makes one."""


class EngineMismatch(BfrError):
    """The engines of a network were built for another machine, library or network."""


class EngineBuildFailed(BfrError, RuntimeError):
    """An engine could not be built, or was not what it should be; nothing was published, older engines stay."""

    exit_code = 1


class DeviceOutOfMemory(BfrError, MemoryError):
    """The device has too little free memory. The device itself remains usable."""

    exit_code = 1


class DeviceLost(BfrError, RuntimeError):
    """The GPU reported an error that destroys the CUDA context: the process must be restarted."""

    exit_code = 1


class BackendUnavailable(BfrError, RuntimeError):
    """A backend or execution provider that was chosen does not work on this machine."""


class RestorationFailed(BfrError):
    """A result held NaN or Inf, or an image could not be restored; nothing was written for it."""

    exit_code = 1


class VerificationFailed(BfrError):
    """An exported network does not agree with eager float32; it was not published."""

    exit_code = 1


class WriteFailed(BfrError, OSError):
    """A file could not be written (disk full, read-only folder); nothing partial was left under its name."""

    exit_code = 1


class DownloadFailed(BfrError, OSError):
    """A download was interrupted, or what arrived is not the file that was expected."""

    exit_code = 1


class ServerError(BfrError):
    """A server failed at a request, or did not answer as `bfr serve` does."""

    exit_code = 1


class ServerUnavailable(ServerError):
    """A server cannot be reached or is overloaded, and was so until time or attempts were used up."""


class RequestRefused(ServerError, ValueError):
    """A server refuses a request, and would refuse it again.

    Attributes:
        status: HTTP status, 400 to 499.
    """

    exit_code = 2

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def explain_failure(error: Exception) -> str:
    """Return why one file failed: the text of a BfrError; of other errors their type, place and text."""
    if isinstance(error, BfrError):
        return str(error)
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    if isinstance(error, MemoryError) or "Insufficient memory" in text:  # the latter is OpenCV's
        return "it does not fit into memory: make it smaller, or free some memory"
    if isinstance(error, OSError) and error.strerror:
        return without_secrets(f"{error.filename or 'a file'} cannot be used: {error.strerror}")
    frames = extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return without_secrets(f"{type(error).__name__}{where}: {text}; report this, with the file")
