"""The routes of long work."""

import asyncio
import re
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import PurePath
from typing import Any, BinaryIO

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from bfr.runtime.errors import InvalidImage
from bfr.runtime.images.headers import header_size
from bfr.runtime.jobs.sources import MEDIA_TYPES
from bfr.runtime.serve.http.front import Front
from bfr.runtime.serve.http.problems import KEYED, Problem, documented, keyed
from bfr.runtime.serve.http.requests import (
    ANSWERED,
    IMAGES,
    VIDEOS,
    announced,
    check_query,
    job_body,
    job_suffix,
)
from bfr.runtime.serve.http.schemas import BINARY, JobInfo, Options, Text
from bfr.runtime.serve.jobs.job import Job, JobRequest
from bfr.runtime.serve.jobs.store import JobStore
from bfr.runtime.serve.sizes import check_size

JOB_BODY = {"required": True, "content": dict.fromkeys((*VIDEOS, *IMAGES), BINARY)}
IMAGE_SUFFIXES = tuple(suffix for suffix, media_type in MEDIA_TYPES.items() if media_type in IMAGES)

_RANGE = re.compile(rb"bytes=(\d+-\d*|-\d+)")


def add_jobs(api: FastAPI, front: Callable[[], Front]) -> None:
    """Add them to the interface.

    Args:
        api: The interface.
        front: Called with each request; returns the Front that answers it.
    """

    def store() -> JobStore:
        here = front()
        if here.options.jobs is None:
            raise Problem(404, "no jobs", "this server takes no jobs: start it with --jobs FOLDER")
        if here.engine is None:
            raise Problem(503, here.state, here.why_not_ready() or "the server is starting", retry_after=5)
        jobs: JobStore = here.engine.jobs
        return jobs

    def owner(request: Request) -> str:
        return front().owner(request.state.sender)

    def job_of(name: str, request: Request) -> Job:
        job = store().get(name)
        if job is None or job.request.owner != owner(request):
            raise _no_such_job()
        return job

    @api.post(
        "/jobs",
        status_code=202,
        response_model=JobInfo,
        responses=documented(401, 403, 404, 408, 413, 415, 422, 429, 503, 507),
        openapi_extra={"requestBody": JOB_BODY, **KEYED},
    )
    async def submit(request: Request, query: Options) -> Any:
        """Queue long work, a video or an image. What was accepted is on disk and survives a restart."""
        here, jobs = front(), store()
        check_query(request)
        suffix, size = job_suffix(request), announced(request, here.options.job_bytes)
        if query.mode == "aligned" and suffix not in IMAGE_SUFFIXES:
            raise Problem(422, "invalid options", "a video is no aligned face: leave mode=aligned out")
        group = query.group(here.systems)
        wanted = JobRequest(
            created=time.time(),
            bundle=group.bundle,
            preset=group.preset,
            seed=group.seed,
            aligned=query.mode == "aligned",
            photo=query.photo(),
            suffix=suffix,
            owner=owner(request),
            key_frames=query.key_frames,
        )
        here.check_state()
        found = await asyncio.to_thread(lambda: (jobs.count(), len(jobs.of(wanted.owner))))
        _check_quota(*found, here, wanted.owner)
        with here.job_place(wanted.owner):
            if jobs.free() < size:
                raise Problem(507, "disk", "the disk of the jobs is full, or gone: delete jobs, or send this one later")
            try:
                job = await here.unless_over(jobs.add(wanted, job_body(request, here.options)))
                if suffix in IMAGE_SUFFIXES:
                    header = await asyncio.to_thread(header_size, job.input)
                    check_size(header, wanted.photo.upscale, here.options.max_pixels)
            except InvalidImage as error:
                await asyncio.to_thread(jobs.remove, job.id)
                raise Problem(422, "invalid image", str(error)) from error
            except OSError as error:
                raise Problem(507, "disk", f"the job could not be kept: {error.strerror}") from error
        here.engine.wake()
        request.state.facts["job"] = job.id
        return JSONResponse(job.describe(here.systems), 202, {"Location": f"/jobs/{job.id}"})

    @api.get("/jobs", response_model=list[JobInfo], **keyed(404, 503))
    async def jobs_of_key(request: Request) -> Any:
        """All jobs of this API key, the newest first."""
        jobs, name, systems = store(), owner(request), front().systems
        return await asyncio.to_thread(lambda: [job.describe(systems) for job in jobs.of(name)])

    @api.get("/jobs/{job_id}", response_model=JobInfo, **keyed(404, 422, 503))
    async def status(request: Request, job_id: Text) -> Any:
        """Where a job is."""
        return job_of(job_id, request).describe(front().systems)

    @api.get(
        "/jobs/{job_id}/result",
        response_class=Response,
        responses={
            200: {"description": "The restored file.", "content": dict.fromkeys((*ANSWERED, *VIDEOS), BINARY)},
            206: {"description": "The part of it that Range asks for, one as `bytes=100-`."},
            **documented(401, 403, 404, 409, 416, 422, 503),
        },
        openapi_extra=KEYED,
    )
    async def result(request: Request, job_id: Text) -> Response:
        """The restored file of a job that is done."""
        job = job_of(job_id, request)
        if (name := job.result) is None:
            raise Problem(409, "not done", f"the job is {job.status.state}: its result is there when it is done")
        try:
            return _Result(job.open(name), MEDIA_TYPES[PurePath(name).suffix])
        except FileNotFoundError:
            raise _no_such_job() from None
        except OSError as error:
            raise Problem(503, "disk", f"the result cannot be read: {error.strerror}", retry_after=5) from error

    @api.delete("/jobs/{job_id}", status_code=204, **keyed(404, 422, 503))
    async def delete(request: Request, job_id: Text) -> None:
        """Cancel a job and delete all that belongs to it."""
        job = job_of(job_id, request)
        await asyncio.to_thread(store().remove, job.id)
        await front().engine.cancel(job.id)  # afterwards, so that it is not begun again


class _Result(FileResponse):
    """A file that is open already: it is sent whole though the job is deleted meanwhile.

    A Range of several parts, or of none that RFC 9110 knows, is ignored.
    """

    def __init__(self, file: BinaryIO, media_type: str) -> None:
        super().__init__(f"/proc/self/fd/{file.fileno()}", media_type=media_type)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message.get("status", 0) >= HTTPStatus.BAD_REQUEST:
                raise Problem(416, "range", "the result has no such bytes: leave Range out, or ask HEAD for its length")
            await send(message)

        headers = [(name, value) for name, value in scope["headers"] if name != b"range" or _RANGE.fullmatch(value)]
        with self._file:  # of which HEAD needs nothing
            method = scope["state"]["method"]
            await super().__call__({**scope, "method": method, "headers": headers}, receive, sending)


def _no_such_job() -> Problem:
    return Problem(
        404, "no such job", "there is no job of this id: it was deleted, its time has passed, or it is another's"
    )


def _check_quota(queued: int, kept: int, front: Front, owner: str) -> None:
    """Raise Problem 503 where too many jobs are queued, and 403 where too many of their owner are kept.

    Those that arrive just now count, too.
    """
    arriving = front.job_uploads
    if queued + len(arriving) >= front.options.queue:
        raise Problem(503, "overload", "too many jobs are queued: try again later", retry_after=60)
    if kept + arriving.count(owner) >= front.options.job_quota:
        raise Problem(
            403, "quota", f"{front.options.job_quota} jobs are kept, the limit here: delete some with DELETE /jobs/ID"
        )
