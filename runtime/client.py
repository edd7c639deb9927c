"""Clients of `bfr serve`, one that waits and one for asyncio: what both ask and understand is `client_calls.py`."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.client_calls import Calls
from bfr.runtime.client_types import Answer, Call, Job, Lost, Pause, Request, RestoreOptions, Result
from bfr.runtime.errors import InvalidOption, MissingDependency
from bfr.runtime.files import atomic_path

if TYPE_CHECKING:
    import httpx2

__all__ = ["AsyncClient", "Client", "Job", "RestoreOptions", "Result"]

CHUNK = 1 << 20  # bytes of an upload that are in memory at once
T = TypeVar("T")


def _nothing(_job: Job) -> None:
    pass


class Client:
    """A server at an address, as `http://localhost:8000`. Threads may share it; close it, or use it in a `with`.

    api_key: where the server wants one. timeout: seconds of a call, pauses included; where files of jobs are
    sent and fetched, seconds without a byte. retries: after connections that failed and answers 502, 503 and 504; the
    pauses are the server's Retry-After, else they double.
    Calls raise ServerUnavailable, RequestRefused for what the server does not do, and ServerError where it failed.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        """Raises InvalidOption, and MissingDependency without the extra `client`."""
        self._calls = Calls(_address(url), timeout, retries)
        self._http = _library().Client(headers=_headers(api_key), limits=_limits())

    @property
    def url(self) -> str:
        """The server's address."""
        return self._calls.url

    def restore(self, image: bytes | Path | NDArray[np.uint8], **options: Unpack[RestoreOptions]) -> Result:
        """Restore an image file, its path, or (H, W, 3) uint8 RGB."""
        return self._run(self._calls.restore(image, options))

    def submit(self, path: Path, **options: Unpack[RestoreOptions]) -> Job:
        """Send a video, or an image, to be restored in its time."""
        return self._run(self._calls.submit(path, options))

    def job(self, name: str) -> Job:
        """Where a job is, by its id."""
        return self._run(self._calls.job(name))

    def wait(self, name: str, *, timeout: float | None = None, progress: Callable[[Job], object] = _nothing) -> Job:
        """The job once it is done, failed or cancelled: look at its `state`. timeout: seconds, None for any."""
        return self._run(self._calls.wait(name, timeout, progress))

    def download(self, name: str, path: Path) -> None:
        """Write the result of a job, whole or not at all. Raises WriteFailed."""
        self._run(self._calls.download(name, path))

    def delete(self, name: str) -> None:
        """Cancel a job, and delete its files from the server."""
        self._run(self._calls.delete(name))

    def info(self) -> dict[str, Any]:
        """What the server offers: system, presets, limits."""
        return self._run(self._calls.info())

    def ready(self) -> bool:
        """Whether the server takes requests now."""
        return self._run(self._calls.ready())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call[T]) -> T:
        reply: Answer | Lost | None = None
        while True:
            try:
                step = call.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                reply = None
            else:
                reply = self._send(step)

    def _send(self, request: Request) -> Answer | Lost:
        end = time.monotonic() + request.seconds
        content = request.body if isinstance(request.body, bytes) else _parts(request.body)
        try:
            with self._http.stream(**_arguments(self._calls.url, request), content=content) as response:
                if request.into is not None and response.status_code == 200:
                    with atomic_path(request.into) as temporary, temporary.open("wb") as file:
                        for part in response.iter_bytes():
                            file.write(part)
                    return _answer(response, b"")
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if request.bounded and time.monotonic() > end:
                        return Lost("the answer took too long", sent=True)
                return _answer(response, bytes(body))
        except _library().RequestError as error:
            return _lost(error)


class AsyncClient:
    """As Client, for asyncio."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        """Raises InvalidOption, and MissingDependency without the extra `client`."""
        self._calls = Calls(_address(url), timeout, retries)
        self._http = _library().AsyncClient(headers=_headers(api_key), limits=_limits())

    @property
    def url(self) -> str:
        """The server's address."""
        return self._calls.url

    async def restore(self, image: bytes | Path | NDArray[np.uint8], **options: Unpack[RestoreOptions]) -> Result:
        """As of Client."""
        return await self._run(self._calls.restore(image, options))

    async def submit(self, path: Path, **options: Unpack[RestoreOptions]) -> Job:
        """As of Client."""
        return await self._run(self._calls.submit(path, options))

    async def job(self, name: str) -> Job:
        """As of Client."""
        return await self._run(self._calls.job(name))

    async def wait(
        self, name: str, *, timeout: float | None = None, progress: Callable[[Job], object] = _nothing
    ) -> Job:
        """As of Client."""
        return await self._run(self._calls.wait(name, timeout, progress))

    async def download(self, name: str, path: Path) -> None:
        """As of Client."""
        await self._run(self._calls.download(name, path))

    async def delete(self, name: str) -> None:
        """As of Client."""
        await self._run(self._calls.delete(name))

    async def info(self) -> dict[str, Any]:
        """As of Client."""
        return await self._run(self._calls.info())

    async def ready(self) -> bool:
        """As of Client."""
        return await self._run(self._calls.ready())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T]) -> T:
        reply: Answer | Lost | None = None
        while True:
            try:
                step = call.send(reply)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                reply = None
            else:
                reply = await self._send(step)

    async def _send(self, request: Request) -> Answer | Lost:
        content = request.body if isinstance(request.body, bytes) else _parts_async(request.body)
        try:
            async with (
                asyncio.timeout(request.seconds if request.bounded else None),
                self._http.stream(**_arguments(self._calls.url, request), content=content) as response,
            ):
                if request.into is not None and response.status_code == 200:
                    with atomic_path(request.into) as temporary, temporary.open("wb") as file:
                        async for part in response.aiter_bytes():
                            await asyncio.to_thread(file.write, part)
                    return _answer(response, b"")
                return _answer(response, await response.aread())
        except TimeoutError:
            return Lost("the answer took too long", sent=True)
        except _library().RequestError as error:
            return _lost(error)


def _library() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise MissingDependency('httpx2 is not installed: pip install "bfr-runtime[client]"') from error
    return httpx2


def _address(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", url):
        raise InvalidOption(f"{url!r} is no address of a server: give one as http://localhost:8000")
    return url.rstrip("/")


def _headers(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    if not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise InvalidOption("an API key has ASCII characters alone, and no spaces: copy it again")
    return {"Authorization": f"Bearer {api_key}"}


def _limits() -> "httpx2.Limits":
    return _library().Limits(max_connections=None, max_keepalive_connections=20)  # type: ignore[no-any-return]


def _arguments(url: str, request: Request) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": url + request.path,
        "params": dict(request.query),
        "headers": dict(request.headers),
        "timeout": request.seconds,
    }


def _answer(response: "httpx2.Response", body: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, body)


def _lost(error: "httpx2.RequestError") -> Lost:
    library = _library()
    unsent = isinstance(error, library.ConnectError | library.ConnectTimeout | library.PoolTimeout)
    return Lost(str(error) or type(error).__name__, sent=not unsent)


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            yield part


async def _parts_async(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while part := await asyncio.to_thread(file.read, CHUNK):
            yield part
