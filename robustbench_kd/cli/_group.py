"""The `rkd` group: lists the command files without importing them, and turns every error into one line."""

import sys
from importlib import import_module
from typing import Any

import click

from robustbench_kd.core.errors import RkdError
from robustbench_kd.core.plugins import components

_KIND = "cli"
_INTERRUPTED = 130


class Commands(click.Group):
    """Commands by file name; a file is imported only when its command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Returns the names of the command files."""
        return sorted(components(_KIND))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Imports the file of a command."""
        known = components(_KIND)
        if cmd_name not in known:
            return None
        command: click.Command = import_module(f"robustbench_kd.cli.{known[cmd_name].stem}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """Writes the list of commands from the first line of each file."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, component.summary) for name, component in sorted(components(_KIND).items())])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command; exit codes are those of the error tree, 130 for an interruption."""
        try:
            return super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except RkdError as error:
            click.echo(f"{click.style('Error:', fg='red', bold=True)} {error}", err=True)
            sys.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted; what was decided is kept, run the same command to resume.", err=True)
            sys.exit(_INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="robustbench-kd", prog_name="rkd")
def main() -> None:
    """Measures the robust accuracy of image classifiers, and says how far to trust the number.

    \b
    Example:
      rkd eval checkpoints/digits-teacher.toml
      rkd leaderboard results
    """
