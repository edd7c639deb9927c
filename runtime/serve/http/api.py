"""The HTTP interface: routes, and their OpenAPI description. What they do is `Front`'s."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from bfr.runtime.jobs.options import RestoreOptions
from bfr.runtime.jobs.sources import MEDIA_TYPES
from bfr.runtime.options import explain
from bfr.runtime.serve.http.front import Front, Visit
from bfr.runtime.serve.http.gate import Gate, request_id
from bfr.runtime.serve.http.job_routes import add_jobs
from bfr.runtime.serve.http.page import page
from bfr.runtime.serve.http.problems import KEYED, Problem, documented, keyed
from bfr.runtime.serve.http.requests import (
    ANSWERED,
    BYTES,
    FIELD,
    FORM,
    IMAGES,
    check_image_type,
    check_query,
    read_image,
    wanted_suffix,
)
from bfr.runtime.serve.http.schemas import BINARY, Info, Options, RequestInfo, Text, describe
from bfr.runtime.serve.orders import Answer, Order

MOST_NAMED = 5  # wrong options in an answer
FORM_SCHEMA = {"type": "object", "required": [FIELD], "properties": {FIELD: {"type": "string", "format": "binary"}}}
IMAGE_BODY = {"required": True, "content": {**dict.fromkeys((*IMAGES, BYTES), BINARY), FORM: {"schema": FORM_SCHEMA}}}
RESULT_HEADERS = {
    "X-Bfr-Faces": "Faces that were restored.",
    "X-Bfr-Faces-Failed": "Faces that could not be, and are as they were; only where there are any.",
    "X-Bfr-Faces-Sharp": "Faces that are sharp already, and are as they were; only where there are any.",
    "X-Bfr-Seed": "Seed of the noise.",
    "X-Bfr-Preset": "The preset.",
    "X-Bfr-Bundle": "Hash of the bundle: of the networks and all settings.",
    "X-Bfr-Seconds": "Seconds by stage, as `queue=0.01;network=0.31`; `network` is a part of the others.",
    "X-Bfr-Notes": "What of the image was left out or reduced, percent-encoded, separated by commas.",
    "X-Request-Id": "For logs.",
}
RESTORED: dict[str, Any] = {
    "description": "The restored image.",
    "content": dict.fromkeys(ANSWERED, BINARY),
    "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in RESULT_HEADERS.items()},
}


def make_api(front: Callable[[], Front]) -> FastAPI:
    """Make the interface.

    Args:
        front: Called with each request; returns the Front that answers it.
    """
    api = FastAPI(
        title="bfr",
        summary="Diffusion-based blind face restoration.",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
        redirect_slashes=False,  # it would send bodies twice, to whatever the Host header names
    )
    api.add_middleware(Gate, front=front)

    @api.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> Response:
        request.state.facts["reason"] = problem.reason
        return problem.response(request_id(request))

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        named = error.errors()[:MOST_NAMED]
        errors = [{**one, "loc": one["loc"][1:]} for one in named]  # behind `query`, `path` or `header`
        found = explain(errors, RestoreOptions.model_fields)
        return await _problem(request, Problem(422, "invalid options", f"{found}; see /openapi.json"))

    @api.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        problem = Problem(
            error.status_code, "http", f"{error.detail}: {request.method} {request.url.path}; see /openapi.json"
        )
        response = problem.response(request_id(request))
        response.headers.update(error.headers or {})
        return response

    _add_restore(api, front)
    add_jobs(api, front)
    _add_operation(api, front)
    api.openapi = lambda: _described(api)  # type: ignore[method-assign]
    return api


def _add_restore(api: FastAPI, front: Callable[[], Front]) -> None:
    @api.post(
        "/restore",
        response_class=Response,
        responses={200: RESTORED, **documented(401, 403, 406, 408, 413, 415, 422, 429, 500, 503)},
        openapi_extra={"requestBody": IMAGE_BODY, **KEYED},
    )
    async def restore(request: Request, query: Options) -> Response:
        """Restore the faces of an image: the body itself, or the field `image` of a form.

        The same image, seed and options give the same bytes, so that a request may be sent again. Past the limits of
        requests, faces and bytes in flight it is refused with 503 and Retry-After, before its body is read. `Accept`
        chooses PNG, JPEG or WebP; else it is the image's own format. If the connection is closed, the work ends.
        """
        here = front()
        check_query(request)
        order = Order(
            query.group(here.systems),
            time.monotonic() + here.options.timeout,
            aligned=query.mode == "aligned",
            photo=query.photo(),
            suffix=wanted_suffix(request.headers.get("accept")),
            sender=request.state.sender,
        )
        size = check_image_type(request, here.options)
        owner = here.owner(request.state.sender)
        with here.admit(request_id(request), owner) as visit, here.uploads.admit(size) as upload:
            data = await here.unless_over(read_image(request, here.options, here.uploads, upload))
            here.place(visit)
            answer = await here.unless_over(here.restore(visit, data, order), request.receive)
        facts = {"faces": answer.faces, "preset": order.group.preset, "bytes": len(data), "stages": answer.seconds}
        request.state.facts.update(facts)
        headers = _facts(answer, order, here)
        return Response(answer.data, media_type=MEDIA_TYPES[answer.suffix], headers=headers)

    @api.get("/requests", response_model=dict[str, RequestInfo], **keyed(422))
    async def several(
        request: Request,
        ids: Annotated[
            str, Query(max_length=6500, pattern="^[A-Za-z0-9_,-]*$", description="Ids, separated by commas.")
        ],
    ) -> Any:
        """Where requests are that were sent with these `X-Request-Id`s; those that are not in flight are left out."""
        found = {name: _visit(front(), request, name) for name in ids.split(",")[:100]}
        return {name: _where(front(), visit) for name, visit in found.items() if visit}

    @api.get("/requests/{request_id}", response_model=RequestInfo, **keyed(404, 422))
    async def progress(request: Request, request_id: Text) -> Any:
        """Where a request is that was sent with this `X-Request-Id` and is not answered yet."""
        here = front()
        visit = _visit(here, request, request_id)
        if visit is None:
            raise Problem(404, "no such request", "no request of yours with this id is in flight; it may be answered")
        return _where(here, visit)


def _visit(front: Front, request: Request, name: str) -> Visit | None:
    """The request of an id, if it is in flight and the same sender's."""
    visit = front.visits.get(name)
    return visit if visit and visit.owner == front.owner(request.state.sender) else None


