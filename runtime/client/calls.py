"""What is asked of a `bfr serve`, and what its answers mean; `client.py` sends it."""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from math import isnan
from pathlib import Path
from random import uniform
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.client.types import Job, Result
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

if TYPE_CHECKING:
    import httpx2

MEDIA_TYPES = {suffix: one.media_type for suffix, one in BY_SUFFIX.items()} | VIDEOS
LONGEST_PAUSE = 30.0  # seconds, whatever Retry-After says


def address(url: str) -> str:
    """Of a server, without a slash at its end. Raises InvalidOption."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
        raise InvalidOption(f"{url!r} is no address of a server: give one as http://localhost:8000")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a server is on this machine: no proxy leads there."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def route(url: str) -> str:
    """Name a server for messages, with the proxy of the environment that requests to it go through."""
    parts = urlsplit(url)
    if is_loopback(url) or not parts.hostname or proxy_bypass(parts.hostname):
        return url
    proxies = getproxies()
    scheme = parts.scheme if parts.scheme in proxies else "all"
    if scheme not in proxies:
        return url
    return f"{url} (through the proxy {proxies[scheme]} of {scheme}_proxy)"


def key_headers(api_key: str | None) -> dict[str, str]:
    """What every request says. Raises InvalidOption for what is no key."""
    if api_key is None:
        return {}
    if not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise InvalidOption("an API key has ASCII characters alone, and no spaces: copy it again")
    return {"Authorization": f"Bearer {api_key}"}


def asked(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
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


def image_file(image: bytes | Path | NDArray[np.uint8]) -> tuple[bytes, str]:
    """An image as a file, and its media type. Raises InputNotFound and InvalidImage."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise InvalidImage(f"an array {image.shape} of {image.dtype} was given: (H, W, 3) uint8 RGB is needed")
        image = encode_image(image, ".png")
    elif isinstance(image, Path):
        path = image
        try:
            image = path.read_bytes()
        except OSError as error:
            raise InputNotFound(f"{path} cannot be read ({error.strerror}): check its name and permissions") from error
    found = format_of(image)
    return image, found.media_type if found else "application/octet-stream"


def file_headers(path: Path) -> dict[str, str]:
    """The headers of a file that becomes a job. Raises InvalidOption and InputNotFound."""
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise InvalidOption(f"{path} is not sent: jobs take files named {', '.join(MEDIA_TYPES)}")
    try:
        return {"Content-Type": media_type, "Content-Length": str(path.stat().st_size)}
    except OSError as error:
        raise InputNotFound(f"{path} cannot be read ({error.strerror}): check its name") from error


def result_of(response: "httpx2.Response") -> Result:
    """A restored image. Raises KeyError and ValueError for what is no answer of `bfr serve`."""
    headers = response.headers
    stages = (part.split("=", 1) for part in headers["x-bfr-seconds"].split(";") if part)
    return Result(
        response.content,
        headers["content-type"].partition(";")[0],
        int(headers["x-bfr-faces"]),
        int(headers.get("x-bfr-faces-failed", 0)),
        int(headers["x-bfr-seed"]),
        headers["x-bfr-preset"],
        headers["x-bfr-bundle"],
        {name: float(value) for name, value in stages},
        headers.get("x-request-id", ""),
        tuple(unquote(note) for note in headers.get("x-bfr-notes", "").split(",") if note),
    )


def object_of(response: "httpx2.Response") -> dict[str, Any]:
    """A JSON object. Raises ValueError for what is none."""
    found = json.loads(response.content)
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} is no object")
    return found


def job_of(response: "httpx2.Response") -> Job:
    """A job. Raises ValueError and TypeError for what is none."""
    found = object_of(response)
    return Job(**{one.name: found[one.name] for one in fields(Job) if one.name in found})


def refusal(url: str, response: "httpx2.Response") -> BfrError:
    """The error of an answer that is no success."""
    status = response.status_code
    try:
        detail = str(json.loads(response.content)["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {status}, without a reason: check that `bfr serve` runs there"
    text = f"{url}: {detail}"
    if status in (502, 503, 504):
        return ServerUnavailable(text)
    if status == 401:
        text += "; give the key with --api-key-file, BFR_API_KEY or api_key"
    return RequestRefused(text, status) if 300 <= status < 500 else ServerError(text)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server wants to be left alone for, and up to a tenth more, so that not all come back at once.

    headers: by names in lower case. None where it does not say.
    """
    said = headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            moment, now = parsedate_to_datetime(said), parsedate_to_datetime(headers["date"])  # of one clock
        except (ValueError, KeyError):
            return None
        seconds = (moment.astimezone(UTC) - now.astimezone(UTC)).total_seconds()
    return None if isnan(seconds) else uniform(1.0, 1.1) * min(LONGEST_PAUSE, max(0.0, seconds))


def backoff(attempt: int) -> float:
    """Seconds before the next attempt where the server does not say."""
    return uniform(0.5, 1.0) * min(8.0, 0.25 * 2.0 ** min(attempt, 10))
