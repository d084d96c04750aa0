"""docs/metrics.md says everything that metrics.json, the command and the package offer."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel
from sparcom_analysis.schema import alteration as alteration_schema
from sparcom_analysis.schema import chance as stats_schema
from sparcom_analysis.schema import components as components_schema
from sparcom_analysis.schema import experts as expert_schema
from sparcom_analysis.schema import intervals as interval_schema
from sparcom_analysis.schema import length as length_schema
from sparcom_analysis.schema import metrics as schema

import sparcom_analysis
from sparcom_cli.analyze import analyze

MODULES = (
    alteration_schema,
    components_schema,
    expert_schema,
    interval_schema,
    length_schema,
    schema,
    stats_schema,
)
DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def text() -> str:
    """The document."""
    return DOCUMENT.read_text(encoding="utf-8")


def test_every_field_is_described(text: str) -> None:
    """Each field of metrics.json stands in the document with the description of the schema."""
    found = [item for module in MODULES for item in vars(module).values()]
    models = {item for item in found if isinstance(item, type) and issubclass(item, BaseModel)}
    assert len(models) > 35
    for model in models:
        for name, field in model.model_fields.items():
            assert f"| `{name}` | {field.description} |" in text, f"{model.__name__}.{name}"


def test_every_option_is_described(text: str) -> None:
    """Each option of `sparcom analyze` stands in the document."""
    for parameter in analyze.params:
        for option in parameter.opts:
            assert f"`{option}" in text or option == "archive", option


def test_every_public_name_exists_and_is_described(text: str) -> None:
    """What `__all__` promises is there and documented, here or in docs/python.md."""
    text += DOCUMENT.with_name("python.md").read_text(encoding="utf-8")
    for name in sparcom_analysis.__all__:
        assert hasattr(sparcom_analysis, name)
        assert f"`{name}" in text, name
