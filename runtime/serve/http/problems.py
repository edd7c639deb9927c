"""Errors of the HTTP interface as problem details (RFC 9457): what went wrong, and how to mend it."""

from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"
PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was found, and how to mend it."},
        "request_id": {"type": "string"},
    },
}


class Problem(Exception):
    """A request that is not answered with what it asked for.

    reason: a short word for metrics and logs. retry_after: seconds. close: the connection is to be closed.
    """

    def __init__(
        self, status: int, reason: str, detail: str, *, retry_after: int | None = None, close: bool = False
    ) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail
        self.retry_after, self.close = retry_after, close

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says beside its body."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        headers |= {"Connection": "close"} if self.close else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {})

    def response(self, request_id: str) -> JSONResponse:
        """The answer."""
        content = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        return JSONResponse(content, self.status, self.headers, media_type=MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problems that a route may answer with, for its OpenAPI description."""
    content = {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}
    headers = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        | ({"headers": headers} if status in (429, 503) else {})
        for status in statuses
    }
