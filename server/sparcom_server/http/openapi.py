"""Compose openapi.json: FastAPI's document with the bodies that routes read themselves, files, headers and examples."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from sparcom_server.http import examples
from sparcom_server.http.upload_body import FILE_TYPES, FORM_TYPE
from sparcom_server.schemas.reports import ErrorLine, JobReport, Problem, ResultLine
from sparcom_server.schemas.requests import ExtractionRequest, KeyRequest, UploadFields

TEMPLATE = "#/components/schemas/{model}"
TEXT = {"type": "string"}
BYTES = {"type": "string", "contentMediaType": "application/octet-stream"}
LINES = "application/jsonl"
# Types of the successful responses that are no JSON.
FILES: dict[str, tuple[str, ...]] = {
    "GET /v1/extractions/{job_id}/events": ("text/event-stream",),
    "GET /v1/extractions/{job_id}/results": (LINES,),
    "GET /v1/extractions/{job_id}/errors": (LINES,),
    "GET /v1/files/{file_id}/content": (LINES,),
    "GET /v1/archives/{name}/zarr/{key}": ("application/octet-stream",),
    "GET /v1/extractions/{job_id}/analysis/{key}": (
        "text/html", "application/json", "text/csv", "image/png", "image/svg+xml", "application/pdf",
        "application/octet-stream",
    ),
    "GET /metrics": ("text/plain",),
}  # fmt: skip
REF = {model: {"$ref": TEMPLATE.format(model=model.__name__)} for model in (ResultLine, ErrorLine, JobReport)}
# Schema of each event or line of a response.
ITEMS: dict[str, dict[str, Any]] = {
    "GET /v1/extractions/{job_id}/events": {
        "type": "object",
        "required": ["data", "event", "id"],
        "properties": {
            "data": TEXT | {"contentMediaType": "application/json", "contentSchema": REF[JobReport]},
            "event": {"enum": ["progress", "end"]},
            "id": {"type": "string", "pattern": "^[0-9]+$"},
        },
    },
    "GET /v1/extractions/{job_id}/results": REF[ResultLine],
    "GET /v1/extractions/{job_id}/errors": REF[ErrorLine],
    "GET /v1/files/{file_id}/content": {"$ref": TEMPLATE.format(model="Instruction")},
}
# Routes that answer conditional requests and byte ranges.
RANGES = tuple(route for route, types in FILES.items() if route.endswith(("/content", "/{key}")))
CONDITIONS = ("Range", "If-Range", "If-None-Match", "If-Modified-Since")
HEADERS = {
    "Location": "Address of what was created.",
    "Idempotent-Replayed": "true if the job of an earlier request with the same Idempotency-Key is returned.",
    "Retry-After": "Seconds after which to try again.",
    "WWW-Authenticate": "Bearer, with status 401.",
    "ETag": "Version of the file, for If-None-Match and If-Range.",
    "Last-Modified": "Time of the last change, for If-Modified-Since.",
    "Content-Range": "Part of the file, with status 206.",
    "Accept-Ranges": "bytes",
}


def compose(app: FastAPI) -> None:
    """Make the app serve the composed document."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(original())
        return original()

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(document: dict[str, Any]) -> None:
    schemas: dict[str, Any] = document["components"]["schemas"]
    for model in (ExtractionRequest, KeyRequest, Problem, ResultLine, ErrorLine):
        _add_schema(schemas, model)
    # Routes read these bodies themselves: FastAPI would validate a large one on the event loop, for seconds.
    for path, model in (("/v1/extractions", ExtractionRequest), ("/v1/keys", KeyRequest)):
        content = {"application/json": {"schema": {"$ref": TEMPLATE.format(model=model.__name__)}}}
        document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
    document["paths"]["/v1/files"]["post"]["requestBody"] = {"required": True, "content": _upload_content()}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete_operation(path, f"{method.upper()} {path}", operation)


def _add_schema(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template=TEMPLATE)
    for name, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    schemas[model.__name__] = schema


def _upload_content() -> dict[str, Any]:
    lines = {"schema": TEXT | {"description": "One instruction per line, as a JSON object."}}
    properties = {"file": BYTES} | UploadFields.model_json_schema()["properties"]
    form = {"type": "object", "properties": properties, "required": ["file"], "additionalProperties": False}
    return dict.fromkeys(FILE_TYPES, lines) | {FORM_TYPE: {"schema": form}}


def _complete_operation(path: str, route: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    success = next(code for code in responses if code.startswith("2"))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        if media_type != FORM_TYPE:
            content["example"] = examples.REQUESTS[route]
    if types := FILES.get(route):
        described = {"itemSchema": ITEMS[route]} if route in ITEMS else {"schema": BYTES}
        responses[success]["content"] = {media_type: dict(described) for media_type in types}
    if route in examples.RESPONSES:
        next(iter(responses[success]["content"].values()))["example"] = examples.RESPONSES[route]
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "path":
            parameter["example"] = examples.KEYS.get(path) or examples.PARAMETERS[parameter["name"]]
            if parameter["name"] != "key":
                parameter["example"] = examples.PARAMETERS[parameter["name"]]
    for code in ("4XX", "5XX"):
        for content in responses.get(code, {}).get("content", {}).values():
            content["example"] = examples.PROBLEM
    _add_headers(responses, "4XX", "Retry-After", "WWW-Authenticate")
    _add_headers(responses, "5XX", "Retry-After")
    if route == "POST /v1/files":
        _add_headers(responses, "201", "Location")
    if route == "POST /v1/extractions":
        _add_headers(responses, "202", "Location", "Idempotent-Replayed", "Retry-After")
    if route == "GET /v1/extractions/{job_id}":
        _add_headers(responses, "200", "Retry-After")
    if route in RANGES:
        operation["parameters"] += [{"name": name, "in": "header", "schema": TEXT} for name in CONDITIONS]
        _add_headers(responses, success, "ETag", "Last-Modified", "Accept-Ranges")
        responses["206"] = responses[success] | {"description": "The part of the file that was asked for"}
        responses["304"] = {"description": "The client has this version of the file already"}
        _add_headers(responses, "206", "ETag", "Last-Modified", "Accept-Ranges", "Content-Range")
        _add_headers(responses, "304", "ETag", "Last-Modified")


def _add_headers(responses: dict[str, Any], code: str, *names: str) -> None:
    if code in responses and names:
        responses[code]["headers"] = {name: {"schema": TEXT, "description": HEADERS[name]} for name in names}
