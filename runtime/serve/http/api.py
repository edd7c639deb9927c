"""The HTTP interface: routes, and their OpenAPI description. What they do is `Front`'s."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from bfr.runtime.serve.http.front import Front, unless_gone
from bfr.runtime.serve.http.gate import Gate, request_id
from bfr.runtime.serve.http.metrics import CONTENT_TYPE
from bfr.runtime.serve.http.page import page
from bfr.runtime.serve.http.problems import Problem, documented
from bfr.runtime.serve.http.requests import (
    ANSWERED,
    BYTES,
    FIELD,
    FORM,
    IMAGES,
    MEDIA_TYPES,
    VIDEOS,
    RestoreQuery,
    job_body,
    job_suffix,
    read_image,
    wanted_suffix,
)
from bfr.runtime.serve.http.schemas import Info, JobInfo, RequestInfo, Text
from bfr.runtime.serve.jobs.store import Job, JobRequest
from bfr.runtime.serve.orders import Answer, Order

BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM_SCHEMA = {"type": "object", "required": [FIELD], "properties": {FIELD: {"type": "string", "format": "binary"}}}
IMAGE_BODY = {"required": True, "content": {**dict.fromkeys((*IMAGES, BYTES), BINARY), FORM: {"schema": FORM_SCHEMA}}}
JOB_BODY = {"required": True, "content": dict.fromkeys((*VIDEOS, *IMAGES), BINARY)}
RESULT_HEADERS = {
    "X-Bfr-Faces": "Faces that were restored.",
    "X-Bfr-Faces-Failed": "Faces that could not be, and are as they were; only where there are any.",
    "X-Bfr-Seed": "Seed of the noise.",
    "X-Bfr-Preset": "The preset.",
    "X-Bfr-Bundle": "Hash of the bundle: of the networks and all settings.",
    "X-Bfr-Seconds": "Seconds by stage, as `queue=0.01;network=0.31`; `network` is a part of the others.",
    "X-Request-Id": "For logs.",
}
RESTORED: dict[str, Any] = {
    "description": "The restored image.",
    "content": dict.fromkeys(ANSWERED, BINARY),
    "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in RESULT_HEADERS.items()},
}
KEYED: dict[str, Any] = {"security": [{"key": []}]}
Options = Annotated[RestoreQuery, Query()]


def make_api(front: Callable[[], Front]) -> FastAPI:
    """The interface over a Front, which is asked for with each request."""
    api = FastAPI(
        title="bfr",
        summary="Diffusion-based blind face restoration.",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
    )
    api.add_middleware(Gate, front=front)

    @api.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        request.state.facts["reason"] = problem.reason
        return problem.response(request_id(request))

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        found = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
        return await _problem(request, Problem(422, "invalid options", f"{found}: see /openapi.json"))

    @api.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        problem = Problem(
            error.status_code, "http", f"{error.detail}: {request.method} {request.url.path}; see /openapi.json"
        )
        response = problem.response(request_id(request))
        response.headers.update(error.headers or {})
        return response

    _add_restore(api, front)
    _add_jobs(api, front)
    _add_operation(api, front)
    api.openapi = lambda: _described(api)  # type: ignore[method-assign]
    return api


def _add_restore(api: FastAPI, front: Callable[[], Front]) -> None:
    @api.post(
        "/restore",
        response_class=Response,
        responses={200: RESTORED, **documented(401, 403, 406, 408, 413, 415, 422, 500, 503)},
        openapi_extra={"requestBody": IMAGE_BODY, **KEYED},
    )
    async def restore(request: Request, query: Options) -> Response:
        """Restore the faces of an image: the body itself, or the field `image` of a form.

        The same image, seed and options give the same bytes, so that a request may be sent again. Past the queue's
        length it is refused with 503 and Retry-After. `Accept` chooses PNG, JPEG or WebP; else it is the image's own
        format. If the connection is closed, the work ends.
        """
        here = front()
        order = Order(
            preset=query.chosen(dict(here.presets), here.default_preset),
            seed=query.seed,
            deadline=time.time() + here.options.timeout,
            aligned=query.mode == "aligned",
            photo=query.photo(),
            suffix=wanted_suffix(request.headers.get("accept")),
        )
        with here.admit(request_id(request)) as visit:
            data = await read_image(request, here.options)
            answer = await unless_gone(here.restore(visit, data, order), request.receive)
        request.state.facts.update(faces=answer.faces, preset=order.preset, bytes=len(data))
        headers = _facts(answer, order, here)
        return Response(answer.data, media_type=MEDIA_TYPES[answer.suffix], headers=headers)

    @api.get(
        "/requests/{request_id}",
        response_model=RequestInfo,
        responses=documented(401, 404, 422),
        openapi_extra=KEYED,
    )
    async def progress(request_id: Text) -> Any:
        """Where a request is that was sent with this `X-Request-Id` and is not answered yet."""
        here = front()
        visit = here.visits.get(request_id)
        if visit is None:
            raise Problem(404, "no such request", "no request with this id is under way: it is answered, or another's")
        return {"state": visit.state, "share": round(visit.share, 4), "ahead": here.ahead(visit)}


def _facts(answer: Answer, order: Order, front: Front) -> dict[str, str]:
    timings = ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in answer.seconds.items())
    return {
        "X-Bfr-Faces": str(answer.faces),
        **({"X-Bfr-Faces-Failed": str(answer.failed)} if answer.failed else {}),
        "X-Bfr-Seed": str(order.seed),
        "X-Bfr-Preset": order.preset,
        "X-Bfr-Bundle": front.bundle.hash,
        "X-Bfr-Seconds": ";".join(f"{stage}={seconds:.4f}" for stage, seconds in answer.seconds.items()),
        "Server-Timing": timings,
    }


def _add_jobs(api: FastAPI, front: Callable[[], Front]) -> None:
    def job_of(name: str) -> Job:
        here = front()
        job = here.jobs.get(name) if here.jobs else None
        if job is None:
            raise Problem(404, "no such job", "there is no job of this id: it was deleted, or its time has passed")
        return job

    @api.post(
        "/jobs",
        status_code=202,
        response_model=JobInfo,
        responses=documented(401, 403, 404, 408, 413, 415, 422, 503, 507),
        openapi_extra={"requestBody": JOB_BODY, **KEYED},
    )
    async def submit(request: Request, query: Options) -> Any:
        """Queue long work, a video or an image. What was accepted is on disk and survives a restart."""
        here = front()
        if here.jobs is None:
            raise Problem(404, "no jobs", "this server takes no jobs: start it with --jobs FOLDER")
        if reason := here.why_not_ready():
            raise Problem(503, here.state, reason, retry_after=5)
        if len(here.jobs.waiting()) >= here.options.queue:
            raise Problem(503, "overload", "too many jobs are queued: ask again later", retry_after=60)
        suffix = job_suffix(request, here.options)
        wanted = JobRequest(
            created=time.time(),
            preset=query.chosen(dict(here.presets), here.default_preset),
            seed=query.seed,
            aligned=query.mode == "aligned",
            photo=query.photo(),
            format="same",
            suffix=suffix,
        )
        try:
            job = await here.jobs.add(wanted, job_body(request, here.options))
        except OSError as error:
            raise Problem(507, "disk", f"the job could not be kept: {error}") from error
        request.state.facts["job"] = job.id
        return JSONResponse(job.describe(), 202, {"Location": f"/jobs/{job.id}"})

    @api.get("/jobs/{job_id}", response_model=JobInfo, responses=documented(401, 404, 422), openapi_extra=KEYED)
    async def status(job_id: Text) -> Any:
        """Where a job is."""
        return job_of(job_id).describe()

    @api.get(
        "/jobs/{job_id}/result",
        response_class=Response,
        responses={
            200: {"description": "The restored file.", "content": dict.fromkeys((*ANSWERED, *VIDEOS), BINARY)},
            **documented(401, 404, 409, 422),
        },
        openapi_extra=KEYED,
    )
    async def result(job_id: Text) -> Response:
        """The restored file of a job that is done."""
        job = job_of(job_id)
        path = job.result
        if path is None or not path.is_file():
            raise Problem(409, "not done", f"the job is {job.status.state}: its result is there when it is done")
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix])

    @api.delete("/jobs/{job_id}", status_code=204, responses=documented(401, 403, 404, 422), openapi_extra=KEYED)
    async def delete(job_id: Text) -> None:
        """Cancel a job and delete all that belongs to it."""
        job = job_of(job_id)
        here = front()
        if here.jobs:
            here.jobs.remove(job)


def _add_operation(api: FastAPI, front: Callable[[], Front]) -> None:
    @api.get("/health", response_model=dict[str, str])
    async def health() -> Any:
        """Whether the process answers."""
        return {"status": "ok"}

    @api.get("/ready", response_model=dict[str, str], responses=documented(503))
    async def ready() -> Any:
        """Whether new work is taken: the networks are warm and gave a finite image, and the server is not ending."""
        here = front()
        if reason := here.why_not_ready():
            raise Problem(503, here.state if here.state != "ready" else "lacking", reason, retry_after=2)
        return {"status": "ready"}

    @api.get("/info", response_model=Info)
    async def info() -> Any:
        """What is served, with its presets and limits."""
        return front().describe()

    @api.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(401)},
        openapi_extra=KEYED,
    )
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        here = front()
        if here.jobs:
            states = [job.status.state for job in here.jobs.jobs()]
            for state in ("queued", "running", "done", "failed", "cancelled"):
                here.metrics.jobs.labels(state).set(states.count(state))
        return Response(here.metrics.render(), media_type=CONTENT_TYPE)

    @api.get("/", include_in_schema=False)
    async def try_it() -> Response:
        body, headers = page()
        return Response(body, media_type="text/html", headers=headers)


def _described(api: FastAPI) -> dict[str, Any]:
    if not api.openapi_schema:
        schema = get_openapi(title=api.title, version="1", summary=api.summary, routes=api.routes)
        schema["components"]["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "Needed where `GET /info` says api_key."}
        }
        schema["components"]["schemas"].pop("HTTPValidationError", None)
        schema["components"]["schemas"].pop("ValidationError", None)
        api.openapi_schema = json.loads(json.dumps(schema))
    return api.openapi_schema
