"""Schemas of what a run leaves behind: `run.json` and `findings.json`.

Accuracies are fractions with n and a 95 % Wilson interval; `eps` keeps its exact text beside its
value. The run id is the hash of the identity, so the same question always leads to the same folder.
"""

import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from robustbench_kd.core.ranges import Count, Finite, Fraction, Positive, Seconds
from robustbench_kd.core.text import printable

# Names come from files and command lines, and go to terminals and tables.
Name = Annotated[str, AfterValidator(printable)]


# "consistent" says that nothing was found, and no more: people read it as "no findings".
Verdict = Literal["consistent", "suspicious", "unreliable", "unchecked"]


class Frozen(BaseModel):
    """A value that is checked when it is made and never changes.

    Strict JSON has no infinity, so it is written as text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Severity(StrEnum):
    """How much a finding weighs.

    Red makes a verdict unreliable, yellow suspicious, info is only said.
    """

    INFO = "info"
    YELLOW = "yellow"
    RED = "red"


class Finding(Frozen):
    """One result of a trust check: what was seen, against which threshold, and what to do next."""

    check: str
    severity: Severity
    message: str
    advice: str = ""
    value: float | None = None
    threshold: float | None = None
    examples: list[Count] = Field(default_factory=list)


class Accuracy(Frozen):
    """A fraction of `n` examples with its 95 % interval."""

    value: Fraction
    n: Positive
    ci_low: Fraction
    ci_high: Fraction


class Draws(Frozen):
    """The accuracies of a randomized defence on one set of images, with fresh draws.

    `mean` is the accuracy of one draw in expectation, `all_correct` counts images that every draw
    gets right, `majority` those that most draws do. Where `exact`, every member of a finite
    ensemble answered and `draws` is their number.
    """

    exact: bool
    draws: Positive
    mean: Accuracy
    all_correct: Accuracy
    majority: Accuracy


class Caught(Frozen):
    """How well the scores of a detector tell `n` attacked images from correct clean ones.

    `auc` is the chance that the score of an attacked image is above that of a clean one, ties
    counting half. `tpr_5` and `tpr_10` are the fractions of attacked images above the lowest
    threshold that rejects at most 5 or 10 % of the clean ones. All are None where one of the two
    sets is empty.
    """

    n: Count
    auc: Fraction | None = None
    tpr_5: Accuracy | None = None
    tpr_10: Accuracy | None = None


class Roc(Frozen):
    """A detector against one attacker.

    It saw `clean` images, `attempts` on them, and those `successes` that fool the classifier.
    """

    clean: Count
    attempts: Caught
    successes: Caught


class Detection(Frozen):
    """What a defence that may reject does to images, and how good its scores are.

    `clean_rejected` is the false positive rate, `clean_rejected_right` that of the images which the
    classifier gets right. Under attack there are three fates: wrong, rejected, and right and
    accepted. `robust_handled` lacks what is wrong, `robust_accepted` also what is rejected; an
    attacker chooses an image for each, and may choose the clean one. `attacked_rejected` is the
    fraction of rejected ones among the images most often wrong, of equal ones the most often
    rejected. The attacker of `oblivious` knows the classifier only, the one of `joint` the detector
    too.
    """

    clean_rejected: Accuracy
    clean_rejected_right: Accuracy | None
    robust_handled: Accuracy
    attacked_rejected: Accuracy
    robust_accepted: Accuracy
    oblivious: Roc
    joint: Roc


class Claim(Frozen):
    """Whether the robust accuracy of a `population` of examples reaches a number.

    Examples were taken in random order until the answer was known; the chance of a wrong answer is
    at most `mistakes`.
    """

    text: str
    holds: bool
    evaluated: Positive
    population: Positive
    mistakes: Fraction


_PROTOCOL = {"dataset", "data_fingerprint", "norm", "eps", "suite", "attacks", "engine", "mode"}


class Identity(Frozen):
    """Everything that can change a verdict.

    `adaptive` are the stages that follow `attacks`: which ones depends on the defence, so that runs
    of different defences are ranked together all the same. `carried` is the run id of a smaller
    radius whose broken examples stay broken.
    """

    model: Name
    family: Name
    architecture: Name
    normalisation: str
    checkpoint_sha256: str
    code_sha256: str = ""
    dataset: Name
    data_fingerprint: str
    examples: Positive
    norm: str
    eps: Finite
    eps_text: str
    suite: str
    attacks: list[str]
    adaptive: list[str] = Field(default_factory=list)
    engine: str
    mode: str = "exact"
    seed: int
    batch_size: Count
    device: str
    precision: str = "fp32"
    carried: str = ""
    versions: dict[str, str]

    @property
    def stages(self) -> list[str]:
        """Returns the names of all attacks in their order."""
        return [*self.attacks, *self.adaptive]

    @property
    def arithmetic(self) -> str:
        """Returns the number format of the search.

        `precision` also names what only rearranges the arithmetic.
        """
        return self.precision.partition("+")[0]

    def run_id(self) -> str:
        """Returns the name of the run's folder: 16 hexadecimal digits of the hash of all fields."""
        return _digest(self.model_dump())

    def stored_run_id(self) -> str:
        """Returns the run id by the fields that were given: those of the version that stored it."""
        return _digest(self.model_dump(exclude_unset=True))

    def protocol_hash(self) -> str:
        """Returns the hash of what two runs must share to be ranked together.

        That is data, threat, suite, engine, mode and number format.
        """
        shared = self.model_dump(include=_PROTOCOL)
        return _digest({**shared, "precision": self.arithmetic})


