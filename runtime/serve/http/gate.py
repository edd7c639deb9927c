"""What every request passes: an id, the API key, protection from other sites' pages, the log and the counters."""

import logging
import re
import time
from collections.abc import Callable
from secrets import token_hex

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bfr.runtime.serve.http.front import ClientGone, Front
from bfr.runtime.serve.http.logs import ACCESS
from bfr.runtime.serve.http.problems import Problem

OPEN = ("/", "/health", "/ready", "/info", "/openapi.json", "/favicon.ico")
"""Routes that need no API key."""

CLIENT_GONE = 499  # as nginx logs it; nobody reads the answer
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_log = logging.getLogger(ACCESS)


class Gate:
    """ASGI middleware around the whole interface.

    A request keeps its `X-Request-Id`, 8 to 64 letters, digits, `-` and `_`, else it is given one. `scope["state"]`
    holds `request_id`, and `facts` for the log.
    """

    def __init__(self, app: ASGIApp, front: Callable[[], Front]) -> None:
        self.app, self._front = app, front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, headers, front = time.perf_counter(), Headers(scope=scope), self._front()
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else token_hex(16)
        state = scope.setdefault("state", {})
        state["request_id"], state["facts"] = request_id, {}
        status, started = 500, False

        async def sending(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = request_id
                answer.setdefault("X-Content-Type-Options", "nosniff")
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            check_access(scope["method"], scope["path"], headers, front)
            await self.app(scope, receive, sending)
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
            route = getattr(scope.get("route"), "path", "other")
            reason = state["facts"].get("reason", "client gone" if status == CLIENT_GONE else "")
            front.metrics.requests.labels(route, str(status), reason).inc()
            front.metrics.seconds.labels(route).observe(seconds)
            if route not in ("/health", "/ready", "/metrics", "/requests/{request_id}"):
                facts = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "client": (scope.get("client") or ("unknown",))[0],
                    **state["facts"],
                }
                _log.info("request", extra={"fields": facts})


def check_access(method: str, path: str, headers: Headers, front: Front) -> None:
    """Raise Problem 401 without an API key, and 403 for what a page of another site sends through a browser."""
    if method not in ("GET", "HEAD", "OPTIONS") and headers.get("sec-fetch-site", "none") in (
        "cross-site",
        "same-site",
    ):
        raise Problem(403, "other site", "pages of other sites may not send images here: open this server's own page")
    if path in OPEN:
        return
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if not front.options.allows(key.strip() if scheme.lower() == "bearer" else None):
        raise Problem(401, "api key", "an API key of this server is needed: send it as `Authorization: Bearer KEY`")


def request_id(request: Request) -> str:
    """The id that the gate gave a request."""
    return str(request.state.request_id)
