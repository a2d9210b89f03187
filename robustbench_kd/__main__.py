"""Runs the command line: `python -m robustbench_kd`."""

from robustbench_kd.cli import main

if __name__ == "__main__":
    main()
