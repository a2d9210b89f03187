"""Trackers are told the same of a run, each in its own way, and once."""

import re
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
from fake_boards import HOSTILE, adaptive, put, run
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.analysis.tracking import entry
from robustbench_kd.core.plugins import components

RECORD = adaptive("net", 0.8, 0.2)
RUN = RECORD.identity.run_id()  # as it is stored


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for record in (RECORD, run("other")):
        put(folder, record)
    return folder


def pretend(monkeypatch, name, **content):
    fake = ModuleType(name)
    vars(fake).update(content)
    monkeypatch.setitem(sys.modules, name, fake)


def test_an_entry_holds_the_identity_the_numbers_and_the_findings():
    told = entry(RECORD)
    assert (told.run_id, told.model) == (RECORD.run_id, "net")
    assert told.params["dataset"] == "digits"
    assert told.params["attacks"] == "apgd-ce apgd-t fab-t square"
    assert told.params["versions/torch"] == "2.10.0"
    assert told.params["verdict"] == "unreliable"
    assert (told.metrics["clean"], told.metrics["standard"], told.metrics["robust"]) == (
        0.9,
        0.8,
        0.2,
    )
    assert told.metrics["stages/apgd-ce/passes"] == 36_360
    assert told.metrics["passes"] == 536_760
    assert told.findings.startswith("- red: adaptive-gap: adaptive attacks lowered")
    assert entry(run()).findings == "none"


@given(st.text() | st.sampled_from(HOSTILE))
def test_names_hold_nothing_that_a_tracker_refuses(text):
    stages = [RECORD.stages[0].model_copy(update={"stage": text})]
    identity = RECORD.identity.model_copy(update={"versions": {text: text}})
    told = entry(RECORD.model_copy(update={"run_id": text, "stages": stages, "identity": identity}))
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", name) for name in [*told.params, *told.metrics])
    assert re.fullmatch(r"[A-Za-z0-9_-]*", told.run_id)


class Sessions:
    """A stand-in for the libraries of MLflow and W&B.

    `runs` holds what each run was told, `now` that of the open one.
    """

    def __init__(self):
        self.runs, self.now = {}, None

    @contextmanager
    def open(self, key):
        self.now = self.runs.setdefault(key, {})
        yield SimpleNamespace(info=SimpleNamespace(run_id=key), id=key, summary=self.now)
        self.now = None

    def tell(self, content):
        self.now.update(content)


def test_mlflow_gets_each_run_once(rkd, results, monkeypatch):
    sessions, uris = Sessions(), []

    def search(filter_string, output_format):
        wanted = re.fullmatch(r"tags.`rkd.run` = '(\w+)'", filter_string)[1]
        found = [key for key, told in sessions.runs.items() if told["rkd.run"] == wanted]
        return [SimpleNamespace(info=SimpleNamespace(run_id=key)) for key in found]

    pretend(
        monkeypatch,
        "mlflow",
        MlflowException=OSError,
        set_tracking_uri=uris.append,
        set_experiment=str,
        search_runs=search,
        start_run=lambda run_id, run_name: sessions.open(
            run_id or f"{run_name}-{len(sessions.runs)}"
        ),
        set_tag=lambda name, value: sessions.tell({name: value}),
        log_params=sessions.tell,
        log_metrics=sessions.tell,
        log_text=lambda text, name: sessions.tell({name: text}),
    )
    for _ in range(2):
        told = rkd("log", results, "--to", "mlflow:http://localhost:5000")
    assert told.code == 0
    assert uris == ["http://localhost:5000"] * 4
    assert sorted(sessions.runs) == ["net-0", "other-1"]
    assert sessions.runs["net-0"]["robust"] == 0.2
    assert "adaptive-gap" in sessions.runs["net-0"]["findings.md"]


def test_wandb_gets_a_run_by_its_id(rkd, results, monkeypatch):
    sessions, asked = Sessions(), []

    def init(**options):
        asked.append(options)
        return sessions.open(options["id"])

    pretend(monkeypatch, "wandb", Error=OSError, init=init)
    assert rkd("log", results, "--to", "wandb:robustness").code == 0
    (options,) = (one for one in asked if one["name"] == "net")
    assert (options["project"], options["resume"], options["id"]) == (
        "robustness",
        "allow",
        RUN,
    )
    assert options["config"]["norm"] == "linf"
    assert "adaptive-gap" in options["notes"]
    assert sessions.runs[RUN]["robust"] == 0.2


def test_a_tracker_that_refuses_is_one_clear_error(rkd, results, monkeypatch):
    def init(**_):
        raise OSError("no network")

    pretend(monkeypatch, "wandb", Error=OSError, init=init)
    assert "Weights & Biases refused run" in rkd("log", results, "--to", "wandb").error(2)


@pytest.mark.parametrize("name", sorted(components("analysis/trackers")))
def test_a_missing_library_is_named_with_how_to_install_it(rkd, results, monkeypatch, name):
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    assert f"pip install 'robustbench-kd[{name}]'" in rkd("log", results, "--to", name).error(2)


def test_an_unknown_tracker_is_an_error_with_the_nearest_name(rkd, results):
    assert "did you mean 'tensorboard'" in rkd("log", results, "--to", "tensorbord").error(2)


def test_tensorboard_reads_back_what_was_written(rkd, results, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):
        assert rkd("log", results, "--to", f"tensorboard:{tmp_path / 'tb'}").code == 0
    read = events.EventAccumulator(str(tmp_path / "tb" / "net" / RUN)).Reload()
    assert [scalar.value for scalar in read.Scalars("robust")] == [pytest.approx(0.2)]
    assert read.Scalars("stages/apgd-ce/passes")[0].value == 36_360
    (findings,) = read.Tensors("findings")
    assert b"adaptive-gap" in findings.tensor_proto.string_val[0]
