"""Runs a piece of a test in a process with little memory and time, which an attack may use up."""

import os
import resource
import select

from robustbench_kd.core.errors import RkdError

MEMORY = 2 * 2**30  # bytes more than the process has
SECONDS = 20


def refusal(call, *arguments, **named):
    """Returns the line with which a call is refused; anything else fails the test."""
    said = ending(call, *arguments, **named)
    assert said.startswith("refused: "), said
    return said.removeprefix("refused: ")


def ending(call, *arguments, **named):
    """Returns how a call ends: `done`, or `refused:` and the line; anything else is a fault."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(send, _outcome(call, arguments, named)[:4000].encode("utf-8", "replace"))
        os._exit(0)
    os.close(send)
    ready, _, _ = select.select([receive], [], [], SECONDS)
    said = os.read(receive, 2**16).decode() if ready else f"took more than {SECONDS} s"
    os.close(receive)
    if not ready:
        os.kill(child, 9)
    os.waitpid(child, 0)
    return said


def _outcome(call, arguments, named):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, resource.RLIM_INFINITY))
    try:
        call(*arguments, **named)
        said = "done"
    except RkdError as error:
        said = f"refused: {error}" if error.exit_code == 2 else f"exit code {error.exit_code}"
    except BaseException as error:  # noqa: BLE001  # the parent judges it
        said = f"{type(error).__name__}: {error}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return f"took {grown:,} bytes, {said}" if grown > MEMORY else said
