"""Distillation methods on one teacher: accuracies over seeds, and what is significant.

usage: students.py CHECKPOINTS RESULTS

Reads the cards `digits-METHOD-SEED` of one folder and their finished runs in another one, and
measures the cosine of input gradients with the teacher. Writes one row per student to
results/students.csv and prints the tables of docs/distillation.md; `make students-table` runs it. A
method differs significantly from another one where the paired tests of all seeds say so, each on
the same test images, after Holm's correction for all methods.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

import torch

from robustbench_kd.analysis.paired import ALPHA, Change, change
from robustbench_kd.checkpoints.subject import Choices, Subject
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.files import write_text
from robustbench_kd.core.records import Accuracy, Frozen, RunRecord
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record, to_csv
from robustbench_kd.core.statistics import holm
from robustbench_kd.core.text import percent
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.similarity.compare import STUDENT, Comparison, compare

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "results" / "students.csv"
TEACHER = ROOT / "checkpoints" / "digits-teacher.toml"
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


class Row(Frozen):
    """One student in results/students.csv; the change is the one from `AGAINST` with that seed."""

    method: str
    seed: int
    run: str
    n: int
    clean: float
    clean_ci_low: float
    clean_ci_high: float
    robust: float
    robust_ci_low: float
    robust_ci_high: float
    robust_change: float | None
    p: float | None
    gradient_cosine: float


@dataclass(frozen=True)
class Student:
    """A student with its finished run."""

    method: str
    seed: int
    card: Path
    record: RunRecord
    robust: dict[int, bool]

    @property
    def accuracies(self) -> tuple[Accuracy, Accuracy]:
        """The clean and the robust accuracy of the finished run."""
        if self.record.clean is None or self.record.robust is None:
            sys.exit(f"run {self.record.run_id} is unfinished")
        return self.record.clean, self.record.robust

    @cached_property
    def cosine(self) -> float:
        """The mean cosine of input gradients with those of the teacher."""
        networks = subject(TEACHER), subject(self.card)
        threat, device = Threat.parse(THREAT), torch.device("cpu")
        for series in compare(Comparison(networks, open_dataset("digits"), threat, device)):
            if series.measure == "gradient cosine" and series.network == STUDENT:
                return float(series.values.mean())
        raise LookupError("the comparison has no gradient cosine of the student")


Students = dict[str, list[Student]]


def students(checkpoints: Path, results: Path) -> Students:
    """Returns the students of each method, by seed."""
    found: defaultdict[str, list[Student]] = defaultdict(list)
    for card in sorted(checkpoints.glob("digits-*.toml")):
        method, _, seed = card.stem.removeprefix("digits-").rpartition("-")
        if not method or not seed.isdecimal():
            continue
        for path in sorted((results / card.stem).glob(f"*/{RECORD}")):
            record = read_record(path)
            if is_asked(record):
                rows = read_examples(path.parent / EXAMPLES)
                robust = {row.index: row.robust for row in rows}
                found[method].append(Student(method, int(seed), card, record, robust))
                break
    return dict(found)


def is_asked(record: RunRecord) -> bool:
    """Returns whether a run has the threat and the suite of the table."""
    identity = record.identity
    return f"{identity.norm}:{identity.eps_text}" == THREAT and identity.suite == "standard"


def subject(card: Path) -> Subject:
    """Loads the network of a card for the digits."""
    (target,) = describe(str(card), Choices())
    return load(target, classes=10, shape=(1, 8, 8))


def changes(found: Sequence[Student], others: Sequence[Student]) -> list[Change]:
    """Returns the paired change of each seed from one method to another."""
    by_seed = {one.seed: one for one in others}
    pairs = []
    for one in found:
        if one.seed in by_seed:
            pairs.append(change("robust", by_seed[one.seed].robust, one.robust))
    return pairs


def agreed(pairs: Sequence[Change]) -> float:
    """Returns the largest p-value of all seeds, 1 where they disagree about the direction."""
    signs = {pair.difference > 0 for pair in pairs}
    if len(signs) > 1:
        return 1.0
    return max(pair.p for pair in pairs)


def adjusted(pairs: dict[str, list[Change]]) -> dict[str, float]:
    """Returns the p-value of each method, adjusted for all of them."""
    return dict(zip(pairs, holm(list(map(agreed, pairs.values()))), strict=True))


def mean_points(pairs: Sequence[Change]) -> str:
    return f"{100 * mean(pair.difference for pair in pairs):+.1f}"


def spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    return f"{shown(mean(values))} ({shown(min(values))} to {shown(max(values))})"


def rows(known: Students) -> Iterator[Row]:
    """Yields the row of each student."""
    for found in known.values():
        for student in found:
            clean, robust = student.accuracies
            pairs = [] if student.method == AGAINST else changes([student], known[AGAINST])
            yield Row(
                method=student.method,
                seed=student.seed,
                run=student.record.run_id,
                n=robust.n,
                clean=clean.value,
                clean_ci_low=clean.ci_low,
                clean_ci_high=clean.ci_high,
                robust=robust.value,
                robust_ci_low=robust.ci_low,
                robust_ci_high=robust.ci_high,
                robust_change=pairs[0].difference if pairs else None,
                p=pairs[0].p if pairs else None,
                gradient_cosine=student.cosine,
            )


def table(known: Students) -> Iterator[str]:
    """Yields the lines of the table of all methods, the most robust one first."""
    pairs = {}
    for method, found in known.items():
        if method != AGAINST:
            pairs[method] = changes(found, known[AGAINST])
    p_values = adjusted(pairs)

    yield f"| {' | '.join(HEADINGS)} |"
    yield "| --- | --: | --: | --: | --: | --- | --: |"
    for method in sorted(known, key=lambda name: -mean_robust(known[name])):
        found = known[method]
        cells = [method, str(len(found))]
        for accuracies in zip(*(student.accuracies for student in found), strict=True):
            cells.append(spread([accuracy.value for accuracy in accuracies], percent))
        if method == AGAINST:
            cells += ["", ""]
        else:
            significant = p_values[method] < ALPHA
            cells += [mean_points(pairs[method]), "yes" if significant else "no"]
        cells.append(spread([student.cosine for student in found], "{:.3f}".format))
        yield f"| {' | '.join(cells)} |"


def mean_robust(found: Sequence[Student]) -> float:
    return mean(student.accuracies[1].value for student in found)


def mean_cosine(found: Sequence[Student]) -> float:
    return mean(student.cosine for student in found)


def additions(known: Students) -> Iterator[str]:
    """Yields the lines of the table of what IGDM changes in each of its hosts."""
    pairs = {}
    for host, found in known.items():
        if f"{host}{ADDED}" in known:
            pairs[host] = changes(known[f"{host}{ADDED}"], found)
    p_values = adjusted(pairs)

    yield "| host | robust, points | significant | gradient cosine |"
    yield "| --- | --: | --- | --: |"
    for host, changed in pairs.items():
        nearer = mean_cosine(known[f"{host}{ADDED}"]) - mean_cosine(known[host])
        significant = "yes" if p_values[host] < ALPHA else "no"
        yield f"| {host} | {mean_points(changed)} | {significant} | {nearer:+.3f} |"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit("usage: students.py CHECKPOINTS RESULTS")
    torch.set_num_threads(1)
    known = students(Path(sys.argv[1]), Path(sys.argv[2]))
    if AGAINST not in known:
        sys.exit(
            f"no finished runs of {AGAINST} at {THREAT} in '{sys.argv[2]}': run 'make students "
            "students-table'"
        )
    write_text(TABLE, to_csv(list(rows(known)), Row))
    print(*table(known), "", *additions(known), sep="\n")


if __name__ == "__main__":
    main()
