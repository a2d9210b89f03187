"""Stops a process at any write, fsync, rename or removal of a file, as `kill -9` would do.

What was written into a buffer and not flushed is lost; a line can be torn in half.
"""

import json
import os
from collections import Counter
from pathlib import Path

from robustbench_kd.core.rundir import ATTACKS, RECORD
from robustbench_kd.engine.run.run import RESUMED

KILLED = 77
_COSTS = ("forwards", "backwards", "work")
_TIMES = ("seconds", "created", "model_seconds")


class _Torn:
    """A file that stops its process in the middle of a write."""

    def __init__(self, file, reached):
        self._file, self._reached = file, reached

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def __iter__(self):
        return iter(self._file)

    def write(self, content):
        if self._reached():
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            os._exit(KILLED)
        return self._file.write(content)


def points(run):
    """Returns how many moments there are at which a run can be stopped."""
    reader, writer = os.pipe()
    code = _forked(run, 0, writer)
    os.close(writer)
    with os.fdopen(reader) as told:
        count = int(told.read())
    assert code == 0
    return count


def stopped(run, point):
    """Stops a run at a moment, counted from 1; it must come to it."""
    assert _forked(run, point) == KILLED


def _forked(run, point, writer=None):
    child = os.fork()
    if child == 0:
        code = 70
        try:
            count = _patched(point)
            run()
            if writer is not None:
                os.write(writer, str(count["points"]).encode())
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _patched(point):
    """Lets this process end at a moment; for good, because it is a child of the test."""
    count = Counter()

    def reached():
        count["points"] += 1
        return count["points"] == point

    def before(operation):
        def call(*arguments, **options):
            if reached():
                os._exit(KILLED)
            return operation(*arguments, **options)

        return call

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, before(getattr(os, name)))
    opened = os.fdopen

    def fdopen(descriptor, mode="r", *rest, **options):
        file = opened(descriptor, mode, *rest, **options)
        return _Torn(file, reached) if mode in {"wb", "a+b"} else file

    os.fdopen = fdopen
    return count


def kept(results):
    """Returns what all files under a folder say, without times and without the mark of a resumed
    run."""
    found = {}
    for path in sorted(Path(results).rglob("*")):
        name = str(path.relative_to(results))
        if path.name == RECORD:
            found[name] = _stripped(json.loads(path.read_text()), {*_TIMES, RESUMED})
        elif path.name == ATTACKS:
            found[name] = [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def marked(results):
    """Returns whether a record says that its costs are not exact."""
    return any(f'"{RESUMED}"' in path.read_text() for path in Path(results).rglob(RECORD))


def _stripped(value, without):
    if isinstance(value, dict):
        return {key: _stripped(one, without) for key, one in value.items() if key not in without}
    if isinstance(value, list):
        return [_stripped(one, without) for one in value]
    return value


def without_costs(found):
    """Returns what files say besides costs."""
    stripped = {}
    for name, content in found.items():
        stripped[name] = content
        if isinstance(content, dict):
            stripped[name] = _stripped(content, {*_COSTS})
        elif isinstance(content, list):
            stripped[name] = [line.rsplit(",", 2)[0] for line in content]
    return stripped
