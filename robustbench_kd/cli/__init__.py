"""Fifth floor: the command line, one command per file; only it imports click and rich."""

from robustbench_kd.cli._group import main

__all__ = ["main"]
