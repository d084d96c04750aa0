"""The attribute `sparcom` is read back as written, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sparcom_data.errors import NewerFormatError, NotAnArchiveError
from sparcom_data.schema.metadata import FORMAT_VERSION, parse_attributes
from sparcom_data.testing import random_attributes


def section(**changes: object) -> dict[str, Any]:
    """Return the attribute as JSON gives it, with changes at its top level."""
    return {"sparcom": json.loads(random_attributes(2, 8).model_dump_json()) | changes}


def test_attributes_survive_json() -> None:
    """Attributes survive a round trip through JSON, including extra keys of the engine."""
    assert parse_attributes(section(), "here") == random_attributes(2, 8)
    engine = section()["sparcom"]["engine"] | {"compute_capability": "9.0"}
    assert parse_attributes(section(engine=engine), "here").engine.model_dump() == engine


@pytest.mark.parametrize("raw", [{}, {"other": 1}, {"sparcom": None}, {"sparcom": [1]}, {"sparcom": "1"}])
def test_another_kind_of_group_is_refused(raw: dict[str, Any]) -> None:
    """A group without the attribute, or with a non-object, is not an archive; the message names its path."""
    with pytest.raises(NotAnArchiveError, match="'sparcom' on its root group; here has none"):
        parse_attributes(raw, "here")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 1000])
def test_a_newer_version_is_distinguished_from_damage(version: int) -> None:
    """A later version, however different, is refused with both versions and the remedy."""
    for raw in (section(format_version=version), {"sparcom": {"format_version": version, "shape": "unheard of"}}):
        with pytest.raises(NewerFormatError, match=f"format {FORMAT_VERSION}; here has format {version}. Upgrade"):
            parse_attributes(raw, "here")


def without(name: str) -> Callable[[dict[str, Any]], object]:
    """Remove a field, given by its dotted path."""
    *parents, last = name.split(".")

    def change(fields: dict[str, Any]) -> None:
        for parent in parents:
            fields = fields[parent]
        del fields[last]

    return change


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("format_version", lambda fields: fields.update(format_version="1")),
        ("format_version", lambda fields: fields.update(format_version=0)),
        ("created", without("created")),
        ("model.neurons", without("model.neurons")),
        ("model.layer_ids", lambda fields: fields["model"].update(layer_ids="all")),
        ("engine.enforce_eager", without("engine.enforce_eager")),
        ("capture.positions", lambda fields: fields["capture"].update(positions="some")),
        ("capture.surprise", lambda fields: fields["capture"].update(surprise=1)),
        ("state", lambda fields: fields.update(state="closed")),
        ("surprise", lambda fields: fields.update(surprise=1)),
    ],
)
def test_a_malformed_attribute_names_its_field(field: str, change: Callable[[dict[str, Any]], object]) -> None:
    """A missing, unknown or invalid field is named; no default replaces it."""
    raw = section()
    change(raw["sparcom"])
    with pytest.raises(NotAnArchiveError, match=rf"these fields do not: {field}\."):
        parse_attributes(raw, "here")


def test_special_tokens_may_be_unknown() -> None:
    """Archives without the field are read; ids that are not distinct, ascending and at least 0 are refused."""
    old = section()
    del old["sparcom"]["prompts"]
    assert parse_attributes(old, "here").prompts is None
    known = parse_attributes(section(prompts={"special_token_ids": [0, 2, 17]}), "here").prompts
    assert known is not None
    assert known.special_token_ids == [0, 2, 17]
    for ids in ([2, 0], [2, 2], [-1, 2]):
        with pytest.raises(NotAnArchiveError, match=r"these fields do not: prompts\.special_token_ids"):
            parse_attributes(section(prompts={"special_token_ids": ids}), "here")
