"""The table from errors to HTTP statuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import sparcom_server.errors  # noqa: F401  (defines further errors)
from sparcom_data.errors import InvalidInputError, SparcomError
from sparcom_server.errors import STATUS, error_response, status_of


def subclasses(kind: type[SparcomError]) -> Iterator[type[SparcomError]]:
    """Yield a class and all its subclasses in the project."""
    if kind.__module__ in {"sparcom_data.errors", "sparcom_server.errors"}:
        yield kind
        for below in kind.__subclasses__():
            yield from subclasses(below)


@pytest.mark.parametrize("kind", sorted(set(subclasses(SparcomError)), key=lambda kind: kind.__name__))
def test_every_error_has_a_status(kind: type[SparcomError]) -> None:
    """Each class of the project is itself in the table, so that a new class needs a decision."""
    assert kind in STATUS
    assert 400 <= STATUS[kind] < 600


def test_a_class_below_one_of_the_table_has_its_status() -> None:
    """The nearest class in the table decides."""

    class SpecialError(InvalidInputError):
        pass

    assert status_of(SpecialError(["x"])) == 422
    assert error_response(SpecialError(["x", "y"])).body == (
        b'{"type":"urn:sparcom:problem:special","title":"Special","status":422,"detail":"x\\ny","problems":["x","y"]}'
    )
