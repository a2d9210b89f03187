"""Workers are watched.

Those that die are started again, errors end all, and nobody is left behind.
"""

import os
import signal

import pytest
from working import dying, failing, noting, unforeseen

from robustbench_kd.core.errors import IncompleteError, InternalError, ModelError, UsageError
from robustbench_kd.core.shards import shards
from robustbench_kd.engine.workers import on_ray as module
from robustbench_kd.engine.workers.local import in_processes
from robustbench_kd.engine.workers.on_ray import on_ray


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_shard_is_worked_on_and_the_progress_is_that_of_all(tmp_path):
    seen = []
    in_processes(noting(tmp_path), shards(3), observer=seen.append)
    assert names(tmp_path) == ["1", "2", "3"]
    assert (seen[-1].robust, seen[-1].examples, seen[-1].decided, seen[-1].total) == (6, 30, 3, 12)
    assert (seen[-1].stage, seen[-1].passes, seen[-1].passes_left) == ("apgd-ce", 300, 6)


def test_a_process_that_dies_is_started_again(tmp_path):
    in_processes(dying(tmp_path, deaths=2), shards(2))
    assert names(tmp_path) == ["1-0", "2-0", "2-1", "2-2"]


def test_a_process_that_dies_again_and_again_is_given_up(tmp_path):
    with pytest.raises(
        IncompleteError, match="shard 2/2 died 4 times, the last time with exit code -9"
    ):
        in_processes(dying(tmp_path, deaths=99), shards(2))


def test_an_error_of_one_is_raised_and_ends_the_others(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ModelError, match="cannot take images"):
        in_processes(failing(tmp_path), shards(2))
    pid = tmp_path / "pid"
    assert not pid.exists() or not _alive(int(pid.read_text()))
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_that_nobody_foresaw_is_sent_and_not_tried_again(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(InternalError, match=r"KeyError at working\.py:.*please report") as caught:
        in_processes(unforeseen(tmp_path), shards(2))
    assert "Traceback" not in capfd.readouterr().err
    assert caught.value.exit_code == 70
    assert len(list(tmp_path.glob("rkd-error-*.txt"))) == 1


def test_without_ray_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "import_module", _missing)
    with pytest.raises(UsageError, match=r"pip install 'robustbench-kd\[ray\]'"):
        on_ray(noting(tmp_path), shards(2), gpu=False, finished=print)


def _missing(name):
    raise ImportError(name)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
