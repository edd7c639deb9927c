"""The requests to a `bfr serve` and what its answers mean; `transport.py` sends them."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from math import isnan
from os import PathLike, fstat
from pathlib import Path
from random import uniform
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from bfr.runtime.client.types import Job, Result
from bfr.runtime.errors import (
    BfrError,
    InputNotFound,
    InvalidOption,
    RequestRefused,
    ServerError,
    ServerUnavailable,
)
from bfr.runtime.images.encode import encode_image
from bfr.runtime.images.formats import WRITTEN, format_of
from bfr.runtime.images.given import as_image
from bfr.runtime.jobs.options import RestoreOptions
from bfr.runtime.jobs.search import content_suffix
from bfr.runtime.jobs.sources import MEDIA_TYPES, Item

_log = logging.getLogger("bfr")
LONGEST_PAUSE = 30.0  # seconds, whatever Retry-After says
ANSWER_BYTES = 4 << 20  # of an answer in JSON; `bfr serve` sends none that is longer
DETAIL = 2000  # characters of a reason
IMAGE_BYTES = 1 << 30  # of a restored image
FILE_BYTES = 1 << 38  # of the result of a job, which is written to a disk: 256 GiB
_JOB = TypeAdapter(Job)


class _Info(TypedDict):
    """What runs over files need of `GET /info`."""

    system: str
    bundle: str
    presets: dict[str, Any]
    default_preset: str | None
    backend: str
    jobs: bool
    version: str


_INFO = TypeAdapter(_Info)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    Attributes:
        headers: Headers; names in any case.
        content: Empty where it went into a file.
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)


def address(url: str) -> str:
    """Return a server's address without a trailing slash. Raises InvalidOption."""
    try:
        parts = urlsplit(str(url))
        there = parts.hostname and parts.port != 0  # `port` raises for one out of range
    except ValueError:
        there = False
    if not there or not re.fullmatch(r"(?i)https?://[^\s/?#@]+(/[^\s?#]*)?", str(url)):
        raise InvalidOption(f"{url!r} is no address of a server: give one as http://localhost:8000")
    scheme, _, rest = str(url).rstrip("/").partition(":")
    return f"{scheme.lower()}:{rest}"


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


def check_secrecy(url: str, api_key: str | None) -> None:
    """Warn where a key would pass other machines without encryption."""
    if api_key is not None and url.startswith("http://") and not is_loopback(url):
        _log.warning(
            "the API key is sent to %s without encryption, and whoever is on the way can read it: use https://, or a "
            "tunnel to a server on this machine's loopback address",
            url,
        )


def key_headers(api_key: str | None) -> dict[str, str]:
    """What every request says. Raises InvalidOption for what is no key."""
    if api_key is None:
        return {}
    if not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise InvalidOption("an API key has ASCII characters alone, and no spaces: copy it again")
    return {"Authorization": f"Bearer {api_key}"}


