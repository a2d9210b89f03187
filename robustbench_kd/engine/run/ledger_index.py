"""The ledger of a run, indexed: which examples survive, which wait, and the worst image of each."""

from collections.abc import Iterable, Sequence

from robustbench_kd.core.ledger import Decision, Entry


class LedgerIndex:
    """Looks up the decisions of a ledger by stage and example.

    The ledger may grow: each question first reads the entries that are new.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._read = 0
        self._decisions: dict[str, dict[int, Decision]] = {}
        self._broken: dict[str, set[int]] = {}

    def decisions(self, stage: str) -> dict[int, Decision]:
        """Returns the decisions of one stage by example id."""
        self._refresh()
        return self._decisions.get(stage, {})

    def entries(self, stage: str) -> list[Entry]:
        """Returns the entries of one stage, with costs and findings."""
        return [entry for entry in self._entries if entry.stage == stage]

    def broken(self, stages: Iterable[str]) -> set[int]:
        """Returns the ids of the examples that any of the stages has broken."""
        self._refresh()
        return set().union(*(self._broken.get(stage, ()) for stage in stages))

    def worst(self, stages: Iterable[str]) -> dict[int, Decision]:
        """Returns for each example with a wrong answer the decision with the highest error rate.

        Ties go to the earlier stage.
        """
        worst: dict[int, Decision] = {}
        for stage in stages:
            for example, decision in self.decisions(stage).items():
                highest = worst[example].error_rate if example in worst else 0
                if decision.error_rate > highest:
                    worst[example] = decision
        return worst

    def _refresh(self) -> None:
        for entry in self._entries[self._read :]:
            decisions = self._decisions.setdefault(entry.stage, {})
            broken = self._broken.setdefault(entry.stage, set())
            for decision in entry.decisions:
                decisions[decision.index] = decision
                if decision.broken:
                    broken.add(decision.index)
        self._read = len(self._entries)
