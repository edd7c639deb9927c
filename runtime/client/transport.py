"""How requests reach a `bfr serve`: proxies, attempts, time limits, and answers of bounded size."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bfr.runtime.client.calls import (
    ANSWER_BYTES,
    FILE_BYTES,
    IMAGE_BYTES,
    Answer,
    address,
    backoff,
    check_secrecy,
    is_loopback,
    key_headers,
    refusal,
    retry_after,
    route,
)
from bfr.runtime.errors import BfrError, InputNotFound, InvalidOption, ServerError, ServerUnavailable
from bfr.runtime.files import atomic_path
from bfr.runtime.install import importing
from bfr.runtime.timeouts import timeout

if TYPE_CHECKING:
    import ssl

CHUNK = 1 << 20  # bytes of an upload that are in memory at once


@cache
def _certificates(trust_env: bool) -> "ssl.SSLContext":
    """The context that checks certificates. The clients of a process share it: making one takes 50 ms."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)


class Transport:
    """The connections to a server."""

    def __init__(self, url: str, api_key: str | None, seconds: float, retries: int) -> None:
        """See `AsyncClient`, whose timeout is `seconds`."""
        if not seconds > 0:
            raise InvalidOption(f"the timeout is {seconds} seconds: choose more than 0")
        if retries < 0:
            raise InvalidOption(f"retries {retries} is out of range: choose 0 or more")
        with importing("httpx2", "client"):
            import httpx2
        self.url, self.seconds, self._retries, self._library = address(url), seconds, retries, httpx2
        self._loop: asyncio.AbstractEventLoop | None = None  # of the connections
        self._where = route(self.url)
        check_secrecy(self.url, api_key)
        trust_env = not is_loopback(self.url)
        try:
            httpx2.URL(self.url)
        except httpx2.InvalidURL as error:
            raise InvalidOption(f"{self.url} is no address of a server ({error}): check its name") from error
        try:
            self._open = partial(
                httpx2.AsyncClient,
                verify=_certificates(trust_env),
                headers=key_headers(api_key) | {"Accept-Encoding": "identity"},
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
                trust_env=trust_env,
            )
            self._http = self._open()
        except (ImportError, ValueError, OSError, httpx2.InvalidURL) as error:
            wrong = "SSL_CERT_FILE" if isinstance(error, OSError) else "the proxy"
            raise InvalidOption(f"{self._where} cannot be asked ({error}): fix or unset {wrong}") from error

    async def close(self) -> None:
        """Close the connections."""
        await self._connections().aclose()

    def _connections(self) -> Any:
        """The connections of the running event loop; those of an earlier one cannot be used any more."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            self._http = self._open()
        self._loop = loop
        return self._http

    async def ready(self) -> bool:
        """Whether the server takes requests now; asked once."""
        try:
            response = await self._send("GET", "/ready", self.seconds)
        except (self._library.RequestError, asyncio.TimeoutError):
            return False
        return response.status_code == 200

    async def exchange(
        self, method: str, path: str, *, bounded: bool = True, repeatable: bool = True, **request: Any
    ) -> Answer:
        """Send a request until it is answered with a success.

        Args:
            method: The HTTP method.
            path: The route, from its `/`.
            bounded: The time limit is that of the call, pauses included; else of the next bytes.
            repeatable: Whether it is safe to send the request twice.
            **request: As in `_send`.

        Raises:
            ServerUnavailable: The attempts or the seconds are used up.
            RequestRefused: The server does not do it.
            ServerError: The server failed, or its answer is too large.
        """
        http, end = self._library, time.monotonic() + self.seconds
        for attempt in count():
            seconds = max(0.001, end - time.monotonic()) if bounded else self.seconds
            pause = None
            try:
                response = await self._send(method, path, seconds, bounded=bounded, **request)
            except (http.RequestError, asyncio.TimeoutError) as lost:
                unsent = isinstance(lost, http.ConnectError | http.ConnectTimeout | http.PoolTimeout)
                late = type(lost) is asyncio.TimeoutError
                reason = "the answer took too long" if late else str(lost) or type(lost).__name__
                error: BfrError = ServerUnavailable(
                    f"{self._where} cannot be reached ({reason}): check the address and that it runs"
                )
                again = repeatable or unsent
            else:
                status = response.status_code
                if status < 300 and ("into" not in request or status == 200):  # a file comes with 200 alone
                    return response
                error, pause = refusal(self._where, response), retry_after(response.headers)
                again = status in (429, 503) or (repeatable and status in (502, 504))
            pause = backoff(attempt) if pause is None else pause
            late = bounded and time.monotonic() + pause >= end
            if not again or attempt == self._retries or late:
                raise error
            await asyncio.sleep(pause)
        raise AssertionError

    async def _send(
        self,
        method: str,
        path: str,
        seconds: float,
        *,
        bounded: bool = True,
        file: Path | None = None,
        into: Path | None = None,
        **request: Any,
    ) -> Answer:
        """Send once.

        Args:
            method: The HTTP method.
            path: The route, from its `/`.
            seconds: Longest wait for the next bytes, in either direction; for the whole answer too where `bounded`.
            bounded: Whether `seconds` are for the whole answer.
            file: The body, of `Content-Length` bytes.
            into: Where the body of a 200 goes, whole or not at all.
            **request: Arguments of httpx2: params, headers, content.

        Raises:
            TimeoutError: The answer took too long.
            InputNotFound: The file cannot be read, or changes meanwhile.
            RequestError: httpx2's error.
        """
        if file is not None:
            request["content"] = _parts(file, int(request["headers"]["Content-Length"]))
        async with (
            timeout(seconds if bounded else None),
            self._connections().stream(method, self.url + path, timeout=seconds, **request) as response,
        ):
            content = bytearray()
            if into is not None and response.status_code == 200:
                with atomic_path(into) as temporary, temporary.open("wb") as target:
                    async for part in self._bounded(response, FILE_BYTES):
                        await asyncio.to_thread(target.write, part)
            else:
                image = response.status_code == 200 and path == "/restore"
                async for part in self._bounded(response, IMAGE_BYTES if image else ANSWER_BYTES):
                    content += part
            return Answer(response.status_code, response.headers, bytes(content))

    async def _bounded(self, response: Any, most: int) -> AsyncIterator[bytes]:
        """The body of an answer in parts. Raises ServerError if it has more than `most` bytes."""
        done = 0
        async for part in response.aiter_bytes():
            done += len(part)
            if done > most:
                raise ServerError(
                    f"{self._where} answers with more than {most:,} bytes: check the address, and that `bfr serve` "
                    "runs there"
                )
            yield part


async def _parts(path: Path, size: int) -> AsyncIterator[bytes]:
    """A file of a size, a piece at a time. Raises InputNotFound if it cannot be read, or has another size now."""
    try:
        with path.open("rb") as file:
            while part := await asyncio.to_thread(file.read, CHUNK):
                size -= len(part)
                if size < 0:
                    break
                yield part
    except OSError as error:
        raise InputNotFound(f"{path} cannot be read ({error.strerror}): check its name and permissions") from error
    if size:
        raise InputNotFound(f"{path} changed while it was sent: send it again when it is complete")
