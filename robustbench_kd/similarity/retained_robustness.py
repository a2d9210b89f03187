"""Robustness that a student retains of its teacher's, from stored runs.

It is also given per parameter and per operation.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from robustbench_kd.checkpoints.subject import Subject
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record
from robustbench_kd.similarity.bootstrap import Series

_MILLION, _BILLION = 1e6, 1e9
_TEACHER, _STUDENT = 0, 1

_Run: TypeAlias = tuple[RunRecord, Path]  # a record and its folder


@dataclass(frozen=True, eq=False)
class Protocol:
    """An evaluation of both teacher and student, and the examples that survived it.

    `robust` `(n,)` is 1 for a survivor and 0 for any other, by the index of the network.
    """

    name: str
    robust: Mapping[int, Tensor]


def protocols(results: Path, networks: Sequence[Subject]) -> list[Protocol]:
    """Returns the protocols under which both teacher and student have complete runs.

    The teacher is the first network, the student the second; others may have a run too. Runs are
    found by the weights' sha256; the newest one counts. Folders that cannot be read and randomized
    runs are skipped.
    """
    by_protocol: dict[str, dict[int, _Run]] = {}
    for record, folder in _complete(results):
        for index, subject in enumerate(networks):
            if _is_of(record, subject):
                runs = by_protocol.setdefault(record.protocol_hash, {})
                runs[index] = (record, folder)

    shared = []
    for _, runs in sorted(by_protocol.items()):
        if {_TEACHER, _STUDENT} <= runs.keys():
            shared.append(_protocol(runs))
    return sorted(shared, key=lambda protocol: protocol.name)


def series(protocol: Protocol, parameters: Sequence[int], flops: Sequence[int]) -> list[Series]:
    """Returns the robust accuracy, also per size of the network, and the fraction retained.

    Sizes are in million parameters and billion operations.
    """
    teacher = protocol.robust[_TEACHER]
    made: list[Series] = []
    for index, robust in sorted(protocol.robust.items()):
        ones = torch.ones_like(robust)
        made.append(Series("robust accuracy", index, robust, ones, is_fraction=True))
        if index != _TEACHER:
            made.append(Series("robustness retained", index, robust, teacher))
        sizes = {
            "million parameters": parameters[index] / _MILLION,
            "GFLOP": flops[index] / _BILLION,
        }
        for unit, size in sizes.items():
            if size > 0:
                made.append(Series(f"robust accuracy per {unit}", index, robust / size, ones))
    return made


def _complete(results: Path) -> Iterator[_Run]:
    """Yields complete runs that are not randomized, the newest last."""
    runs = []
    for path in sorted(results.glob(f"*/*/{RECORD}")):
        try:
            record = read_record(path)
        except RecordError:
            continue
        if record.status == "complete" and record.robust_draws is None:
            runs.append((record, path.parent))
    yield from sorted(runs, key=lambda run: run[0].environment.get("created", ""))


def _is_of(record: RunRecord, subject: Subject) -> bool:
    """Tells whether a record is of the weights and the code of a network."""
    identity = record.identity
    return (
        identity.checkpoint_sha256 == subject.checkpoint_sha256
        and identity.code_sha256 == subject.code_sha256
    )


def _protocol(runs: Mapping[int, _Run]) -> Protocol:
    """Returns the protocol of runs by the index of the network, over the examples of all runs."""
    robust_by_id = {}
    for index, (_, folder) in runs.items():
        rows = read_examples(folder / EXAMPLES)
        robust_by_id[index] = {row.index: row.robust for row in rows}

    shared = set(robust_by_id[_TEACHER])
    for robust in robust_by_id.values():
        shared &= robust.keys()
    examples = sorted(shared)
    robust_by_network = {}
    for index, robust in robust_by_id.items():
        values = [float(robust[example]) for example in examples]
        robust_by_network[index] = torch.tensor(values, dtype=torch.float64)

    identity = runs[_TEACHER][0].identity
    name = (
        f"{identity.norm} {identity.eps_text}, {identity.suite} by {identity.engine}, "
        f"{len(examples)} examples"
    )
    return Protocol(name, robust_by_network)