class Work(Frozen):
    """How well the passes of a stage were spent, where the engine can tell.

    `live` of `computed` rows belonged to undecided examples; `disagreements` counts candidates of
    the search that the true model refused; `marginal` counts broken examples whose margin is below
    1e-3 in size, where rounding could decide; `undefined` counts answers that were NaN or infinite.
    """

    computed: Count = 0
    live: Count = 0
    disagreements: Count = 0
    marginal: Count = 0
    undefined: Count = 0
    model_seconds: Seconds = 0.0

    def plus(self, other: "Work") -> "Work":
        """Returns the work of both together."""
        return Work(
            computed=self.computed + other.computed,
            live=self.live + other.live,
            disagreements=self.disagreements + other.disagreements,
            marginal=self.marginal + other.marginal,
            undefined=self.undefined + other.undefined,
            model_seconds=self.model_seconds + other.model_seconds,
        )


class StageResult(Frozen):
    """One attack of the suite: the accuracy left after it, and what it cost."""

    stage: str
    accuracy: Accuracy
    forwards: Count
    backwards: Count
    seconds: Seconds
    work: Work | None = None

    @property
    def passes(self) -> int:
        """Forward and backward passes together."""
        return self.forwards + self.backwards


class Source(Frozen):
    """Where the model and the data were found: the options of `rkd eval` as they were typed.

    It changes no verdict and no run id. `rkd verify` looks for both there again.
    """

    target: Name = ""
    arch: Name = ""
    arch_arg: tuple[Name, ...] = ()
    normalisation: Name = ""
    weights_key: Name = ""
    dataset: Name = ""
    data_dir: Name = ""


class RunRecord(Frozen):
    """`run.json`: one evaluation of one defence under one threat with one suite.

    `robust` is what all attacks together left, of a randomized defence the expected accuracy;
    `standard` is what was left before adaptive attacks followed; `detection` is for defences that
    may reject; `missed` bounds, with 95 % confidence, what a fast run could have missed; `claim` is
    what a sequential run has settled, whose accuracies are those of the examples it took.
    """

    schema_version: Literal[1] = 1
    run_id: Name
    status: Literal["complete", "interrupted"]
    identity: Identity
    protocol_hash: str
    clean: Accuracy | None = None
    robust: Accuracy | None = None
    standard: Accuracy | None = None
    clean_draws: Draws | None = None
    robust_draws: Draws | None = None
    detection: Detection | None = None
    missed: Fraction | None = None
    claim: Claim | None = None
    stages: list[StageResult] = Field(default_factory=list)
    forwards: Count = 0
    backwards: Count = 0
    seconds: Seconds = 0.0
    findings: list[Finding] = Field(default_factory=list)
    verdict: Verdict | None = None
    parameters: Count = 0
    environment: dict[str, str] = Field(default_factory=dict)
    source: Source = Source()

    @property
    def clean_value(self) -> float:
        """The clean accuracy, 0 where there is none yet."""
        return self.clean.value if self.clean else 0.0

    @property
    def robust_value(self) -> float:
        """The robust accuracy, 0 where there is none yet."""
        return self.robust.value if self.robust else 0.0

    @property
    def passes(self) -> int:
        """Forward and backward passes together."""
        return self.forwards + self.backwards


def _digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
