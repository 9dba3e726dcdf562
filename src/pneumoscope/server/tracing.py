"""Traces for OpenTelemetry: how long a request takes, and its decoding, computing and storing.

Attributes are numbers, routes, methods and codes; no names, paths, UIDs, or messages of errors, which could contain
them. Without an endpoint nothing is imported, and spans cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from pneumoscope import __version__
from pneumoscope.errors import MissingExtraError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_TIMEOUT = 5.0  # seconds that the collector may take; the service waits for it when it ends
_NOTHING: AbstractContextManager[Any] = nullcontext()


class Tracing(Protocol):
    """Makes spans."""

    def span(self, name: str, links: Sequence[object] = (), **attributes: float | str) -> AbstractContextManager[Any]:
        """A span, or None if nothing is traced. Its `set_attribute` adds attributes.

        Args:
            name: what is done.
            links: `current()` of each request that it is done for, if there are several.
            **attributes: its attributes; two underscores in a name stand for a dot.
        """

    def request(self, headers: Mapping[str, str], method: str) -> AbstractContextManager[Any]:
        """The span of a request; it continues the trace that the caller names."""

    def current(self) -> object:
        """The span in which this is called, for links; None where nothing is traced."""

    def close(self) -> None:
        """Send what is left."""


class NoTracing:
    """Makes no spans."""

    def span(self, *_: object, **__: object) -> AbstractContextManager[Any]:
        """Nothing."""
        return _NOTHING

    def request(self, *_: object) -> AbstractContextManager[Any]:
        """Nothing."""
        return _NOTHING

    def current(self) -> object:
        """Nothing."""
        return None

    def close(self) -> None:
        """Nothing is left."""


class OpenTelemetry:
    """Makes spans of OpenTelemetry, and sends them from a thread of its own."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        own = Resource.create({"service.name": "pneumoscope", "service.version": __version__})
        self._provider: TracerProvider = TracerProvider(resource=own)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("pneumoscope")
        self._propagator = TraceContextTextMapPropagator()

    def span(self, name: str, links: Sequence[object] = (), **attributes: float | str) -> AbstractContextManager[Any]:
        """See `Tracing`."""
        from opentelemetry.trace import Link, SpanContext

        return self._tracer.start_as_current_span(
            name,
            links=list({each.span_id: Link(each) for each in links if isinstance(each, SpanContext)}.values()),
            attributes={key.replace("__", "."): value for key, value in attributes.items()},
            record_exception=False,  # its message could contain a name
            set_status_on_exception=False,
        )

    def request(self, headers: Mapping[str, str], method: str) -> AbstractContextManager[Any]:
        """See `Tracing`."""
        from opentelemetry.trace import SpanKind

        given = {name: headers[name] for name in ("traceparent",) if name in headers}
        return self._tracer.start_as_current_span(
            f"{method} request", context=self._propagator.extract(given), kind=SpanKind.SERVER,
            attributes={"http.request.method": method}, record_exception=False, set_status_on_exception=False,
        )  # fmt: skip

    def current(self) -> object:
        """See `Tracing`."""
        from opentelemetry.trace import get_current_span

        return get_current_span().get_span_context()

    def close(self) -> None:
        """See `Tracing`."""
        self._provider.shutdown()


def open_tracing(endpoint: str | None) -> Tracing:
    """Get ready to trace.

    Args:
        endpoint: the address of a collector that takes OTLP over HTTP, without `/v1/traces`; None: nothing is traced.

    Raises:
        MissingExtraError: the extra is not installed.
    """
    if endpoint is None:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as problem:
        raise MissingExtraError(
            f'{problem.name} is not installed: pip install "pneumoscope[otel]".', parameter="otel_endpoint"
        ) from None
    return OpenTelemetry(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_TIMEOUT))
