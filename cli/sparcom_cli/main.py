"""Entry point of `sparcom`: load the subcommand, and turn its errors into one line and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass

import click

import sparcom_extractor  # noqa: F401  (imported first: it silences the import of vLLM, also in vLLM's own processes)
from sparcom_data.errors import SparcomError


@dataclass(frozen=True, slots=True)
class _Entry:
    """The line in --help and the extras of a command. The command NAME is sparcom_cliFOLDER.NAME.NAME."""

    help: str
    extras: tuple[str, ...] = ()
    folder: str = ""


INTERRUPTED = 130

ENGINE = "extractor-cpu|extractor-gpu"
REMOTE = ("client",), ".remote"
COMMANDS = {
    "serve": _Entry("Serve models over REST.", ("server", ENGINE)),
    "extract": _Entry("Run instructions offline into an archive.", (ENGINE,)),
    "submit": _Entry("Send instructions to a server.", *REMOTE),
    "jobs": _Entry("List the extractions of a server.", *REMOTE),
    "cancel": _Entry("Cancel extractions on a server.", *REMOTE),
    "results": _Entry("Download the results of an extraction.", *REMOTE),
    "delete": _Entry("Delete an archive from a server.", *REMOTE),
    "keys": _Entry("Create, list and revoke API keys.", ("server", "client")),
    "analyze": _Entry("Compute metrics, tables, figures and a report.", ("analysis",)),
    "verify": _Entry("Verify archives.", ("verify",)),
    "dataset": _Entry("Build, check and annotate instruction files.", ("dataset",)),
    "model": _Entry("Fetch or make models.", ("models", ENGINE)),
    "selftest": _Entry("Check capture on this machine.", (ENGINE,)),
    "demo": _Entry(
        "Run a small model from instructions to report.",
        ("server", "client", "analysis", "verify", "models", "dataset", ENGINE),
    ),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"sparcom_cli{COMMANDS[cmd_name].folder}.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101  (a fault of COMMANDS, not of the user)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120},
)
@click.version_option(package_name="sparcom", prog_name="sparcom")
def cli() -> None:
    """Record which feed-forward neurons fire and which experts a router picks, for every token."""


def _missing_extra(error: ModuleNotFoundError, arguments: list[str]) -> str | None:
    """Return the message for a missing package of an extra; None if no extra provides it."""
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
    """Run the command line. Exit status: 0 done, 1 explained error, 2 wrong usage, 130 interrupted."""
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