def _where(front: Front, visit: Visit) -> dict[str, Any]:
    return {"state": visit.state, "share": round(visit.share, 4), "ahead": front.ahead(visit)}


def _facts(answer: Answer, order: Order, front: Front) -> dict[str, str]:
    timings = ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in answer.seconds.items())
    return {
        "X-Bfr-Faces": str(answer.faces),
        **({"X-Bfr-Faces-Failed": str(answer.failed)} if answer.failed else {}),
        **({"X-Bfr-Faces-Sharp": str(answer.sharp)} if answer.sharp else {}),
        "X-Bfr-Seed": str(order.group.seed),
        "X-Bfr-Preset": order.group.preset,
        "X-Bfr-Bundle": front.systems[order.group.bundle].bundle.hash,
        "X-Bfr-Seconds": ";".join(f"{stage}={seconds:.4f}" for stage, seconds in answer.seconds.items()),
        "Server-Timing": timings,
        **({"X-Bfr-Notes": ",".join(quote(note) for note in answer.notes)} if answer.notes else {}),
    }


def _add_operation(api: FastAPI, front: Callable[[], Front]) -> None:
    @api.get("/health", response_model=dict[str, str], responses=documented(403))
    async def health() -> Any:
        """Whether the process answers."""
        return {"status": "ok"}

    @api.get("/ready", response_model=dict[str, str], responses=documented(403, 503))
    async def ready() -> Any:
        """Whether new work is taken: the networks are warm and gave a finite image, and the server is not ending."""
        here = front()
        if reason := here.why_not_ready():
            raise Problem(503, here.state if here.state != "ready" else "lacking", reason, retry_after=2)
        return {"status": "ready"}

    @api.get("/info", response_model=Info, responses=documented(403))
    async def info() -> Any:
        """What is served, with its presets and limits."""
        return describe(front())

    @api.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(401, 403)},
        openapi_extra=KEYED,
    )
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(front().render_metrics(), media_type=CONTENT_TYPE_LATEST)

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
