"""The `rkd` group: finds command files without importing them, turns every error into a line."""

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from robustbench_kd.cli._failures import own_error
from robustbench_kd.cli._signals import exit_code, stopping
from robustbench_kd.core.errors import MissingError, unknown_name
from robustbench_kd.core.plugins import components
from robustbench_kd.core.text import printable, shortened

# Threads that spin while they wait slow each other down on shared cores: an evaluation beside two
# other processes on two cores took over 60 s instead of 18 s. This must be set before torch starts
# its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_LONG, _LONGEST = 300, 1000  # characters of an error
_KIND = "cli"


class Commands(click.Group):
    """Commands by file name; a file is imported only when its command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Returns the names of the command files."""
        return sorted(components(_KIND))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the file of a command.

        Raises `UsageError` with the nearest name, but not while a shell completes a name.
        """
        known = components(_KIND)
        if cmd_name not in known:
            if ctx.resilient_parsing or cmd_name.startswith("-"):
                return None
            raise unknown_name("command", cmd_name, known)
        command: click.Command = import_module(f"robustbench_kd.cli.{known[cmd_name].stem}").command
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Writes the list of commands from the first line of each file."""
        commands = sorted(components(_KIND).items())
        with formatter.section("Commands"):
            formatter.write_dl([(name, component.summary) for name, component in commands])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command; exit codes are those of the error tree, and 128 plus a signal."""
        try:
            with stopping():
                return super().main(*args, **{**extra, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.UsageError as error:
            where = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
            _fail(error.format_message() + where, error.exit_code)
        except (KeyboardInterrupt, click.Abort) as error:
            # Python started by -m remembers an interrupt inside exec, which imports use, and would
            # end by the signal: this makes it forget.
            exec("")  # noqa: S102
            click.echo(
                "Interrupted; an evaluation keeps what it decided: "
                "run the same command to resume it.",
                err=True,
            )
            sys.exit(exit_code(error))
        except (Exception, SystemExit) as error:  # noqa: BLE001  # exit code 1 is the gate's alone
            if isinstance(error, OSError):
                _leave_output_alone()
            own = own_error(error)
            # What a person has to say yet is named whole.
            most = _LONGEST if isinstance(own, MissingError) else _LONG
            _fail(str(own), own.exit_code, most=most)


def _fail(message: str, code: int, *, most: int = _LONG) -> NoReturn:
    """Writes one line to standard error, whatever names the message holds, and exits."""
    text = shortened(printable(" ".join(message.split())), most)
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {text}", err=True)
    sys.exit(code)


def _leave_output_alone() -> None:
    """Points standard output nowhere: at exit Python would write the rest of it, and fail again."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="robustbench-kd", prog_name="rkd")
def main() -> None:
    """Measures the robust accuracy of image classifiers, and says how far to trust the number.

    \b
    Example:
      rkd eval checkpoints/digits-teacher.toml
      rkd leaderboard results

    \b
    Exit codes:
      0 done, 1 the gate failed, 2 usage or a bad model or data set,
      3 unreliable under --strict, 4 incomplete or not comparable,
      70 an error of the program itself, 130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP
    """
