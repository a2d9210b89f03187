"""The slot batch: every row is a job at its own step; decided rows leave, waiting ones take their place.

No pass of the model is spent on a decided example: a row leaves at the step that breaks it, on the CPU at once, on a GPU
within `sync` steps, because asking the device for the answer stalls it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_kd.core.ledger import Decision
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.queue import Ints, Queue
from robustbench_kd.engine.search import Search
from robustbench_kd.engine.verify import decisions, judge
from robustbench_kd.tensors.attack import Rows, join, take
from robustbench_kd.tensors.contracts import Dataset, Images, Logits
from robustbench_kd.tensors.geometry import inside
from robustbench_kd.tensors.losses import margin
from robustbench_kd.tensors.oracle import Oracle

_TOGETHER = 0.5  # the share of rows that must want what fresh rows want before these join
_MARGINAL = 1e-3  # logits; a broken example with a smaller margin could be decided by rounding
_SPARE = 0.015  # the share of dead rows that is cheaper to compute than to take out


@dataclass(frozen=True)
class Stage:
    """One attack on what still stands: everything that stays the same while its slots turn over."""

    attack: Any
    data: Dataset
    logits: Logits
    threat: Threat
    seed: int
    size: int
    sync: int
    oracle: Oracle
    search: Search


@dataclass
class Tally:
    """What the turning of the slots cost beside the passes themselves."""

    computed: int = 0
    live: int = 0
    disagreements: int = 0
    marginal: int = 0


@dataclass
class _Slots:
    """The live batch; host arrays count steps and passes, so that no question to the device is needed for them."""

    state: Any
    rows: Ints
    jobs: Ints
    age: Ints
    alive: NDArray[np.bool_]
    images: Images
    labels: Tensor
    hit: Tensor
    won: Images


class Turnover:
    """Runs one stage over a queue and yields rows as they are decided."""

    def __init__(self, stage: Stage, queue: Queue) -> None:
        self.tally = Tally()
        self._stage = stage
        self._queue = queue
        self._schedule = np.array(stage.attack.schedule(stage.threat.norm), dtype=bool)
        self._forwards = np.zeros(len(stage.data), dtype=np.int64)
        self._backwards = np.zeros(len(stage.data), dtype=np.int64)

    def run(self) -> Iterator[list[Decision]]:
        """Yields the rows decided at each synchronisation, until none is left."""
        slots = self._fresh(self._stage.size)
        step = 0
        while slots is not None:
            self._advance(slots)
            step += 1
            if step % self._stage.sync == 0 or self._spent(slots).any():
                yield self._retire(slots)
                slots = self._turned(slots)

    def _advance(self, slots: _Slots) -> None:
        """Asks, evaluates, notes what is wrong, tells."""
        attack = self._stage.attack
        points = attack.ask(slots.state)
        wanted = self._schedule[slots.age]
        logits, gradient = self._stage.search.evaluate(points, wanted, slots.state, attack)
        wrong = logits.argmax(dim=1) != slots.labels
        if self._stage.sync == 1:
            slots.hit, slots.won = wrong, points
        else:
            fresh = wrong & ~slots.hit & inside(points, slots.images, self._stage.threat.eps, self._stage.threat.norm)
            slots.won = torch.where(fresh.view(-1, 1, 1, 1), points, slots.won)
            slots.hit = slots.hit | fresh
        slots.state = attack.tell(slots.state, logits, gradient)
        slots.age += 1
        self.tally.computed += len(wanted)
        self.tally.live += int(slots.alive.sum())
        self._forwards[slots.rows[slots.alive]] += 1
        self._backwards[slots.rows[slots.alive & wanted]] += 1

    def _spent(self, slots: _Slots) -> NDArray[np.bool_]:
        return slots.age >= len(self._schedule)

    def _retire(self, slots: _Slots) -> list[Decision]:
        """Takes out what is broken, in the judgement of the true model, and what has no job left."""
        retired = self._broken(slots)
        for slot in np.flatnonzero(slots.alive & self._spent(slots)):
            slots.alive[slot] = False
            if not self._queue.failed(int(slots.rows[slot]), int(slots.jobs[slot])):
                retired.append(self._standing(int(slots.rows[slot])))
        return retired

    def _broken(self, slots: _Slots) -> list[Decision]:
        threat = self._stage.threat
        found = np.flatnonzero(slots.hit.cpu().numpy() & slots.alive)
        if len(found) == 0:
            return []
        picked = torch.from_numpy(found).to(slots.won.device)
        near = inside(slots.won[picked], slots.images[picked], threat.eps, threat.norm).cpu().numpy()
        found, picked = found[near], picked[torch.from_numpy(near).to(picked.device)]
        if len(found) == 0:
            return []
        rows = torch.from_numpy(slots.rows[found])
        true = self._stage.data.take(rows)
        judgement = judge(self._stage.oracle, slots.won[picked], true.images, true.labels, threat)
        self._forwards[slots.rows[found]] += 1
        self.tally.disagreements += int((~judgement.broken).sum())
        self.tally.marginal += int((judgement.broken & (judgement.margin.abs() < _MARGINAL)).sum())
        slots.hit = slots.hit.index_fill(0, picked, value=False)
        slots.alive[found[judgement.broken.numpy()]] = False
        judged = zip(decisions(true.ids, judgement), rows.tolist(), strict=True)
        return [self._costed(decision, row) for decision, row in judged if decision.broken]

    def _costed(self, decision: Decision, row: int) -> Decision:
        """Returns a decision with the passes that its row of the data set has cost."""
        cost = {"forwards": int(self._forwards[row]), "backwards": int(self._backwards[row])}
        return decision.model_copy(update=cost)

    def _standing(self, row: int) -> Decision:
        label = self._stage.data.labels[row : row + 1]
        gap = float(margin(self._stage.logits[row : row + 1], label))
        decision = Decision(index=self._stage.data.ids[row], broken=False, prediction=int(label), margin=gap)
        return self._costed(decision, row)

    def _turned(self, slots: _Slots) -> _Slots | None:
        """Returns the batch with dead rows replaced or taken out, None where nothing is left to do."""
        dead = int((~slots.alive).sum())
        fresh = self._fresh(self._stage.size - len(slots.rows) + dead) if self._in_step(slots) else None
        if fresh is None and dead <= _SPARE * len(slots.rows) and not (self._spent(slots) & ~slots.alive).any():
            return slots
        kept = _kept(slots) if slots.alive.any() else None
        if kept is None or fresh is None:
            return kept or fresh
        return _joined(kept, fresh)

    def _in_step(self, slots: _Slots) -> bool:
        """Tells whether live rows want next what a fresh row wants first, so that a batch asks for gradients as one."""
        ahead = self._schedule[slots.age[slots.alive & ~self._spent(slots)]]
        return not len(ahead) or bool((ahead == self._schedule[0]).mean() >= _TOGETHER)

    def _fresh(self, most: int) -> _Slots | None:
        rows, jobs = self._queue.next(most)
        if len(rows) == 0:
            return None
        device, picked = self._stage.oracle.device, torch.from_numpy(rows)
        data = self._stage.data
        images, labels = data.images[picked].to(device), data.labels[picked].to(device)
        ids = torch.tensor([data.ids[row] for row in rows], device=device)
        start = Rows(images, labels, self._stage.logits[picked].to(device), ids, torch.from_numpy(jobs).to(device))
        return _Slots(
            state=self._stage.attack.start(start, self._stage.threat, self._stage.seed),
            rows=rows,
            jobs=jobs,
            age=np.zeros(len(rows), dtype=np.int64),
            alive=np.ones(len(rows), dtype=bool),
            images=images,
            labels=labels,
            hit=torch.zeros(len(rows), dtype=torch.bool, device=device),
            won=images,
        )


def _kept(slots: _Slots) -> _Slots:
    rows = np.flatnonzero(slots.alive)
    picked = torch.from_numpy(rows).to(slots.labels.device)
    return _Slots(
        state=take(slots.state, picked),
        rows=slots.rows[rows],
        jobs=slots.jobs[rows],
        age=slots.age[rows],
        alive=slots.alive[rows],
        images=slots.images[picked],
        labels=slots.labels[picked],
        hit=slots.hit[picked],
        won=slots.won[picked],
    )


def _joined(kept: _Slots, fresh: _Slots) -> _Slots:
    return _Slots(
        state=join(kept.state, fresh.state),
        rows=np.concatenate([kept.rows, fresh.rows]),
        jobs=np.concatenate([kept.jobs, fresh.jobs]),
        age=np.concatenate([kept.age, fresh.age]),
        alive=np.concatenate([kept.alive, fresh.alive]),
        images=torch.cat([kept.images, fresh.images]),
        labels=torch.cat([kept.labels, fresh.labels]),
        hit=torch.cat([kept.hit, fresh.hit]),
        won=torch.cat([kept.won, fresh.won]),
    )
