"""What is asked of a `bfr serve`, and what its answers mean. No I/O: a call is a generator of requests and pauses.

Whoever runs a call sends each Request and gives the Answer back, or Lost, and sleeps through each Pause; `client.py`
does so in two ways. The same image and seed give the same bytes: to restore can be asked for again.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from itertools import count
from math import isnan
from pathlib import Path
from random import uniform
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.client.types import Answer, Call, Job, Pause, Request, Result
from bfr.runtime.errors import (
    BfrError,
    InputNotFound,
    InvalidImage,
    InvalidOption,
    RequestRefused,
    ServerError,
    ServerUnavailable,
)
from bfr.runtime.images.encode import encode_image
from bfr.runtime.images.formats import BY_SUFFIX, WRITTEN, format_of
from bfr.runtime.jobs.options import RestoreOptions
from bfr.runtime.video.formats import MEDIA_TYPES as VIDEOS

MEDIA_TYPES = {suffix: one.media_type for suffix, one in BY_SUFFIX.items()} | VIDEOS
LONGEST_PAUSE = 30.0  # seconds, whatever Retry-After says
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one server. timeout: seconds of a call, with its pauses. retries: beside the first attempt."""

    url: str
    timeout: float
    retries: int

    def __post_init__(self) -> None:
        """Raise InvalidOption for values out of range."""
        if not self.timeout > 0:
            raise InvalidOption(f"the timeout is {self.timeout} seconds: choose more than 0")
        if self.retries < 0:
            raise InvalidOption(f"{self.retries} retries were asked for: choose 0 or more")

    def restore(self, image: bytes | Path | NDArray[np.uint8], options: Mapping[str, Any]) -> Call[Result]:
        """Restore one image. See `Client.restore`."""
        query, headers = _asked(options)
        body = _image_bytes(image)
        found = format_of(body)
        headers["Content-Type"] = found.media_type if found else "application/octet-stream"
        answer = yield from self._exchange(Request("POST", "/restore", query, headers, body))
        try:
            return _result(answer)
        except (KeyError, ValueError) as error:
            raise self._stranger() from error

    def submit(self, path: Path, options: Mapping[str, Any]) -> Call[Job]:
        """Send a video or an image as a job. It is asked for again only where the server cannot have it."""
        query, headers = _asked(options)
        media_type = MEDIA_TYPES.get(path.suffix.lower())
        if media_type is None:
            raise InvalidOption(f"{path} is not sent: jobs take files named {', '.join(MEDIA_TYPES)}")
        try:
            headers |= {"Content-Type": media_type, "Content-Length": str(path.stat().st_size)}
        except OSError as error:
            raise InputNotFound(f"{path} cannot be read ({error.strerror}): check its name") from error
        answer = yield from self._exchange(
            Request("POST", "/jobs", query, headers, path, bounded=False), repeatable=False
        )
        return self._job(answer)

    def job(self, name: str) -> Call[Job]:
        """Where a job is."""
        answer = yield from self._exchange(Request("GET", f"/jobs/{quote(name, safe='')}"))
        return self._job(answer)

    def wait(self, name: str, timeout: float | None, progress: Callable[[Job], object]) -> Call[Job]:
        """The job once it has ended, well or not. Raises ServerUnavailable after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        for turn in count():
            job = yield from self.job(name)
            progress(job)
            if job.state in ENDED:
                return job
            if end is not None and time.monotonic() > end:
                raise ServerUnavailable(
                    f"job {name} is {job.state} after {timeout:g} s: wait longer, or come back later"
                )
            yield Pause(min(2.0, 0.1 * 1.3**turn))
        raise AssertionError

    def download(self, name: str, path: Path) -> Call[None]:
        """Write the result of a job under `path`, whole or not at all. Raises WriteFailed."""
        yield from self._exchange(Request("GET", f"/jobs/{quote(name, safe='')}/result", into=path, bounded=False))

    def delete(self, name: str) -> Call[None]:
        """Cancel a job and forget its files."""
        yield from self._exchange(Request("DELETE", f"/jobs/{quote(name, safe='')}"))

    def info(self) -> Call[dict[str, Any]]:
        """What the server offers."""
        answer = yield from self._exchange(Request("GET", "/info"))
        return self._object(answer)

    def ready(self) -> Call[bool]:
        """Whether the server takes requests now; asked once."""
        answer = yield Request("GET", "/ready", seconds=self.timeout)
        return isinstance(answer, Answer) and answer.status == 200

    def _exchange(self, request: Request, *, repeatable: bool = True) -> Call[Answer]:
        """The answer that was wanted, after as many attempts as it takes. repeatable: to send it twice does no harm."""
        end = time.monotonic() + self.timeout
        for attempt in count():
            left = end - time.monotonic() if request.bounded else self.timeout
            reply = yield replace(request, seconds=max(0.001, left))
            if isinstance(reply, Answer):
                if reply.status < 300:
                    return reply
                error: BfrError = self._refusal(reply)
                again = reply.status == 503 or (repeatable and reply.status in (502, 504))
            else:
                reason, sent = (reply.reason, reply.sent) if reply else ("no answer", True)
                error = ServerUnavailable(
                    f"{self.url} cannot be reached ({reason}): check the address and that it runs"
                )
                again = repeatable or not sent
            pause = _retry_after(reply) if isinstance(reply, Answer) else None
            if pause is None:
                pause = uniform(0.5, 1.0) * min(8.0, 0.25 * 2 ** min(attempt, 10))
            late = request.bounded and time.monotonic() + pause >= end
            if not again or attempt == self.retries or late:
                raise error
            yield Pause(pause)
        raise AssertionError

    def _refusal(self, answer: Answer) -> BfrError:
        try:
            detail = str(json.loads(answer.body)["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"status {answer.status}, without a reason: check that `bfr serve` runs there"
        text = f"{self.url}: {detail}"
        if answer.status in (502, 503, 504):
            return ServerUnavailable(text)
        if answer.status == 401:
            text += "; give the key with --api-key-file, BFR_API_KEY or api_key"
        return RequestRefused(text, answer.status) if 300 <= answer.status < 500 else ServerError(text)

    def _job(self, answer: Answer) -> Job:
        found = self._object(answer)
        try:
            return Job(**{name: found[name] for name in (one.name for one in fields(Job)) if name in found})
        except TypeError as error:
            raise self._stranger() from error

    def _object(self, answer: Answer) -> dict[str, Any]:
        try:
            found = json.loads(answer.body)
        except ValueError as error:
            raise self._stranger() from error
        if not isinstance(found, dict):
            raise self._stranger()
        return found

    def _stranger(self) -> ServerError:
        return ServerError(
            f"{self.url} does not answer as `bfr serve` does: check the address, and the server's version"
        )


def _asked(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The query and the headers of a request. Raises InvalidOption for names and formats that there are not."""
    known = (*RestoreOptions.model_fields, "format")
    if unknown := [name for name in options if name not in known]:
        raise InvalidOption(f"there is no option {', '.join(unknown)}: choose among {', '.join(known)}")
    wanted = options.get("format", "same")
    formats = {"same": "*/*"} | {one.suffixes[0]: one.media_type for one in WRITTEN}
    if wanted not in formats:
        raise InvalidOption(f"format {wanted!r} is not offered: choose one of {', '.join(formats)}")
    query = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if name != "format"
    }
    return query, {"Accept": formats[wanted]}


