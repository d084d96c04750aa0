"""A spinner on standard error while a command waits; one plain line where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Show `message` while the block runs."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(message):
            yield
    else:
        click.echo(f"{message} ...", err=True)
        yield
