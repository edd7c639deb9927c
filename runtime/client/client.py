"""Clients of `bfr serve`, one that waits and one for asyncio: what both ask and understand is `client_calls.py`."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bfr.runtime.client.calls import Calls
from bfr.runtime.client.http import (
    address,
    answer_of,
    arguments,
    key_headers,
    library,
    limits,
    lost,
    parts,
    parts_async,
)
from bfr.runtime.client.types import Answer, Call, Job, Lost, Pause, Request, Result
from bfr.runtime.files import atomic_path
from bfr.runtime.jobs.options import RestoreOptions

__all__ = ["AsyncClient", "Client", "Job", "RestoreOptions", "Result"]

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
        self._calls = Calls(address(url), timeout, retries)
        self._http = library().Client(headers=key_headers(api_key), limits=limits())

    @property
    def url(self) -> str:
        """The server's address."""
        return self._calls.url

    def restore(self, image: bytes | Path | NDArray[np.uint8], **options: Any) -> Result:
        """Restore an image file, its path, or (H, W, 3) uint8 RGB.

        options: fields of `RestoreOptions`, the server's default where left out, and `format` of the result, as of
        `JobOptions`.
        """
        return self._run(self._calls.restore(image, options))

    def submit(self, path: Path, **options: Any) -> Job:
        """Send a video, or an image, to be restored in its time. options: as of `restore`."""
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
        content = request.body if isinstance(request.body, bytes) else parts(request.body)
        try:
            with self._http.stream(**arguments(self._calls.url, request), content=content) as response:
                if request.into is not None and response.status_code == 200:
                    with atomic_path(request.into) as temporary, temporary.open("wb") as file:
                        for part in response.iter_bytes():
                            file.write(part)
                    return answer_of(response, b"")
                body = bytearray()
                for part in response.iter_bytes():
                    body += part
                    if request.bounded and time.monotonic() > end:
                        return Lost("the answer took too long", sent=True)
                return answer_of(response, bytes(body))
        except library().RequestError as error:
            return lost(error)


class AsyncClient:
    """As Client, for asyncio."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        """Raises InvalidOption, and MissingDependency without the extra `client`."""
        self._calls = Calls(address(url), timeout, retries)
        self._http = library().AsyncClient(headers=key_headers(api_key), limits=limits())

    @property
    def url(self) -> str:
        """The server's address."""
        return self._calls.url

    async def restore(self, image: bytes | Path | NDArray[np.uint8], **options: Any) -> Result:
        """As of Client."""
        return await self._run(self._calls.restore(image, options))

    async def submit(self, path: Path, **options: Any) -> Job:
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
        content = request.body if isinstance(request.body, bytes) else parts_async(request.body)
        try:
            async with (
                asyncio.timeout(request.seconds if request.bounded else None),
                self._http.stream(**arguments(self._calls.url, request), content=content) as response,
            ):
                if request.into is not None and response.status_code == 200:
                    with atomic_path(request.into) as temporary, temporary.open("wb") as file:
                        async for part in response.aiter_bytes():
                            await asyncio.to_thread(file.write, part)
                    return answer_of(response, b"")
                return answer_of(response, await response.aread())
        except TimeoutError:
            return Lost("the answer took too long", sent=True)
        except library().RequestError as error:
            return lost(error)
