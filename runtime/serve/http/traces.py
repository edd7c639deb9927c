"""Traces: the caller's `traceparent` (W3C Trace Context) goes into the log, and into the spans of OpenTelemetry.

With the extra `otel` and `OTEL_EXPORTER_OTLP_ENDPOINT` in the environment each request is a span, with one for each of
its stages.
"""

import os
import re
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from starlette.datastructures import Headers

from bfr.runtime.errors import MissingDependency
from bfr.runtime.install import install_command

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
IN_TURN = ("read", "align", "restore", "background", "paste", "write")
"""The stages of a request, one after the other; the others are parts of these."""
_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@cache
def tracer() -> Any:
    """What makes spans; None where no endpoint is set. Raises MissingDependency without the extra `otel`."""
    if not os.environ.get(ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependency(
            f"{ENDPOINT} is set, and OpenTelemetry is not installed ({error}): {install_command('otel')}, or unset it"
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", "bfr")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("bfr")


class Trace:
    """The trace of a request."""

    def __init__(self, headers: Headers, method: str) -> None:
        self.parent, self._begin, self._method = headers.get("traceparent", ""), time.time_ns(), method
        self._headers = headers

    def fields(self) -> dict[str, str]:
        """For the log: the caller's trace id."""
        found = _PARENT.fullmatch(self.parent)
        return {"trace_id": found[1]} if found else {}

    def end(self, facts: Mapping[str, Any], stages: Mapping[str, float]) -> None:
        """Export the span of a request that is answered. stages: seconds of each."""
        if (make := tracer()) is None:
            return
        from opentelemetry import trace
        from opentelemetry.propagate import extract

        context = extract({"traceparent": self.parent, "tracestate": self._headers.get("tracestate", "")})
        attributes = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
        name = f"{self._method} {facts['route']}"
        span = make.start_span(name, context, kind=trace.SpanKind.SERVER, attributes=attributes, start_time=self._begin)
        within, at = trace.set_span_in_context(span), self._begin
        for stage in (one for one in IN_TURN if one in stages):
            child = make.start_span(stage, within, start_time=at)
            at += int(1e9 * stages[stage])
            child.end(at)
        span.end()