def _image_bytes(image: bytes | Path | NDArray[np.uint8]) -> bytes:
    """An image as a file. Raises InputNotFound and InvalidImage."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InvalidImage(f"an array {image.shape} of {image.dtype} was given: (H, W, 3) uint8 RGB is needed")
        return encode_image(image, ".png")
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputNotFound(f"{image} cannot be read ({error.strerror}): check its name and permissions") from error


def _result(answer: Answer) -> Result:
    """Raises KeyError and ValueError for what is no answer of `bfr serve`."""
    headers = answer.headers
    stages = (part.split("=", 1) for part in headers["x-bfr-seconds"].split(";") if part)
    return Result(
        answer.body,
        headers["content-type"].partition(";")[0],
        int(headers["x-bfr-faces"]),
        int(headers.get("x-bfr-faces-failed", 0)),
        int(headers["x-bfr-seed"]),
        headers["x-bfr-preset"],
        headers["x-bfr-bundle"],
        {name: float(value) for name, value in stages},
        headers.get("x-request-id", ""),
    )


def _retry_after(answer: Answer) -> float | None:
    """Seconds that the server wants to be left alone for, and up to a tenth more, so that not all come back at once."""
    said = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            moment, now = parsedate_to_datetime(said), parsedate_to_datetime(answer.headers["date"])  # of one clock
        except (ValueError, KeyError):
            return None
        seconds = (moment.astimezone(UTC) - now.astimezone(UTC)).total_seconds()
    return None if isnan(seconds) else uniform(1.0, 1.1) * min(LONGEST_PAUSE, max(0.0, seconds))
