"""Clients of `bfr serve`: one for asyncio, and one that waits for it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from bfr.runtime.client.calls import (
    ANSWER_BYTES,
    FILE_BYTES,
    IMAGE_BYTES,
    Answer,
    address,
    asked,
    backoff,
    check_secrecy,
    file_headers,
    image_file,
    is_loopback,
    job_of,
    key_headers,
    object_of,
    refusal,
    result_of,
    retry_after,
    route,
)
from bfr.runtime.client.types import Job, Result
from bfr.runtime.errors import BfrError, InvalidOption, MissingDependency, ServerError, ServerUnavailable
from bfr.runtime.files import atomic_path
from bfr.runtime.install import install_command
from bfr.runtime.jobs.options import RestoreOptions
from bfr.runtime.timeouts import timeout

if TYPE_CHECKING:
    import ssl

__all__ = ["AsyncClient", "Client", "Job", "RestoreOptions", "Result"]

CHUNK = 1 << 20  # bytes of an upload that are in memory at once
T = TypeVar("T")


def _nothing(_job: Job) -> None:
    pass


@cache
def _certificates(trust_env: bool) -> "ssl.SSLContext":
    """What checks a server's certificate. The clients of a process share it: it takes 50 ms to make."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)


class AsyncClient:
    """A server at an address, as `http://localhost:8000`, for asyncio. Close it, or use it in an `async with`.

    Calls raise ServerUnavailable, RequestRefused for what the server does not do, and ServerError where it failed. The
    same image and seed give the same bytes: to restore is asked for again after a failure, jobs are sent once.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        """Make the client; nothing is sent yet.

        Args:
            url: Of the server.
            api_key: Where the server wants one.
            timeout: Seconds of a call, pauses included; where files of jobs are sent and fetched, seconds without a
                byte.
            retries: After connections that failed and answers 429, 502, 503 and 504. The pauses are the server's
                Retry-After, else they double.

        Raises:
            InvalidOption: A value is out of range, or the environment names a proxy that cannot be used.
            MissingDependency: The extra `client` is not installed.
        """
        if not timeout > 0:
            raise InvalidOption(f"the timeout is {timeout} seconds: choose more than 0")
        if retries < 0:
            raise InvalidOption(f"{retries} retries were asked for: choose 0 or more")
        try:
            import httpx2
        except ImportError as error:
            raise MissingDependency(f"httpx2 is not installed: {install_command('client')}") from error
        self.url, self._timeout, self._retries, self._library = address(url), timeout, retries, httpx2
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        self._where = route(self.url)
        check_secrecy(self.url, api_key)
        try:
            trust_env = not is_loopback(self.url)
            self._http = httpx2.AsyncClient(
                verify=_certificates(trust_env),
                headers=key_headers(api_key) | {"Accept-Encoding": "identity"},
                limits=limits,
                trust_env=trust_env,
            )
        except (ImportError, ValueError, httpx2.InvalidURL) as error:  # of the proxy
            if isinstance(error, InvalidOption):  # of the key
                raise
            raise InvalidOption(f"{self._where} cannot be asked ({error}): mend or unset the proxy") from error

    async def restore(self, image: Any, **options: Any) -> Result:
        """Restore an image.

        Args:
            image: A path, the bytes of a file, a PIL image, an array or a tensor, as `as_image` takes them.
            **options: Fields of `RestoreOptions`, the server's default where left out, and `format` of the result, as
                of `JobOptions`.
        """
        query, headers = asked(options)
        data, headers["Content-Type"] = image_file(image)
        response = await self._exchange("POST", "/restore", params=query, headers=headers, content=data)
        return self._read(result_of, response)

    async def submit(self, path: Path, **options: Any) -> Job:
        """Send a video, or an image, as a job.

        Args:
            path: The file.
            **options: As of `restore`.
        """
        query, headers = asked(options)
        headers |= file_headers(path)
        response = await self._exchange(
            "POST", "/jobs", params=query, headers=headers, file=path, bounded=False, repeatable=False
        )
        return self._read(job_of, response)

    async def job(self, name: str) -> Job:
        """Where a job is, by its id."""
        return self._read(job_of, await self._exchange("GET", f"/jobs/{quote(name, safe='')}"))

    async def wait(
        self, name: str, *, timeout: float | None = None, progress: Callable[[Job], object] = _nothing
    ) -> Job:
        """Return the job when it is done, failed or cancelled: its `state` says which.

        Args:
            name: The job's id.
            timeout: Seconds to wait, None for any.
            progress: Called with the job after each look at it.

        Raises:
            ServerUnavailable: The job has not ended after `timeout` seconds.
        """
        async for job in self.states(name, timeout):
            progress(job)
        return job

    async def states(self, name: str, timeout: float | None = None) -> AsyncIterator[Job]:
        """A job, asked for now and then until it has ended. Raises ServerUnavailable after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        for turn in count():
            job = await self.job(name)
            yield job
            if job.ended:
                return
            if end is not None and time.monotonic() > end:
                raise ServerUnavailable(
                    f"job {name} is {job.state} after {timeout:g} s: wait longer, or come back later"
                )
            await asyncio.sleep(min(2.0, 0.1 * 1.3**turn))

    async def download(self, name: str, path: Path) -> None:
        """Write the result of a job, whole or not at all. Raises WriteFailed."""
        await self._exchange("GET", f"/jobs/{quote(name, safe='')}/result", into=path, bounded=False)

    async def delete(self, name: str) -> None:
        """Cancel a job, and delete its files from the server."""
        await self._exchange("DELETE", f"/jobs/{quote(name, safe='')}")

    async def info(self) -> dict[str, Any]:
        """What the server offers: system, presets, limits."""
        return self._read(object_of, await self._exchange("GET", "/info"))

    async def ready(self) -> bool:
        """Whether the server takes requests now; asked once."""
        try:
            response = await self._send("GET", "/ready", self._timeout)
        except (self._library.RequestError, asyncio.TimeoutError):
            return False
        return bool(response.status_code == 200)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _read(self, read: Callable[[Any], T], response: Any) -> T:
        try:
            return read(response)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f"{self.url} does not answer as `bfr serve` does: check the address, and the server's version"
            ) from error

    async def _exchange(
        self, method: str, path: str, *, bounded: bool = True, repeatable: bool = True, **request: Any
    ) -> Any:
        """The answer that was wanted, after as many attempts as it takes. repeatable: to send it twice does no harm."""
        http, end = self._library, time.monotonic() + self._timeout
        for attempt in count():
            seconds = max(0.001, end - time.monotonic()) if bounded else self._timeout
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
                if status < 300:
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
        """Send once. Raises TimeoutError and httpx2's RequestError.

        seconds: to wait for the next bytes, in either direction; for the whole answer too where `bounded`. file: the
        body. into: where the body of a 200 goes, whole or not at all.
        """
        if file is not None:
            request["content"] = _parts(file)
        async with (
            timeout(seconds if bounded else None),
            self._http.stream(method, self.url + path, timeout=seconds, **request) as response,
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
        """The body of an answer in parts. Raises ServerError where it has more than `most` bytes."""
        done = 0
        async for part in response.aiter_bytes():
            done += len(part)
            if done > most:
                raise ServerError(
                    f"{self._where} answers with more than {most:,} bytes: check the address, and that `bfr serve` "
                    "runs there"
                )
            yield part


class Client:
    """As `AsyncClient`, for callers that wait: its event loop runs in a thread of its own. Threads may share it.

    Close it, or use it in a `with`.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        """As of `AsyncClient`."""
        self._client = AsyncClient(url, api_key=api_key, timeout=timeout, retries=retries)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bfr-client", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The server's address."""
        return self._client.url

    def restore(self, image: Any, **options: Any) -> Result:
        """As of `AsyncClient`."""
        return self._run(self._client.restore(image, **options))

    def submit(self, path: Path, **options: Any) -> Job:
        """As of `AsyncClient`."""
        return self._run(self._client.submit(path, **options))

    def job(self, name: str) -> Job:
        """As of `AsyncClient`."""
        return self._run(self._client.job(name))

    def wait(self, name: str, *, timeout: float | None = None, progress: Callable[[Job], object] = _nothing) -> Job:
        """As of `AsyncClient`; `progress` is called in the caller's thread."""
        for job in self.states(name, timeout):
            progress(job)
        return job

    def states(self, name: str, timeout: float | None = None) -> Iterator[Job]:
        """As of `AsyncClient`."""
        states = self._client.states(name, timeout)
        while (job := self._run(_next(states))) is not None:
            yield job

    def download(self, name: str, path: Path) -> None:
        """As of `AsyncClient`."""
        self._run(self._client.download(name, path))

    def delete(self, name: str) -> None:
        """As of `AsyncClient`."""
        self._run(self._client.delete(name))

    def info(self) -> dict[str, Any]:
        """As of `AsyncClient`."""
        return self._run(self._client.info())

    def ready(self) -> bool:
        """As of `AsyncClient`."""
        return self._run(self._client.ready())

    def close(self) -> None:
        """Close the connections and end the thread."""
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # on Ctrl-C the server sees that nobody waits any more
            raise


async def _next(states: AsyncIterator[Job]) -> Job | None:
    return await anext(states, None)


async def _parts(path: Path) -> AsyncIterator[bytes]:
    """A file, a piece at a time."""
    with path.open("rb") as file:
        while part := await asyncio.to_thread(file.read, CHUNK):
            yield part
