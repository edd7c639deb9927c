"""Structured logs: one JSON object a line."""

import json
import logging
import os
from datetime import datetime, timezone

ACCESS = "bfr.serve.access"
LEVEL_VARIABLE = "BFR_LOG_LEVEL"  # as a server has it, for the processes that it starts
TRACE = 5  # at which the HTTP server logs connections


class JsonFormatter(logging.Formatter):
    """time (ISO 8601, UTC), level, logger, message, and what `extra={"fields": {...}}` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        content = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


_OUTPUT: list[int] = []  # the descriptor of the standard output, once lines of JSON alone go there


def output() -> int | None:
    """The descriptor that log lines go to, for processes that log there too; None before `log_as_json`."""
    return _OUTPUT[0] if _OUTPUT else None


def log_as_json() -> None:
    """Send what `bfr` and the HTTP server log to standard output, and all that others print there to standard error.

    LEVEL_VARIABLE names the least level of `bfr`: WARNING, INFO, or DEBUG, which adds the HTTP server's connections.
    """
    level = os.environ.get(LEVEL_VARIABLE, "INFO")
    while (unused := os.open(os.devnull, os.O_RDWR)) < 3:  # a daemon's standard files may be closed
        pass
    os.close(unused)
    _OUTPUT[:] = [os.dup(1)]
    ours = os.fdopen(_OUTPUT[0], "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    handler = logging.StreamHandler(ours)
    handler.setFormatter(JsonFormatter())
    forms = ("python_multipart", logging.CRITICAL)  # an answer says what a form lacks
    for name, least in (("bfr", level), ("uvicorn", TRACE if level == "DEBUG" else logging.WARNING), forms):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(least)
        logger.propagate = False
