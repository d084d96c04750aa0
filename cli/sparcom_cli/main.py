"""Entry point of `sparcom`: finds the subcommand, loads it, and turns our errors into one line and an exit status.

Knows the names of the commands and the extra that each needs; knows nothing of what they do.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass

import click

import sparcom_extractor  # noqa: F401  (vLLM's processes import this module first: it quiets vLLM's import)
from sparcom_data.errors import SparcomError


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a command lives (`module:attribute`), its line in --help, and the extras that it needs."""

    target: str
    help: str
    extras: tuple[str, ...] = ()


INTERRUPTED = 130

COMMANDS = {
    "serve": _Entry("sparcom_cli.serve:serve", "Serve models over REST.", ("server", "extractor-cpu|extractor-gpu")),
    "extract": _Entry("sparcom_cli.extract:extract", "Run instructions offline.", ("extractor-cpu|extractor-gpu",)),
    "submit": _Entry("sparcom_cli.submit:submit", "Send instructions to a server.", ("client",)),
    "delete": _Entry("sparcom_cli.delete:delete", "Delete an archive from a server.", ("client",)),
    "analyze": _Entry("sparcom_cli.analyze:analyze", "Compute metrics, tables, figures, report.", ("analysis",)),
    "verify": _Entry("sparcom_cli.verify:verify", "Check that an archive is right.", ("verify",)),
    "dataset": _Entry("sparcom_cli.dataset:dataset", "Build, check and annotate instructions.", ("dataset",)),
    "model": _Entry("sparcom_cli.model:model", "Fetch or make models.", ("models", "extractor-cpu|extractor-gpu")),
    "selftest": _Entry(
        "sparcom_cli.selftest:selftest", "Check and time capture on this machine.", ("extractor-cpu|extractor-gpu",)
    ),
    "demo": _Entry(
        "sparcom_cli.demo:demo",
        "Run a small real model from start to report.",
        ("server", "client", "analysis", "verify", "models", "dataset", "extractor-cpu|extractor-gpu"),
    ),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  (a slip in the table, not a user's error)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sparcom", prog_name="sparcom")
def cli() -> None:
    """Which feed-forward neurons fire, at every token of thousands of instructions."""


def _missing_extra(error: ModuleNotFoundError, arguments: list[str]) -> str | None:
    """The sentence for a package that an extra would bring, or None for a fault of our own."""
    name = next((argument for argument in arguments if argument in COMMANDS), None)
    missing = (error.name or "").split(".")[0]
    if name is None or not missing or missing.startswith("sparcom_") or not COMMANDS[name].extras:
        return None
    from sparcom_data.extras import install_command

    extras = COMMANDS[name].extras
    command = install_command(",".join(extra.split("|")[0] for extra in extras))
    return (
        f"`sparcom {name}` needs the package {missing!r}, which is not installed. "
        f"Install the {'extras' if len(extras) > 1 else 'extra'} {', '.join(extras).replace('|', ' or ')}: {command}"
    )


def main() -> None:
    """Run the command line; exit status 0 done, 1 an error that was explained, 2 wrong usage, 130 interrupted."""
    try:
        status = cli.main(prog_name="sparcom", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except SparcomError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        explanation = _missing_extra(error, sys.argv[1:])
        if explanation is None or os.environ.get("SPARCOM_TRACEBACK"):
            raise
        click.echo(f"error: {explanation}", err=True)
        sys.exit(1)
