"""Records of every schema version that was ever written keep loading."""

import shutil
from pathlib import Path
from typing import get_args

import pytest

from robustbench_kd.analysis.runs import read_run
from robustbench_kd.core.records import RunRecord

STORED = sorted(Path(__file__).parent.parent.glob("golden/schema-*"))


def test_there_is_a_stored_record_of_every_version():
    versions = get_args(RunRecord.model_fields["schema_version"].annotation)
    assert [folder.name for folder in STORED] == [f"schema-{version}" for version in versions]


@pytest.mark.parametrize("stored", STORED, ids=lambda folder: folder.name)
def test_a_stored_record_loads_and_keeps_its_names(stored, tmp_path):
    run = read_run(shutil.copytree(stored, tmp_path / "run"))
    assert run.identity.run_id() == run.record.run_id
    assert run.identity.protocol_hash() == run.record.protocol_hash
    assert len(run.examples) == run.record.clean.n
    assert run.record.robust.value < run.record.clean.value
