"""Traces: the caller's `traceparent` (W3C Trace Context) goes into the log, and into the spans of OpenTelemetry.

With the extra `otel` and `OTEL_EXPORTER_OTLP_ENDPOINT` in the environment each request is a span, with one for each of
its stages.
"""

import os
import re
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
    """What makes spans; None if no endpoint is set. Raises MissingDependency without the extra `otel`."""
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


def trace_fields(headers: Headers) -> dict[str, str]:
    """The caller's trace id, for the log; empty if it sent none."""
    found = _PARENT.fullmatch(headers.get("traceparent", ""))
    return {"trace_id": found[1]} if found else {}


def export(headers: Headers, begin: int, facts: Mapping[str, Any], stages: Mapping[str, float]) -> None:
    """Export the span of a request that is answered.

    Args:
        headers: The request's headers.
        begin: `time.time_ns()` at its beginning.
        facts: Those of the log, `method` and `route` among them.
        stages: Seconds of each stage.
    """
    if (make := tracer()) is None:
        return
    from opentelemetry import trace
    from opentelemetry.propagate import extract

    context = extract({name: headers.get(name, "") for name in ("traceparent", "tracestate")})
    attributes = {name: value for name, value in facts.items() if isinstance(value, str | int | float)}
    name = f"{facts['method']} {facts['route']}"
    span = make.start_span(name, context, kind=trace.SpanKind.SERVER, attributes=attributes, start_time=begin)
    within, at = trace.set_span_in_context(span), begin
    for stage in (one for one in IN_TURN if one in stages):
        child = make.start_span(stage, within, start_time=at)
        at += int(1e9 * stages[stage])
        child.end(at)
    span.end()
