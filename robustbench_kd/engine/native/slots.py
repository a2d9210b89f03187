"""The slot batch: every row is a restart at its own step; waiting rows replace decided ones.

No pass of the model is spent on a decided example: a row leaves at the step that breaks it, on the
CPU at once, on a GPU within four steps, because a question to the device stalls it. An example of a
randomized defence is broken where every answer is wrong; until then the image with the highest
error rate is kept, and a point is a candidate where the search sees a higher one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from robustbench_kd.core.ledger import Decision
from robustbench_kd.core.records import Work
from robustbench_kd.engine.judging.judge import judge
from robustbench_kd.engine.judging.packing import unpack
from robustbench_kd.engine.native.patience import Patience
from robustbench_kd.engine.native.queue import Ints, Queue
from robustbench_kd.engine.native.slot_rows import Bools, SlotRows
from robustbench_kd.engine.native.worst_so_far import WorstSoFar
from robustbench_kd.engine.passes.search import Search, search_on
from robustbench_kd.engine.passes.speedups import reduced_precision
from robustbench_kd.engine.run.run import Run
from robustbench_kd.engine.run.stages import Stage
from robustbench_kd.tensors.attack import Attack, AttackState, Rows
from robustbench_kd.tensors.contracts import Images
from robustbench_kd.tensors.defence import Batched, Key
from robustbench_kd.tensors.geometry import inside

_STEPS_PER_QUESTION = 4  # steps between two questions to a GPU
_IN_STEP = 0.5  # fraction of rows that must want what fresh rows want before these join
_MARGINAL = 1e-3  # logits; rounding could decide a broken example with a smaller margin
_DEAD_ALLOWED = 0.015  # fraction of dead rows that is cheaper to compute than to remove


@dataclass
class Tally:
    """What the slots computed since the last entry of the ledger."""

    computed: int = 0
    live: int = 0
    disagreements: int = 0
    marginal: int = 0

    def work(self, model_seconds: float, undefined: int) -> Work:
        """Returns the tally for the ledger, and starts a new one."""
        work = Work(
            computed=self.computed,
            live=self.live,
            disagreements=self.disagreements,
            marginal=self.marginal,
            undefined=undefined,
            model_seconds=model_seconds,
        )
        self.computed = self.live = self.disagreements = self.marginal = 0
        return work


class SlotBatch:
    """Runs an attack on some rows of the data set and yields rows as they are decided."""

    def __init__(
        self, run: Run, stage: Stage, attack: Attack, rows: list[int], batch_size: int
    ) -> None:
        on_cpu = run.oracle.device.type == "cpu"
        self.tally = Tally()
        self._run = run
        self._stage = stage
        self._attack = attack
        self._batch_size = batch_size
        self._seed = run.seed_of(stage)
        self._search = _search(run, stage)
        self._start_images = _start_images(run, stage)
        self._worst = WorstSoFar(run, stage)
        is_batched = isinstance(run.oracle.model, Batched)
        self._patience = Patience(len(run.data)) if is_batched else None
        self._queue = Queue(rows, attack.restart_count(run.threat.norm, run.classes))
        self._schedule = np.array(attack.schedule(run.threat.norm), dtype=bool)
        self._steps_per_question = 1 if on_cpu else _STEPS_PER_QUESTION

    def run(self) -> Iterator[list[Decision]]:
        """Yields the rows decided at each question to the device, until none is left."""
        slots = self._fresh(self._batch_size)
        step = 0
        while slots is not None:
            self._advance(slots)
            step += 1
            if step % self._steps_per_question == 0 or self._spent(slots).any():
                yield self._retire(slots)
                slots = self._refilled(slots)

    def work(self, model_seconds: float) -> Work:
        """Returns what was computed since the last time, for the ledger."""
        return self.tally.work(model_seconds, self._search.undefined())

    def _advance(self, slots: SlotRows) -> None:
        """Asks for points, evaluates them, notes candidates and tells the attack."""
        points = slots.state.ask()
        wanted = self._schedule[slots.age]
        reply = self._search.evaluate(points, self._key(slots), wanted, slots.state)

        self._note_candidates(slots, points, reply.answers)
        slots.state = slots.state.tell(reply.logits, reply.values, reply.gradient)
        slots.age += 1

        self._worst.count_step(slots.rows, slots.alive, wanted)
        self.tally.computed += len(wanted)
        self.tally.live += int(np.count_nonzero(slots.alive))

    def _note_candidates(self, slots: SlotRows, points: Images, answers: Tensor) -> None:
        promising = self._promising(answers, slots)
        if self._steps_per_question == 1:
            slots.hit = promising
            slots.candidates = points
            return

        threat = self._run.threat
        first = promising & ~slots.hit & inside(points, slots.images, threat.eps, threat.norm)
        slots.candidates = torch.where(first.view(-1, 1, 1, 1), points, slots.candidates)
        slots.hit = slots.hit | first

    def _key(self, slots: SlotRows) -> Key:
        """Returns the names of the draws that the search may use at this step."""
        device = slots.labels.device
        ids = torch.from_numpy(self._worst.ids(slots.rows))
        draw = torch.from_numpy(slots.restarts * 2**20 + slots.age)
        # Without `non_blocking` a GPU would be waited for.
        return Key(
            self._seed,
            f"search/{self._stage.name}",
            ids=ids.to(device, non_blocking=True),
            draw=draw.to(device, non_blocking=True),
        )

    def _promising(self, answers: Tensor, slots: SlotRows) -> Tensor:
        """Returns which rows `(n,)` the search believes to be worse than all points so far."""
        wrong = answers.argmax(dim=2) != slots.labels
        if len(wrong) == 1:
            return wrong[0]
        weights = self._search.weights  # on the device of the answers
        if weights is None:
            return wrong.float().mean(dim=0) > slots.floor
        return weights @ wrong.to(weights.dtype) > slots.floor

    def _spent(self, slots: SlotRows) -> Bools:
        """Returns which rows are at the end of their schedule."""
        spent: Bools = slots.age >= len(self._schedule)
        return spent

    def _retire(self, slots: SlotRows) -> list[Decision]:
        """Removes rows that the true model judges broken, and rows without a restart left."""
        retired = self._judged(slots)
        for slot in np.flatnonzero(slots.alive & self._spent(slots)):
            slots.alive[slot] = False
            row = int(slots.rows[slot])
            if not self._queue.failed(row, int(slots.restarts[slot])):
                retired.append(self._worst.survived(row))
        return retired

    def _judged(self, slots: SlotRows) -> list[Decision]:
        """Judges the candidates and returns the decisions on those that are broken."""
        found = self._candidate_slots(slots)
        if len(found) == 0:
            return []

        oracle = self._run.oracle
        on_device = torch.from_numpy(found).to(slots.candidates.device)
        rows = torch.from_numpy(slots.rows[found])
        clean = self._run.data.take(rows)
        points = slots.candidates[on_device].cpu()

        forwards = oracle.meter.forwards
        judgement = judge(oracle, points, clean, self._run.threat)
        self._worst.count_judgement(slots.rows[found], oracle.meter.forwards - forwards)
        worse = self._worst.update(clean, judgement, points)
        if self._patience:
            self._patience.judged(slots.rows[found], worse.numpy())

        if self._stage.surface.same_outputs:
            self.tally.disagreements += int((~worse).sum())
        marginal = judgement.broken & (judgement.margin.abs() < _MARGINAL)
        self.tally.marginal += int(marginal.sum())

        slots.hit = slots.hit.index_fill(0, on_device, value=False)
        slots.alive[found[judgement.broken.numpy()]] = False
        if oracle.randomized:
            slots.floor = self._worst.floors(slots.rows).to(slots.floor.device)
        return self._worst.broken(rows[judgement.broken].tolist())

    def _candidate_slots(self, slots: SlotRows) -> Ints:
        """Returns the live slots with a candidate inside the ball."""
        hit = slots.hit.cpu().numpy() & slots.alive
        if self._patience:
            hit &= ~self._patience.resting(slots.rows)
        found: Ints = np.flatnonzero(hit)
        if len(found) == 0:
            return found

        threat = self._run.threat
        on_device = torch.from_numpy(found).to(slots.candidates.device)
        candidates = slots.candidates[on_device]
        near = inside(candidates, slots.images[on_device], threat.eps, threat.norm)
        inside_ball: Ints = found[near.cpu().numpy()]
        return inside_ball

    def _refilled(self, slots: SlotRows) -> SlotRows | None:
        """Returns the batch with dead rows replaced or removed, None where all is decided."""
        dead = int(np.count_nonzero(~slots.alive))
        if not dead and not self._queue:
            return slots

        fresh = None
        if self._in_step(slots):
            fresh = self._fresh(self._batch_size - len(slots.rows) + dead)
        spent_and_dead = (self._spent(slots) & ~slots.alive).any()
        if fresh is None and dead <= _DEAD_ALLOWED * len(slots.rows) and not spent_and_dead:
            return slots

        live = slots.live() if slots.alive.any() else None
        if live is None or fresh is None:
            return live or fresh
        return live.with_fresh(fresh)

    def _in_step(self, slots: SlotRows) -> bool:
        """Returns whether enough live rows want next what a fresh row wants first.

        Then one call serves the whole batch, with or without a gradient.
        """
        going_on = slots.alive & ~self._spent(slots)
        wanted = self._schedule[slots.age[going_on]]
        if not len(wanted):
            return True
        return bool((wanted == self._schedule[0]).mean() >= _IN_STEP)

    def _fresh(self, most: int) -> SlotRows | None:
        """Returns at most so many rows from the queue, None where it is empty."""
        rows, restarts = self._queue.next(most)
        if len(rows) == 0:
            return None

        device = self._run.oracle.device
        picked = torch.from_numpy(rows)
        images = self._run.data.images[picked].to(device)
        labels = self._run.data.labels[picked].to(device)
        start = Rows(
            images=images,
            labels=labels,
            logits=self._run.logits[picked].to(device),
            ids=torch.from_numpy(self._worst.ids(rows)).to(device),
            restart=torch.from_numpy(restarts).to(device),
        )
        return SlotRows(
            state=self._begun(start),
            rows=rows,
            restarts=restarts,
            age=np.zeros(len(rows), dtype=np.int64),
            alive=np.ones(len(rows), dtype=bool),
            images=images,
            labels=labels,
            floor=self._worst.floors(rows).to(device),
            hit=torch.zeros(len(rows), dtype=torch.bool, device=device),
            candidates=images,
        )

    def _begun(self, rows: Rows) -> AttackState:
        """Returns the state of fresh restarts.

        The first restart of an example goes on from the image that an earlier stage has left.
        """
        threat = self._run.threat
        points = self._attack.start_points(rows, threat, self._seed)
        if self._start_images:
            points = points.clone()
            restarts = zip(rows.ids.tolist(), rows.restart.tolist(), strict=True)
            for row, (example, restart) in enumerate(restarts):
                if restart == 0 and example in self._start_images:
                    points[row] = self._start_images[example].to(points.device)
        return self._attack.begin(rows, threat, points, self._seed)


def _search(run: Run, stage: Stage) -> Search:
    return search_on(
        stage.surface,
        run.oracle,
        abstains=run.oracle.abstains,
        within=partial(reduced_precision, run.plan.request.speedups, run.oracle.device),
    )


def _start_images(run: Run, stage: Stage) -> dict[int, Images]:
    """Returns the images by example id that an earlier stage has left for this one."""
    if not stage.starts_from:
        return {}
    shape = tuple(run.data.images.shape[1:])
    decisions = run.index.decisions(stage.starts_from)
    return {
        example: unpack([decision.image], shape)[0]
        for example, decision in decisions.items()
        if decision.image
    }
