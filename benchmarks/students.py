"""Distillation methods on one teacher: accuracies and gradient cosines over seeds, and what is significant.

Reads the shipped cards `digits-METHOD-SEED` and their finished runs in `results/`; measures the
cosine of input gradients with the first teacher. Run it by `make students-table`; it writes
build/students.md. A method differs from another one significantly where the paired tests of all
seeds say so, each on the same test images, after Holm's correction for all methods.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import torch

from robustbench_kd.analysis.paired import ALPHA, Change, change
from robustbench_kd.checkpoints.subject import Choices, Subject
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record
from robustbench_kd.core.statistics import holm
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.similarity.compare import STUDENT, Comparison, compare

ROOT = Path(__file__).parent.parent
TEACHER = "digits-teacher"
THREAT = "linf:0.2"
AGAINST = "rslad"
ADDED = "-igdm"
HEADINGS = (
    "method",
    "seeds",
    "clean %",
    "robust %",
    f"against {AGAINST}, points",
    "significant",
    "gradient cosine",
)


@dataclass(frozen=True)
class Student:
    """One shipped student with its finished run."""

    method: str
    seed: int
    record: RunRecord
    robust: dict[int, bool]


def students() -> dict[str, list[Student]]:
    """Returns the students of each method, by seed."""
    found: defaultdict[str, list[Student]] = defaultdict(list)
    for card in sorted((ROOT / "checkpoints").glob("digits-*.toml")):
        method, _, seed = card.stem.removeprefix("digits-").rpartition("-")
        runs = [
            path
            for path in (ROOT / "results" / card.stem).glob(f"*/{RECORD}")
            if asked(read_record(path))
        ]
        if method and seed.isdecimal() and runs:
            robust = {row.index: row.robust for row in read_examples(runs[0].parent / EXAMPLES)}
            found[method].append(Student(method, int(seed), read_record(runs[0]), robust))
    return dict(found)


def asked(record: RunRecord) -> bool:
    identity = record.identity
    return f"{identity.norm}:{identity.eps_text}" == THREAT and identity.suite == "standard"


@cache
def subject(name: str) -> Subject:
    (target,) = describe(str(ROOT / "checkpoints" / f"{name}.toml"), Choices())
    return load(target, classes=10, shape=(1, 8, 8))


def cosine(student: Student) -> float:
    """Returns the mean cosine of input gradients with the teacher's."""
    return measured(f"digits-{student.method}-{student.seed}")


@cache
def measured(name: str) -> float:
    networks = subject(TEACHER), subject(name)
    series = compare(
        Comparison(networks, open_dataset("digits"), Threat.parse(THREAT), torch.device("cpu"))
    )
    (found,) = [
        one for one in series if one.measure == "gradient cosine" and one.network == STUDENT
    ]
    return float(found.values.mean())


def changes(found: list[Student], others: list[Student]) -> list[Change]:
    """Returns the paired change of each seed from one method to another."""
    by_seed = {one.seed: one for one in others}
    return [
        change("robust", by_seed[one.seed].robust, one.robust)
        for one in found
        if one.seed in by_seed
    ]


def agreed(pairs: list[Change]) -> float:
    """Returns the largest p-value of all seeds, 1 where they disagree about the direction."""
    signs = {pair.difference > 0 for pair in pairs}
    return max(pair.p for pair in pairs) if len(signs) == 1 else 1.0


def spread(values: list[float], shown: Callable[[float], str]) -> str:
    return f"{shown(mean(values))} ({shown(min(values))} to {shown(max(values))})"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(known: dict[str, list[Student]]) -> Iterator[str]:
    pairs = {
        method: changes(found, known[AGAINST])
        for method, found in known.items()
        if method != AGAINST
    }
    adjusted = dict(zip(pairs, holm([agreed(each) for each in pairs.values()]), strict=True))
    yield f"| {' | '.join(HEADINGS)} |"
    yield "| --- | --: | --: | --: | --: | --- | --: |"
    ranked = sorted(
        known.items(), key=lambda pair: -mean(accuracy(one, "robust") for one in pair[1])
    )
    for method, found in ranked:
        cells = [
            method,
            str(len(found)),
            *(
                spread([accuracy(one, name) for one in found], percent)
                for name in ("clean", "robust")
            ),
        ]
        if method in pairs:
            cells.append(f"{100 * mean(pair.difference for pair in pairs[method]):+.1f}")
            cells.append("yes" if adjusted[method] < ALPHA else "no")
        else:
            cells += ["", ""]
        cells.append(spread([cosine(one) for one in found], "{:.3f}".format))
        yield f"| {' | '.join(cells)} |"


def additions(known: dict[str, list[Student]]) -> Iterator[str]:
    """Yields what IGDM changes in each of its hosts."""
    hosts = [method for method in known if f"{method}{ADDED}" in known]
    pairs = {host: changes(known[f"{host}{ADDED}"], known[host]) for host in hosts}
    adjusted = holm([agreed(each) for each in pairs.values()])
    yield "| host | robust, points | significant | gradient cosine |"
    yield "| --- | --: | --- | --: |"
    for host, p in zip(hosts, adjusted, strict=True):
        nearer = mean(map(cosine, known[f"{host}{ADDED}"])) - mean(map(cosine, known[host]))
        lost = 100 * mean(pair.difference for pair in pairs[host])
        yield f"| {host} | {lost:+.1f} | {'yes' if p < ALPHA else 'no'} | {nearer:+.3f} |"


def accuracy(student: Student, name: str) -> float:
    found = getattr(student.record, name)
    return float(found.value)


def main() -> None:
    torch.set_num_threads(1)
    known = students()
    if AGAINST not in known:
        sys.exit(
            f"no finished runs of {AGAINST} at {THREAT} in results/: 'make students' evaluates them"
        )
    lines = [*table(known), "", *additions(known)]
    path = ROOT / "build" / "students.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
