"""Clients of `bfr serve`: one for asyncio, and one that waits for it."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from functools import wraps
from itertools import count
from math import inf
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import quote

from bfr.runtime.client.calls import asked, file_headers, image_file, info_of, job_of, result_of
from bfr.runtime.client.transport import Transport
from bfr.runtime.client.types import Job, Result
from bfr.runtime.errors import InvalidOption, ServerError, ServerUnavailable
from bfr.runtime.jobs.options import RestoreOptions

__all__ = ["AsyncClient", "Client", "Job", "RestoreOptions", "Result"]

P = ParamSpec("P")
T = TypeVar("T")


def _nothing(_job: Job) -> None:
    pass


class AsyncClient:
    """A server at an address, as `http://localhost:8000`, for asyncio. Close it, or use it in an `async with`.

    Calls raise ServerUnavailable, RequestRefused for what the server does not do, and ServerError where it failed. The
    same image and seed give the same bytes: `restore` is sent again after a failure, jobs are sent once.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        """Make the client; nothing is sent yet.

        Args:
            url: The server's address.
            api_key: The API key, if the server needs one.
            timeout: Seconds of a call, pauses included; where files of jobs are sent and fetched, seconds without a
                byte.
            retries: After connections that failed and answers 429, 502, 503 and 504. The pauses are the server's
                Retry-After, else they double.

        Raises:
            InvalidOption: A value is out of range, or the environment names a proxy that cannot be used.
            MissingDependency: The extra `client` is not installed.
        """
        self._transport = Transport(url, api_key, timeout, retries)

    @property
    def url(self) -> str:
        """The server's address, without a slash at its end."""
        return self._transport.url

    async def restore(self, /, image: Any, **options: Any) -> Result:
        """Restore an image.

        Args:
            image: A path, the bytes of a file, a PIL image, an array or a tensor, as `as_image` takes them.
            **options: Fields of `RestoreOptions`, the server's default where left out or None, and `format` of the
                result, as of `JobOptions`.
        """
        query, headers = asked(options)
        data, headers["Content-Type"] = image_file(image)
        response = await self._transport.exchange("POST", "/restore", params=query, headers=headers, content=data)
        return self._read(result_of, response)

    async def submit(self, /, path: Path | str, **options: Any) -> Job:
        """Send a video, or an image, as a job.

        Args:
            path: The file.
            **options: As in `restore`.
        """
        query, headers = asked(options)
        path = Path(path)
        headers |= file_headers(path)
        response = await self._transport.exchange(
            "POST", "/jobs", params=query, headers=headers, file=path, bounded=False, repeatable=False
        )
        return self._read(job_of, response)

    async def job(self, name: str) -> Job:
        """Where a job is, by its id."""
        return self._read(job_of, await self._transport.exchange("GET", f"/jobs/{quote(name, safe='')}"))

    async def wait(
        self, name: str, *, timeout: float | None = None, progress: Callable[[Job], object] = _nothing
    ) -> Job:
        """Return the job when it is done, failed or cancelled: its `state` says which.

        A job for a bundle or preset that the server does not offer any more stays queued, and its `error` says so.

        Args:
            name: The job's id.
            timeout: Seconds to wait, None for any.
            progress: Called with the job after each look at it.

        Raises:
            ServerUnavailable: The job has not ended after `timeout` seconds, or the server does not answer any more,
                for the client's `timeout`.
        """
        async for job in self.states(name, timeout):
            progress(job)
        return job

    async def states(self, name: str, timeout: float | None = None) -> AsyncIterator[Job]:
        """A job, polled until it has ended. Raises ServerUnavailable after `timeout` seconds."""
        end = inf if timeout is None else time.monotonic() + timeout
        heard = -inf
        for turn in count():
            try:
                job, heard = await self.job(name), time.monotonic()
            except ServerUnavailable:  # a server that is started anew goes on with its jobs
                if time.monotonic() > min(end, heard + self._transport.seconds):
                    raise
            else:
                yield job
                if job.ended:
                    return
            if time.monotonic() > end:
                raise ServerUnavailable(
                    f"job {name} is {job.state} after {timeout:g} s: {job.error or 'wait longer, or come back later'}"
                )
            await asyncio.sleep(min(2.0, 0.1 * 1.3 ** min(turn, 20)))  # a float has an end

    async def download(self, name: str, path: Path | str) -> None:
        """Write the result of a job, whole or not at all. Raises WriteFailed."""
        await self._transport.exchange("GET", f"/jobs/{quote(name, safe='')}/result", into=Path(path), bounded=False)

    async def delete(self, name: str) -> None:
        """Cancel a job, and delete its files from the server."""
        await self._transport.exchange("DELETE", f"/jobs/{quote(name, safe='')}")

    async def info(self) -> dict[str, Any]:
        """What the server offers: system, presets, limits."""
        return self._read(info_of, await self._transport.exchange("GET", "/info"))

    async def ready(self) -> bool:
        """Whether the server takes requests now; asked once."""
        return await self._transport.ready()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _read(self, read: Callable[[Any], T], response: Any) -> T:
        try:
            return read(response)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f"{self.url} does not answer as `bfr serve` does: check the address, and the server's version"
            ) from error


def _blocking(
    call: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """The method of `Client` that waits for one of `AsyncClient`."""

    @wraps(call)
    def wait(client: "Client", /, *args: P.args, **options: P.kwargs) -> T:
        return client._run(call(client._client, *args, **options))

    return wait


class Client:
    """The blocking form of `AsyncClient`: its event loop runs in a separate thread. Threads may share it.

    Close it, or use it in a `with`.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 120.0, retries: int = 5) -> None:
        """See `AsyncClient`."""
        self._client = AsyncClient(url, api_key=api_key, timeout=timeout, retries=retries)
        self._closed, self._lock = False, threading.Lock()  # held while a call is handed to the loop
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bfr-client", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The server's address."""
        return self._client.url

    restore = _blocking(AsyncClient.restore)
    submit = _blocking(AsyncClient.submit)
    job = _blocking(AsyncClient.job)
    download = _blocking(AsyncClient.download)
    delete = _blocking(AsyncClient.delete)
    info = _blocking(AsyncClient.info)
    ready = _blocking(AsyncClient.ready)

    def wait(self, name: str, *, timeout: float | None = None, progress: Callable[[Job], object] = _nothing) -> Job:
        """See `AsyncClient`; `progress` is called in the caller's thread."""
        for job in self.states(name, timeout):
            progress(job)
        return job

    def states(self, name: str, timeout: float | None = None) -> Iterator[Job]:
        """See `AsyncClient`."""
        states = self._client.states(name, timeout)
        while (job := self._run(_next(states))) is not None:
            yield job

    def close(self) -> None:
        """Close the connections and end the thread. Calls of other threads end with ServerUnavailable."""
        if self._process != os.getpid():
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            end = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        end.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _end(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        if self._process != os.getpid():  # a fork does not copy the thread that it would wait for
            call.close()
            raise InvalidOption("this client was made in another process: make one in each, after the fork")
        with self._lock:
            if self._closed:
                call.close()
                raise InvalidOption("the client is closed: make another one")
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise ServerUnavailable(f"{self.url} has not answered yet: the client was closed") from None
        except BaseException:
            future.cancel()  # on Ctrl-C it closes the connection, and the server stops the work
            raise


async def _next(states: AsyncIterator[Job]) -> Job | None:
    return await anext(states, None)