def asked(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The query and the headers of a request. Raises InvalidOption for unknown names and formats."""
    known = (*RestoreOptions.model_fields, "format")
    if unknown := [name for name in options if name not in known]:
        raise InvalidOption(f"there is no option {', '.join(unknown)}: choose among {', '.join(known)}")
    wanted = options.get("format") or "same"
    formats = {"same": "*/*"} | {one.suffixes[0]: one.media_type for one in WRITTEN}
    if wanted not in formats:
        raise InvalidOption(f"format {wanted!r} is not offered: choose one of {', '.join(formats)}")
    query = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
        if name != "format" and value is not None
    }
    return query, {"Accept": formats[wanted]}


def image_file(image: Any) -> tuple[bytes, str]:
    """An image, as `as_image` takes it, as a file, and its media type. Raises InputNotFound and InvalidImage."""
    if isinstance(image, str | PathLike):
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise InputNotFound(f"{image} cannot be read ({error.strerror}): check its name and permissions") from error
    elif not isinstance(image, bytes):
        held = as_image(image)
        image = encode_image(held.pixels, ".png", like=held)
    found = format_of(image)
    return image, found.media_type if found else "application/octet-stream"


def file_headers(path: Path) -> dict[str, str]:
    """The headers of a file that becomes a job. Raises InvalidOption and InputNotFound."""
    media_type = MEDIA_TYPES.get(Item(path, path.name, content=content_suffix(path)).suffix)
    if media_type is None:
        raise InvalidOption(f"{path} is not sent: jobs take files named {', '.join(MEDIA_TYPES)}")
    try:
        with path.open("rb") as file:  # a folder has a size too
            return {"Content-Type": media_type, "Content-Length": str(fstat(file.fileno()).st_size)}
    except OSError as error:
        raise InputNotFound(f"{path} cannot be read ({error.strerror}): check its name") from error


def result_of(response: Answer) -> Result:
    """A restored image. Raises KeyError and ValueError for what is no answer of `bfr serve`."""
    headers = response.headers
    stages = (part.split("=", 1) for part in headers["x-bfr-seconds"].split(";") if part)
    return Result(
        response.content,
        headers["content-type"].partition(";")[0],
        _count(headers["x-bfr-faces"]),
        _count(headers.get("x-bfr-faces-failed", "0")),
        int(headers["x-bfr-seed"]),
        headers["x-bfr-preset"],
        headers["x-bfr-bundle"],
        {name: min(1e9, max(0.0, float(value))) for name, value in stages},  # NaN becomes 0
        headers.get("x-request-id", ""),
        tuple(unquote(note) for note in headers.get("x-bfr-notes", "").split(",") if note),
        _count(headers.get("x-bfr-faces-sharp", "0")),
    )


def object_of(response: Answer) -> dict[str, Any]:
    """A JSON object. Raises ValueError for what is none."""
    try:
        found = json.loads(response.content)
    except RecursionError as error:
        raise ValueError("it is too deep") from error
    if not isinstance(found, dict):
        raise ValueError(f"{type(found).__name__} is no object")
    return found


def job_of(response: Answer) -> Job:
    """A job. Raises ValueError for what is none."""
    return _JOB.validate_python(object_of(response))


def info_of(response: Answer) -> dict[str, Any]:
    """What a server offers. Raises ValueError for what does not say so."""
    found = object_of(response)
    _INFO.validate_python(found)
    return found


def refusal(url: str, response: Answer) -> BfrError:
    """The error of an answer that is no success."""
    status = response.status_code
    try:
        detail = str(json.loads(response.content)["detail"])[:DETAIL]
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = f"status {status}, without a reason: check that `bfr serve` runs there"
    text = f"{url}: {detail}"
    if status in (429, 502, 503, 504):
        return ServerUnavailable(text)
    if status == 401:
        text += "; give the key with --api-key-file, BFR_API_KEY or api_key"
    return RequestRefused(text, status) if 300 <= status < 500 else ServerError(text)


def _count(text: str) -> int:
    """A number of faces. Raises ValueError."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"{text[:20]!r} is no number of faces")
    return int(text)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the pause that a server asks for, and up to a tenth more, so that clients do not all return at once.

    Args:
        headers: Headers; names in lower case.

    Returns:
        Seconds, or None if the headers do not say.
    """
    said = headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
    except ValueError:
        try:
            moment, now = parsedate_to_datetime(said), parsedate_to_datetime(headers["date"])  # of one clock
        except (ValueError, KeyError):
            return None
        seconds = (moment.astimezone(timezone.utc) - now.astimezone(timezone.utc)).total_seconds()
    return None if isnan(seconds) else uniform(1.0, 1.1) * min(LONGEST_PAUSE, max(0.0, seconds))


def backoff(attempt: int) -> float:
    """Seconds before the next attempt where the server does not say."""
    return uniform(0.5, 1.0) * min(8.0, 0.25 * 2.0 ** min(attempt, 10))
