"""The baseline of a gate: one run per model and protocol, in folders like those of results.

It keeps `run.json`, `examples.csv` and `draws.csv` of a run unchanged.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.runs import Key, Run, read_runs, threat
from robustbench_kd.core.errors import NotComparableError, RecordError
from robustbench_kd.core.files import read_bytes, require_own_folder, write_bytes
from robustbench_kd.core.rundir import (
    ATTACKS,
    DRAWS,
    EXAMPLES,
    FINDINGS,
    RECORD,
    run_folder,
)


def read_baseline(folder: Path) -> dict[Key, Run]:
    """Reads a baseline, which may be none yet.

    Raises `RecordError` for a damaged run, and like `one_each`.
    """
    runs, problems = read_runs(folder)
    if problems:
        raise RecordError(f"the baseline is damaged: {problems[0]}")
    return one_each(runs, folder)


def one_each(runs: Iterable[Run], folder: Path) -> dict[Key, Run]:
    """Returns runs by model and protocol; raises `NotComparableError` where two share them."""
    found: dict[Key, Run] = {}
    for run in runs:
        if run.key in found:
            raise NotComparableError(
                f"expected one run of '{run.model}' ({title(run.identity)}) in '{folder}', got "
                f"'{found[run.key].folder.name}' and '{run.folder.name}': delete one of them"
            )
        found[run.key] = run
    return found


def update(folder: Path, known: dict[Key, Run], runs: dict[Key, Run]) -> list[str]:
    """Writes runs into a baseline and removes those they replace; returns what it did.

    Each file is written whole or not at all. A new run is complete before the old one goes. Raises
    `RecordError` where a file cannot be written.
    """
    return [_put(folder, run, known.get(key)) for key, run in runs.items()]


def _put(folder: Path, run: Run, old: Run | None) -> str:
    place = run_folder(folder, run.model, run.folder.name)
    require_own_folder(place)
    for name in (EXAMPLES, *((DRAWS,) if run.randomized else ()), RECORD):
        write_bytes(place / name, read_bytes(run.folder / name))
    if old is not None and old.folder.resolve() != place.resolve():
        _remove(old.folder)
    name = f"{run.model} {threat(run.identity)}"
    if old is None:
        return f"{name}: added as '{place}'"
    if old.folder.name == place.name:
        return f"{name}: written anew"
    return f"{name}: '{place}' replaces '{old.folder.name}'"


def _remove(folder: Path) -> None:
    """Deletes the files of a run and the folders left empty.

    `run.json` goes first: it vouches for the others.
    """
    require_own_folder(folder)
    for name in (RECORD, EXAMPLES, DRAWS, ATTACKS, FINDINGS):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()
