"""What stored runs say of a teacher and its student: robustness retained, per parameter and per operation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record
from robustbench_kd.similarity.bootstrap import Series

_MILLION, _BILLION = 1e6, 1e9


@dataclass(frozen=True, eq=False)
class Protocol:
    """A question that teacher and student were both asked: its name, and who stayed robust, `(n,)` by network's place."""

    name: str
    robust: Mapping[int, Tensor]


def protocols(results: Path, networks: Sequence[Subject]) -> list[Protocol]:
    """Returns the protocols under which teacher (place 0) and student (1) have complete runs, and who else has one.

    Runs are found by the weights' sha256, the newest of several. Folders that cannot be read are
    passed over. Of a run that was randomized nothing is said.
    """
    found: dict[str, dict[int, tuple[RunRecord, Path]]] = {}
    for record, folder in _complete(results):
        for place, subject in enumerate(networks):
            identity = record.identity
            if (identity.checkpoint_sha256, identity.code_sha256) == (
                subject.checkpoint_sha256,
                subject.code_sha256,
            ):
                found.setdefault(record.protocol_hash, {})[place] = (record, folder)
    whole = [runs for _, runs in sorted(found.items()) if {0, 1} <= runs.keys()]
    return sorted((_protocol(runs) for runs in whole), key=lambda one: one.name)


def series(protocol: Protocol, parameters: Sequence[int], flops: Sequence[int]) -> list[Series]:
    """Returns robust accuracy, also per million parameters and per billion operations, and the share of the teacher's."""
    teacher = protocol.robust[0]
    made: list[Series] = []
    for place, robust in sorted(protocol.robust.items()):
        whole = torch.ones_like(robust)
        made.append(Series("robust accuracy", place, robust, whole, share=True))
        if place:
            made.append(Series("robustness retained", place, robust, teacher))
        for unit, size in (
            ("million parameters", parameters[place] / _MILLION),
            ("GFLOP", flops[place] / _BILLION),
        ):
            if size > 0:
                made.append(Series(f"robust accuracy per {unit}", place, robust / size, whole))
    return made


def _complete(results: Path) -> Iterator[tuple[RunRecord, Path]]:
    """Yields complete records with their folders, the newest last."""
    known = []
    for path in sorted(results.glob(f"*/*/{RECORD}")):
        try:
            record = read_record(path)
        except RecordError:
            continue
        if record.status == "complete" and record.robust_draws is None:
            known.append((record, path.parent))
    yield from sorted(known, key=lambda pair: pair[0].environment.get("created", ""))


def _protocol(runs: Mapping[int, tuple[RunRecord, Path]]) -> Protocol:
    identity = runs[0][0].identity
    rows = {
        place: {row.index: row.robust for row in read_examples(folder / EXAMPLES)}
        for place, (_, folder) in runs.items()
    }
    shared = sorted(set.intersection(*(set(row) for row in rows.values())))
    robust = {
        place: torch.tensor([float(row[index]) for index in shared], dtype=torch.float64)
        for place, row in rows.items()
    }
    name = f"{identity.norm} {identity.eps_text}, {identity.suite} by {identity.engine}, {len(shared)} examples"
    return Protocol(name, robust)
