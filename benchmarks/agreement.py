"""Verdicts of our engine and of the AutoAttack package, and of the package with another seed.

Two seeds of the same attack part on a few examples; our engine, which draws other random numbers,
is one more seed. Run it by `python benchmarks/agreement.py [EXAMPLES [MODEL ...]]`. Real networks
are compared too where `RKD_TEST_DATA` names their folder.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from stages import Case, chosen, measure, robust

WAYS = {
    f"{engine}, seed {seed}": (engine, seed)
    for engine in ("autoattack", "native")
    for seed in (0, 1)
}


def compared(case: Case) -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = [
            measure(case, Path(folder), engine=engine, seed=seed)[0]
            for engine, seed in WAYS.values()
        ]
        first, *others = [robust(outcome) for outcome in found]
    parted = [
        sum(one != other for one, other in zip(first, verdicts, strict=True)) for verdicts in others
    ]
    accuracies = [
        f"{100 * outcome.record.robust.value:.2f}" for outcome in found if outcome.record.robust
    ]
    return " | ".join([case.name, case.threat, str(case.examples), *accuracies, *map(str, parted)])


def main() -> None:
    torch.set_num_threads(1)
    print(
        " | ".join(["model", "threat", "n", *WAYS, *(f"{way} parts on" for way in list(WAYS)[1:])])
    )
    for case in chosen(sys.argv[2:]):
        examples = int(sys.argv[1]) if len(sys.argv) > 1 else case.examples
        print(compared(replace(case, examples=examples)), flush=True)


if __name__ == "__main__":
    main()
