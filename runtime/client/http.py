"""What both clients have to do with httpx2, which is imported when a client is made."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bfr.runtime.client.types import Answer, Lost, Request
from bfr.runtime.errors import InvalidOption, MissingDependency

if TYPE_CHECKING:
    import httpx2

CHUNK = 1 << 20  # bytes of an upload that are in memory at once


def library() -> Any:
    """httpx2. Raises MissingDependency."""
    try:
        import httpx2
    except ImportError as error:
        raise MissingDependency('httpx2 is not installed: pip install "bfr-runtime[client]"') from error
    return httpx2


def address(url: str) -> str:
    """Of a server, without a slash at its end. Raises InvalidOption."""
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
        raise InvalidOption(f"{url!r} is no address of a server: give one as http://localhost:8000")
    return url.rstrip("/")


def key_headers(api_key: str | None) -> dict[str, str]:
    """What every request says. Raises InvalidOption for what is no key."""
    if api_key is None:
        return {}
    if not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise InvalidOption("an API key has ASCII characters alone, and no spaces: copy it again")
    return {"Authorization": f"Bearer {api_key}"}


def limits() -> "httpx2.Limits":
    """Of connections: callers decide how many requests are under way."""
    return library().Limits(max_connections=None, max_keepalive_connections=20)  # type: ignore[no-any-return]


def arguments(url: str, request: Request) -> dict[str, Any]:
    """Of httpx2's `stream`, but for the body."""
    return {
        "method": request.method,
        "url": url + request.path,
        "params": dict(request.query),
        "headers": dict(request.headers),
        "timeout": request.seconds,
    }


def answer_of(response: "httpx2.Response", body: bytes) -> Answer:
    """What came back."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body)


def lost(error: "httpx2.RequestError") -> Lost:
    """What did not; whether the server may have the request."""
    http = library()
    unsent = isinstance(error, http.ConnectError | http.ConnectTimeout | http.PoolTimeout)
    return Lost(str(error) or type(error).__name__, sent=not unsent)


def parts(path: Path) -> Iterator[bytes]:
    """A file, a piece at a time."""
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            yield part


async def parts_async(path: Path) -> AsyncIterator[bytes]:
    """A file, a piece at a time."""
    with path.open("rb") as file:
        while part := await asyncio.to_thread(file.read, CHUNK):
            yield part
