"""What workers may be asked to do in a test.

It loads no torch, so that their processes start at once.
"""

import os
import signal
import time
from functools import partial
from pathlib import Path

from robustbench_kd.core.errors import ModelError
from robustbench_kd.engine.run.progress import Progress


def moment(stage, robust, left):
    """A moment of a shard of ten examples."""
    return Progress(
        stage, decided=1, total=4, robust=robust, examples=10, passes=100, passes_left=left
    )


def _noting(folder, shard, observer):
    observer(
        moment("square" if shard.number == 1 else "apgd-ce", robust=shard.number, left=shard.number)
    )
    (folder / str(shard.number)).touch()


def _dying(folder, deaths, shard, _observer):
    """Dies in so many processes of the second shard, one after the other."""
    attempt = len(list(folder.glob(f"{shard.number}-*")))
    (folder / f"{shard.number}-{attempt}").touch()
    if shard.number == 2 and attempt < deaths:
        os.kill(os.getpid(), signal.SIGKILL)


def _failing(folder, shard, _observer):
    if shard.number == 2:
        raise ModelError("the model cannot take images")
    # Renamed, because this process may be killed while it writes.
    (folder / "pid.part").write_text(str(os.getpid()))
    (folder / "pid.part").rename(folder / "pid")
    time.sleep(60)


def _unforeseen(_folder, shard, _observer):
    if shard.number == 2:
        raise KeyError("lost")


def unforeseen(folder: Path):
    return partial(_unforeseen, folder)


def noting(folder: Path):
    return partial(_noting, folder)


def dying(folder: Path, *, deaths: int):
    return partial(_dying, folder, deaths)


def failing(folder: Path):
    return partial(_failing, folder)
