"""Honest networks that declare nothing: `standard+adaptive` must find what `standard` finds.

Evaluates the honest models of docs/trust.md and a vision transformer by both suites. `broken` are
images that only `standard+adaptive` breaks, of which `in fp64` are misclassified in float64 too;
`restored` are images that only `standard` breaks, which must be none. `look` is what looking for
surfaces costs, in passes of `standard`. Run it by `make honest`; real networks run where
`RKD_TEST_DATA` names their folder. Writes build/honest.md; the runs stay in build/honest, and
finished ones are not repeated.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from markdown_table import printed
from torch import nn

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.examples import read_examples
from robustbench_kd.core.rundir import ADVERSARIAL, EXAMPLES
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.evaluate import Outcome, evaluate
from robustbench_kd.engine.probing.anatomy import examine
from robustbench_kd.tensors import stored_images
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.oracle import Oracle, freeze

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from oracles import request  # noqa: E402  # a model as if it had been loaded from a file
from trust_table import Case, honest_cases  # noqa: E402  # the models of docs/trust.md

N = 40
DEVICE = torch.device("cpu")
HEADINGS = (
    "model",
    "threat",
    "standard %",
    "standard+adaptive %",
    "broken",
    "in fp64",
    "restored",
    "look",
)
RULE = ("---", "---", *["--:"] * 6)


def vision_transformer() -> nn.Module:
    (target,) = describe(str(ROOT / "checkpoints" / "digits-inductive_bias-0.toml"), Choices())
    return load(target, classes=10, shape=(1, 8, 8)).model


def cases() -> list[Case]:
    """Returns every undeclared honest model under the first of its threats, and the transformer."""
    by_name: dict[str, Case] = {}
    for case in honest_cases():
        if case.name != "declared ensemble":
            by_name.setdefault(case.name, case)
    digits = by_name["digits-plain"].data
    return [*by_name.values(), Case("vit_tiny", vision_transformer, "linf:0.03", digits)]


def model_of(case: Case) -> nn.Module:
    model = case.model().eval()
    freeze(model)
    return model


def data_of(case: Case) -> Dataset:
    data = case.data()
    return data.take(torch.arange(min(N, len(data))))


def run(case: Case, suite: str) -> Outcome:
    slug = case.name.replace(" ", "-").replace(",", "")
    model, data = model_of(case), data_of(case)
    asked = request(model, data, threat=case.threat, suite=suite, probes=True, saves=True)
    named = replace(asked.subject, name=f"{slug}-{suite}")
    return evaluate(replace(asked, subject=named), BUILD / "honest")


def robust(outcome: Outcome) -> set[int]:
    rows = read_examples(outcome.folder / EXAMPLES)
    return {row.index for row in rows if row.robust}


def wrong_in_double(case: Case, outcome: Outcome, indices: set[int]) -> int:
    """Returns how many of the stored adversarial images of some examples are wrong in float64."""
    stored = stored_images.read(outcome.folder / ADVERSARIAL)
    chosen = [row for row, index in enumerate(stored.ids) if int(index) in indices]
    images = torch.from_numpy(stored.images[chosen]).double()
    labels = torch.from_numpy(stored.labels[chosen])
    predictions = model_of(case).double()(images).argmax(dim=1)
    return int((predictions != labels).sum())


def row(case: Case) -> tuple[str, ...]:
    plain, full = run(case, "standard"), run(case, "standard+adaptive")
    broken = robust(plain) - robust(full)
    look = examine(Oracle(model_of(case), DEVICE), data_of(case), Threat.parse(case.threat), 0)
    if look.found:
        sys.exit(f"{case.name}: expected no surface, found {look.found[0].surface.name}")
    return (
        case.name,
        case.threat,
        *(f"{100 * one.record.robust.value:.1f}" for one in (plain, full)),
        str(len(broken)),
        str(wrong_in_double(case, full, broken) if broken else 0),
        str(len(robust(full) - robust(plain))),
        f"{look.passes / plain.record.passes:.1%}",
    )


def main() -> None:
    table = printed(HEADINGS, RULE, map(row, cases()))
    (BUILD / "honest.md").write_text(table)


if __name__ == "__main__":
    main()
