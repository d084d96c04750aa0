"""The schema of a body that a route reads by itself, for /openapi.json.

FastAPI decodes and checks the bodies that it knows of on the event loop, which a large one would block for seconds.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

_PREFIX = "#/components/schemas/"


def request_schema(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is this model; `add_request_schema` defines what it refers to."""
    content = {"application/json": {"schema": {"$ref": f"{_PREFIX}{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


def add_request_schema(app: FastAPI, model: type[BaseModel]) -> None:
    """Define a model, and those that it uses, in the app's /openapi.json."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schema = model.model_json_schema(ref_template=f"{_PREFIX}{{model}}")
        document["components"]["schemas"] |= schema.pop("$defs", {}) | {model.__name__: schema}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
