"""Values of options: metadata and durations."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

from sparcom_cli.shared.options import Decorator


def metadata_option(text: str) -> Decorator:
    """Return the repeatable option --metadata; its value is {key: value}."""
    return click.option(
        "--metadata",
        multiple=True,
        metavar="KEY=VALUE",
        callback=lambda _context, _parameter, values: dict(map(_split, values)),
        help=f"{text} Repeatable.",
    )


def _split(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise click.BadParameter(f"it must be KEY=VALUE; it is {text!r}")
    return key, value


class Duration(click.ParamType[Any]):
    """Hours or days, such as 12h or 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        found = re.fullmatch(r"(\d+)([hd])", value)
        if not found:
            self.fail(f"it must be a number of hours or days, such as 12h or 7d; it is {value!r}", param, ctx)
        return timedelta(**{{"h": "hours", "d": "days"}[found[2]]: int(found[1])})
