"""What a ledger entry cost: the passes and seconds since the entry before it."""

import time
from collections.abc import Sequence

from robustbench_kd.core.ledger import Decision, Entry, RejectionScore
from robustbench_kd.core.records import Finding, Work
from robustbench_kd.tensors.meter import Meter


class EntryClock:
    """Makes the entries of one stage, each with what the meter counted since the last one."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._start()

    @property
    def seconds(self) -> float:
        """Returns the seconds since the last entry."""
        return time.perf_counter() - self._started

    @property
    def model_seconds(self) -> float:
        """Returns the seconds that searches spent in the model since the last entry."""
        return self._meter.model_seconds - self._model_seconds

    def entry(
        self,
        stage: str,
        decisions: Sequence[Decision] = (),
        *,
        findings: Sequence[Finding] = (),
        scores: Sequence[RejectionScore] = (),
        work: Work | None = None,
    ) -> Entry:
        """Returns an entry with its cost, and starts to count for the next one."""
        made = Entry(
            stage=stage,
            decisions=list(decisions),
            forwards=self._meter.forwards - self._forwards,
            backwards=self._meter.backwards - self._backwards,
            seconds=self.seconds,
            findings=list(findings),
            work=work,
            scores=list(scores),
        )
        self._start()
        return made

    def _start(self) -> None:
        self._forwards = self._meter.forwards
        self._backwards = self._meter.backwards
        self._model_seconds = self._meter.model_seconds
        self._started = time.perf_counter()
