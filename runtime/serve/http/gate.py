"""What every request passes: an id, the API key, protection from other sites' pages, the log and the counters."""

import logging
import math
import re
import time
from collections.abc import Callable
from secrets import token_hex

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bfr.runtime.serve.http.front import ClientGone, Front
from bfr.runtime.serve.http.problems import Problem
from bfr.runtime.serve.http.traces import export, trace_fields
from bfr.runtime.serve.keys import Key
from bfr.runtime.serve.logs import ACCESS
from bfr.runtime.serve.options import LOCAL_NAMES
from bfr.runtime.serve.orders import Sender

OPEN = ("/", "/health", "/ready", "/info", "/openapi.json", "/favicon.ico")
"""Routes that need no API key."""

RESTORE = "/restore"
"""The route that a full server refuses here, before options or body are read."""

QUIET = ("/health", "/ready", "/metrics", "/requests", "/requests/{request_id}")
"""Routes that are asked again and again, and not logged."""

READING = ("GET", "HEAD", "OPTIONS")
CLIENT_GONE = 499  # as nginx logs it; it is never sent
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_log = logging.getLogger(ACCESS)


class Gate:
    """ASGI middleware around the whole interface.

    A request keeps its `X-Request-Id`, 8 to 64 letters, digits, `-` and `_`, else it is given one. `scope["state"]`
    holds `request_id`, `sender`, the `method` as it was sent, and `facts` for the log. HEAD is answered as GET is,
    without the body, which the HTTP server leaves out.
    """

    def __init__(self, app: ASGIApp, front: Callable[[], Front]) -> None:
        self.app, self._front = app, front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        front = self._front()
        with front.answering():
            await self._answer(front, scope, receive, send)

    async def _answer(self, front: Front, scope: Scope, receive: Receive, send: Send) -> None:
        begin, headers = time.perf_counter(), Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # below the prefix of a Serve application
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else token_hex(16)
        method, client = scope["method"], (scope.get("client") or ("unknown",))[0]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        state = scope.setdefault("state", {})
        state["request_id"], state["facts"], state["sender"] = request_id, {}, Sender(client)
        state["method"] = method
        body_left = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        status, started = 500, False

        async def receiving() -> Message:
            nonlocal body_left
            message = await receive()
            body_left = body_left and message["type"] == "http.request" and bool(message.get("more_body"))
            return message

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                answer.setdefault("X-Content-Type-Options", "nosniff")
                answer.setdefault("Cache-Control", "no-store")
                if body_left or front.state == "draining":  # the rest of the body is not read, or no request may follow
                    answer["Connection"] = "close"
            await send(message)

        began = time.time_ns()
        try:
            sender = state["sender"] = check_access(method, path, headers, front, client)
            if method == "POST" and path == RESTORE:
                front.check_room(front.owner(sender))
            await self.app(scope, receiving, sending)
        except Problem as problem:
            state["facts"]["reason"] = problem.reason
            await problem.response(request_id)(scope, receive, sending)
        except (ClientGone, ClientDisconnect):
            status = CLIENT_GONE
        except Exception:
            _log.exception("request failed", extra={"fields": {"request_id": request_id, "path": scope["path"]}})
            state["facts"]["reason"] = "bug"
            if started:
                raise
            bug = Problem(500, "bug", "the server failed: its log has more under this request id")
            await bug.response(request_id)(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", RESTORE if path == RESTORE else "other")
            reason = state["facts"].get("reason", "client gone" if status == CLIENT_GONE else "")
            front.metrics.requests.labels(route, str(status), reason).inc()
            front.metrics.seconds.labels(route).observe(seconds)
            stages = state["facts"].pop("stages", {})
            if route not in QUIET:
                facts = {
                    "request_id": request_id,
                    "method": method,
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "client": client,
                    **trace_fields(headers),
                    **state["facts"],
                }
                _log.info("request", extra={"fields": facts})
                export(headers, began, facts, stages)


def check_access(method: str, path: str, headers: Headers, front: Front, client: str) -> Sender:
    """Find out who sent a request, and whether it may.

    Args:
        method: The HTTP method.
        path: The route.
        headers: The request's headers.
        front: Its keys and names.
        client: The client's address.

    Raises:
        Problem: 400 for two lengths, of which a proxy before this server may take the other one; 401 without an API
            key; 403 for what a page of another site sends through a browser; 429 where a key's rate is used up.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        raise Problem(
            400, "two lengths", "a body has a Content-Length or comes in chunks: send one of both", close=True
        )
    check_site(method, headers, front)
    if not front.keys:
        return Sender(client)
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    key: Key | None = front.keys.find(secret.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        if path in OPEN:
            return Sender(client)
        raise Problem(401, "api key", "an API key of this server is needed: send it as `Authorization: Bearer KEY`")
    if method == "POST" and (wait := key.spend()):
        raise Problem(
            429,
            "rate",
            f"this API key may send {key.rate:g} requests a minute: try again later",
            retry_after=math.ceil(wait),
        )
    return Sender(key.name, key.priority)


def check_site(method: str, headers: Headers, front: Front) -> None:
    """Raise Problem 403 for what a page of another site sends through a browser.

    Without an API key, that is what protects the server of a machine from the pages that its browser shows: a name that
    is not the server's has been made to point here (DNS rebinding).
    """
    host, site = headers.get("host", ""), headers.get("sec-fetch-site")
    if not front.keys:
        name = host_name(host)
        if name is not None and name not in (*LOCAL_NAMES, *front.names):
            raise Problem(
                403, "host", f"this server is not called {name!r}: start it with --names {name}, or with an API key"
            )
    if method in READING:
        return
    origin = headers.get("origin")
    other = site in ("cross-site", "same-site")
    if site is None and origin is not None and not front.keys:
        other = origin.lower().partition("://")[2] != host.lower()
    if other:
        raise Problem(403, "other site", "pages of other sites may not send images here: open this server's own page")


def host_name(host: str) -> str | None:
    """The name in a `Host` header, without the port; None if there is none, as from HTTP/1.0."""
    if not host:
        return None
    if host.startswith("["):
        address, _, port = host[1:].partition("]")
        return address.lower() if port[:1] in ("", ":") else host
    return host.partition(":")[0].lower().removesuffix(".")


def request_id(request: Request) -> str:
    """The id that the gate gave a request."""
    return str(request.state.request_id)
