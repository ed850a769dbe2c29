"""Spans of a request across processes, told to an OpenTelemetry collector; none holds anything of an input.

A request's span is made where it comes in, and what works on it makes spans below. Between deployments the
caller gives its own with the call (`Trace`); the called process needs no settings of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from os import getpid
from socket import gethostname
from typing import Any, TypeVar, cast

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .spec import TracesSpec

TRACE_HEADER = "x-eagleray-trace"
TELLS_EVERY_S = 1.0
FAILED = Status(StatusCode.ERROR)
Value = str | int | float

_Method = TypeVar("_Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Trace:
    """A span that others go below; small, so that it crosses processes.

    Attributes:
        trace_id, span_id: of the span.
        traces: where its spans are told.
        application: whose.
    """

    trace_id: int
    span_id: int
    traces: TracesSpec
    application: str

    @property
    def name(self) -> str:
        """Its number as collectors show it."""
        return format_trace_id(self.trace_id)


_CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """The span that work is done below, if it is told."""
    return _CURRENT.get()


@contextmanager
def request(
    name: str, headers: Mapping[str, str], traces: TracesSpec | None, application: str
) -> Generator[Span]:
    """A request's span; it goes on from the caller's, if there is a `traceparent` (W3C Trace Context).

    Args:
        name: of the span.
        headers: of the request.
        traces: where spans are told; None for nowhere.
        application: whose.
    """
    if traces is None:
        yield NonRecordingSpan(_NOTHING)
        return
    context = TraceContextTextMapPropagator().extract(headers)
    span = _tracer(traces.endpoint, traces.share, application).start_span(name, context, SpanKind.SERVER)
    place = span.get_span_context()
    trace = Trace(place.trace_id, place.span_id, traces, application) if span.is_recording() else None
    token = _CURRENT.set(trace)
    try:
        yield span
    finally:
        _CURRENT.reset(token)
        span.end()


class span:
    """A span of what is done meanwhile, below the current one; nothing if that isn't told.

    Used as a function; as a generator it would take several times as long, which every request pays.

    Args:
        name: of the span.
        about: what there is to say of it.

    Attributes:
        about: see above; what is found out on the way may be added.
    """

    __slots__ = ("_made", "_name", "about")

    def __init__(self, name: str, **about: Value) -> None:
        self._name, self.about = name, about

    def __enter__(self) -> dict[str, Value]:
        """Begin."""
        trace = _CURRENT.get()
        self._made = None if trace is None else start(trace, self._name)
        return self.about

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End, and tell."""
        if self._made is None:
            return
        if kind is not None:
            self._made.set_status(Status(StatusCode.ERROR, kind.__name__))  # a message may hold an input
        self._made.set_attributes(self.about)
        self._made.end()


def start(trace: Trace, name: str) -> Span:
    """Begin a span below another."""
    tracer = _tracer(trace.traces.endpoint, trace.traces.share, trace.application)
    return tracer.start_span(name, _below(trace))


def joins_trace(method: _Method) -> _Method:
    """Let a deployment's method take `trace` besides, from callers in other processes, and work below it."""
    if inspect.isasyncgenfunction(method):

        @wraps(method)
        async def stream(
            *args: Any,  # noqa: ANN401 - the method's
            trace: Trace | None = None,
            **fields: Any,  # noqa: ANN401
        ) -> AsyncGenerator[Any]:
            async with aclosing(method(*args, **fields)) as told:
                while True:
                    # a generator goes on in the context of whoever asks for more
                    with _below_caller(trace):
                        try:
                            piece = await anext(told)
                        except StopAsyncIteration:
                            return
                    yield piece

        return cast(_Method, stream)

    @wraps(method)
    async def call(
        *args: Any,  # noqa: ANN401
        trace: Trace | None = None,
        **fields: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        with _below_caller(trace):
            return await method(*args, **fields)

    return cast(_Method, call)


@contextmanager
def _below_caller(trace: Trace | None) -> Generator[None]:
    if trace is None:  # called in this process, whose context has it
        yield
        return
    token = _CURRENT.set(trace)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _below(trace: Trace) -> Context:
    place = SpanContext(trace.trace_id, trace.span_id, is_remote=True, trace_flags=TraceFlags(1))
    return set_span_in_context(NonRecordingSpan(place))


@cache
def _tracer(endpoint: str, share: float, application: str) -> Tracer:
    """What makes spans, and tells them in a thread of its own: a collector that is away costs no request."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(share)),
        resource=Resource.create(
            {
                "service.namespace": "eagleray",
                "service.name": application,
                "service.instance.id": f"{gethostname()}-{getpid()}",
            }
        ),
    )
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000 * TELLS_EVERY_S))
    return provider.get_tracer("eagleray")


_NOTHING = SpanContext(0, 0, is_remote=False)
