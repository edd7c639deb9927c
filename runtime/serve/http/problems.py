"""Errors of the HTTP interface as problem details (RFC 9457): what went wrong, and how to fix it."""

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

KEYED: dict[str, Any] = {"security": [{"key": []}]}


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        status: The HTTP status.
        reason: A short word for metrics and logs.
        detail: What was found, and how to fix it.
        retry_after: Seconds for the header; None leaves it out.
        close: The connection is to be closed.
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


def keyed(*statuses: int) -> dict[str, Any]:
    """Keyword arguments for the decorator of a route that needs an API key; 401 and 403 are added."""
    return {"responses": documented(401, 403, *statuses), "openapi_extra": KEYED}
