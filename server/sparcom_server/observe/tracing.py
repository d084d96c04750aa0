"""OpenTelemetry traces, switched on by its usual variables. Nothing is imported and nothing costs time while off.

On if OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or OTEL_TRACES_EXPORTER is set, unless the
exporter is `none` or OTEL_SDK_DISABLED is `true`. The SDK reads its other variables itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from sparcom_data.errors import InvalidInputError, MissingExtraError
from sparcom_extractor.spans import Attribute, use_spans

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.sdk.trace import TracerProvider

SERVICE = "sparcom"
SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
UNTRACED = "/health,/ready,/metrics"  # machines request them every few seconds


def is_enabled() -> bool:
    """Return whether the environment switches traces on."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "")
    return not disabled and exporter != "none" and any(os.environ.get(name) for name in SWITCHES)


def start_tracing(app: FastAPI) -> Callable[[], None]:
    """Trace the requests of an app, and jobs, if the environment asks for it. Return what ends it; that blocks.

    Raises:
        MissingExtraError: the extra `tracing` is not installed.
        InvalidInputError: the environment asks for another exporter or protocol.
    """
    if not is_enabled():
        return lambda: None
    provider = _provider()
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, excluded_urls=UNTRACED, exclude_spans=["receive", "send"]
    )
    tracer = provider.get_tracer(SERVICE)

    def start_span(name: str, attributes: Mapping[str, Attribute]) -> AbstractContextManager[Any]:
        named = {f"{SERVICE}.{key}": value for key, value in attributes.items()}
        return tracer.start_as_current_span(name, attributes=named)

    def stop() -> None:
        use_spans(None)
        provider.shutdown()

    use_spans(start_span)
    return stop


def _provider() -> TracerProvider:
    _check_exporter()
    try:
        import opentelemetry.instrumentation.fastapi  # noqa: F401
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        names = ", ".join(name for name in SWITCHES if os.environ.get(name))
        raise MissingExtraError(
            f"{names} switches traces on, which needs the extra 'tracing': pip install 'sparcom[tracing]'. "
            "Or set OTEL_SDK_DISABLED=true"
        ) from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _check_exporter() -> None:
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    protocol = next((value for name in PROTOCOLS if (value := os.environ.get(name))), "http/protobuf")
    if (exporter or "otlp", protocol) != ("otlp", "http/protobuf"):
        raise InvalidInputError(
            "traces need the exporter 'otlp' and the protocol 'http/protobuf'; they are "
            f"{exporter!r} and {protocol!r}. Unset OTEL_TRACES_EXPORTER and {PROTOCOLS[1]}, or set them to these values"
        )
