"""The slot batch: every row is a job at its own step; decided rows leave, waiting ones take their place.

No pass of the model is spent on a decided example: a row leaves at the step that breaks it, on the
CPU at once, on a GPU within `sync` steps, because asking the device for the answer stalls it. An
example of a randomized defence is broken where every answer errs; until then the image with the
largest share of wrong answers is kept, and a point is a candidate where the search sees a larger
one.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_kd.core.ledger import Decision
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.judging.judge import Judgement, decisions, judge, standing_decision
from robustbench_kd.engine.judging.packing import packed
from robustbench_kd.engine.native.queue import Ints, Queue
from robustbench_kd.engine.passes.search import Search
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.attack import Rows, join, take
from robustbench_kd.tensors.contracts import Dataset, Images, Logits
from robustbench_kd.tensors.defence import Key
from robustbench_kd.tensors.geometry import inside
from robustbench_kd.tensors.oracle import Oracle

_TOGETHER = 0.5  # the share of rows that must want what fresh rows want before these join
_MARGINAL = 1e-3  # logits; a broken example with a smaller margin could be decided by rounding
_ROUNDING = 1e-6  # what the weights of members may lack to 1
_SPARE = 0.015  # the share of dead rows that is cheaper to compute than to take out


@dataclass(frozen=True)
class StageContext:
    """One attack on what still stands: everything that stays the same while its slots turn over.

    `worst` holds by example id what the stages before found out about examples of which some
    answers err already, and `starts` the images to start from where the step goes on from an
    earlier one. `stores_images` says that decisions hold their images.
    """

    step: Stage
    data: Dataset
    logits: Logits
    threat: Threat
    seed: int
    size: int
    sync: int
    oracle: Oracle
    search: Search
    worst: Mapping[int, Decision]
    starts: Mapping[int, Images]
    stores_images: bool

    @property
    def attack(self) -> Any:
        """Returns the attack of the step."""
        return self.step.attack


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
    floor: Tensor
    hit: Tensor
    won: Images


class SlotBatch:
    """Runs one stage over a queue and yields rows as they are decided."""

    def __init__(self, stage: StageContext, queue: Queue) -> None:
        self.tally = Tally()
        self._stage = stage
        self._queue = queue
        self._schedule = np.array(stage.attack.schedule(stage.threat.norm), dtype=bool)
        self._ids = np.array(stage.data.ids)
        self._worst = dict(stage.worst)
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
        reply = self._stage.search.evaluate(points, self._key(slots), wanted, slots.state, attack)
        wrong = self._promising(reply.answers, slots)
        if self._stage.sync == 1:
            slots.hit, slots.won = wrong, points
        else:
            fresh = (
                wrong
                & ~slots.hit
                & inside(points, slots.images, self._stage.threat.eps, self._stage.threat.norm)
            )
            slots.won = torch.where(fresh.view(-1, 1, 1, 1), points, slots.won)
            slots.hit = slots.hit | fresh
        slots.state = attack.tell(slots.state, reply.logits, reply.values, reply.gradient)
        slots.age += 1
        self.tally.computed += len(wanted)
        self.tally.live += int(np.count_nonzero(slots.alive))
        self._forwards[slots.rows[slots.alive]] += self._stage.step.surface.passes
        self._backwards[slots.rows[slots.alive & wanted]] += self._stage.step.surface.passes

    def _key(self, slots: _Slots) -> Key:
        """Returns the names of the draws that the search may use at this step."""
        ids, draw = self._ids[slots.rows], slots.jobs * 2**20 + slots.age
        device = slots.labels.device
        # Without `non_blocking` a GPU would be waited for.
        on_device = (
            torch.from_numpy(values).to(device, non_blocking=True) for values in (ids, draw)
        )
        return Key(self._stage.seed, f"search/{self._stage.step.name}", *on_device)

    def _promising(self, answers: Tensor, slots: _Slots) -> Tensor:
        """Returns which rows `(n,)` the search believes to do better than all points so far."""
        wrong = answers.argmax(dim=2) != slots.labels
        if len(wrong) == 1:
            return wrong[0]
        weights = self._stage.step.surface.weights
        share = wrong.float().mean(dim=0) if weights is None else weights @ wrong.to(weights.dtype)
        return share > slots.floor

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
        hit = slots.hit.cpu().numpy() & slots.alive
        if not np.count_nonzero(hit):
            return []
        found = np.flatnonzero(hit)
        picked = torch.from_numpy(found).to(slots.won.device)
        near = (
            inside(slots.won[picked], slots.images[picked], threat.eps, threat.norm).cpu().numpy()
        )
        found, picked = found[near], picked[torch.from_numpy(near).to(picked.device)]
        if len(found) == 0:
            return []
        rows = torch.from_numpy(slots.rows[found])
        true, won = self._stage.data.take(rows), slots.won[picked].cpu()
        before = self._stage.oracle.forwards
        judgement = judge(self._stage.oracle, won, true, threat)
        self._forwards[slots.rows[found]] += (self._stage.oracle.forwards - before) // len(rows)
        better = self._kept_if_better(true, judgement, won)
        self.tally.disagreements += (
            int((~better).sum()) if self._stage.step.surface.same_outputs else 0
        )
        self.tally.marginal += int((judgement.broken & (judgement.margin.abs() < _MARGINAL)).sum())
        slots.hit = slots.hit.index_fill(0, picked, value=False)
        slots.alive[found[judgement.broken.numpy()]] = False
        if self._stage.oracle.randomized:
            slots.floor = self._floor(slots.rows).to(slots.floor.device)
        return [
            self._costed(self._worst[self._stage.data.ids[row]], row)
            for row in rows[judgement.broken].tolist()
        ]

    def _kept_if_better(self, true: Dataset, judgement: Judgement, points: Images) -> Tensor:
        """Keeps the decisions that more answers get wrong than all before; returns which `(n,)` these are."""
        better = (
            judgement.wrong
            > torch.tensor([self._share(example) for example in true.ids]) + _ROUNDING
        )
        found = decisions(true.ids, judgement)
        for row in torch.nonzero(better | self._closer(true, judgement)).flatten().tolist():
            image = packed(points[row]) if self._stage.stores_images else ""
            self._worst[true.ids[row]] = found[row].model_copy(update={"image": image})
        return better

    def _closer(self, true: Dataset, judgement: Judgement) -> Tensor:
        """Returns which points `(n,)` are the nearest ones to an error so far, for a later stage to start from."""
        if not self._stage.step.feeds_later_stage:
            return torch.zeros(len(true), dtype=torch.bool)
        known = [self._worst.get(example) for example in true.ids]
        return torch.tensor(
            [
                wrong >= (before.share if before else 0)
                and gap < (before.margin if before and before.image else math.inf)
                for before, wrong, gap in zip(
                    known, judgement.wrong.tolist(), judgement.margin.tolist(), strict=True
                )
            ]
        )

    def _share(self, example: int) -> float:
        """Returns the largest share of wrong answers known for an example."""
        known = self._worst.get(example)
        return known.share if known else 0.0

    def _floor(self, rows: Ints) -> Tensor:
        return torch.tensor(
            [self._share(example) + _ROUNDING for example in self._ids[rows].tolist()]
        )

    def _costed(self, decision: Decision, row: int) -> Decision:
        """Returns a decision with the passes that its row of the data set has cost."""
        cost = {"forwards": int(self._forwards[row]), "backwards": int(self._backwards[row])}
        return decision.model_copy(update=cost)

    def _standing(self, row: int) -> Decision:
        known = self._worst.get(self._stage.data.ids[row])
        return self._costed(
            known or standing_decision(self._stage.data, self._stage.logits, row), row
        )

    def _turned(self, slots: _Slots) -> _Slots | None:
        """Returns the batch with dead rows replaced or taken out, None where nothing is left to do."""
        dead = int(np.count_nonzero(~slots.alive))
        if not dead and not self._queue:
            return slots
        fresh = (
            self._fresh(self._stage.size - len(slots.rows) + dead) if self._in_step(slots) else None
        )
        if (
            fresh is None
            and dead <= _SPARE * len(slots.rows)
            and not (self._spent(slots) & ~slots.alive).any()
        ):
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
        ids = torch.from_numpy(self._ids[rows]).to(device)
        start = Rows(
            images,
            labels,
            self._stage.logits[picked].to(device),
            ids,
            torch.from_numpy(jobs).to(device),
        )
        return _Slots(
            state=self._begun(start),
            rows=rows,
            jobs=jobs,
            age=np.zeros(len(rows), dtype=np.int64),
            alive=np.ones(len(rows), dtype=bool),
            images=images,
            labels=labels,
            floor=self._floor(rows).to(device),
            hit=torch.zeros(len(rows), dtype=torch.bool, device=device),
            won=images,
        )

    def _begun(self, rows: Rows) -> Any:
        """Returns the state of fresh jobs; the first one of an example goes on from the image that was left for it."""
        stage = self._stage
        if not stage.starts:
            return stage.attack.start(rows, stage.threat, stage.seed)
        points = stage.attack.start_points(rows, stage.threat, stage.seed)
        for row, (example, job) in enumerate(
            zip(rows.ids.tolist(), rows.job.tolist(), strict=True)
        ):
            if job == 0 and example in stage.starts:
                points[row] = stage.starts[example].to(points.device)
        return stage.attack.begin(rows, stage.threat, points)


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
        floor=slots.floor[picked],
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
        floor=torch.cat([kept.floor, fresh.floor]),
        hit=torch.cat([kept.hit, fresh.hit]),
        won=torch.cat([kept.won, fresh.won]),
    )
