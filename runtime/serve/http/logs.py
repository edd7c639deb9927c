"""Structured logs: one JSON object a line."""

import json
import logging
import os
from datetime import UTC, datetime

ACCESS = "bfr.serve.access"


class JsonFormatter(logging.Formatter):
    """time (ISO 8601, UTC), level, logger, message, and what `extra={"fields": {...}}` holds."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


def log_as_json() -> None:
    """Send what `bfr` and the HTTP server log to standard output, and all that others print there to standard error."""
    ours = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    handler = logging.StreamHandler(ours)
    handler.setFormatter(JsonFormatter())
    for name, level in (("bfr", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("ray").setLevel(logging.WARNING)
