"""The rows of a slot batch: each is one restart of one example, at its own step."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_kd.engine.native.queue import Ints
from robustbench_kd.tensors.attack import AttackState, join, take
from robustbench_kd.tensors.contracts import Images, Labels

Bools = NDArray[np.bool_]


@dataclass
class SlotRows:
    """The live batch of n rows.

    Host arrays count restarts and steps, so that the device need not be asked for them.

    Args:
        state: The state of the attack.
        rows: The row of the data set in each slot, `(n,)` on the host.
        restarts: Its restart, `(n,)` on the host.
        age: Steps of the restart so far, `(n,)` on the host.
        alive: Whether the slot is in use, `(n,)` on the host.
        images: Clean images.
        labels: True classes.
        floor: The error rate that a point must exceed to be a candidate.
        hit: Whether a candidate waits for its judgement.
        candidates: The points to judge, where there was a hit.
    """

    state: AttackState
    rows: Ints
    restarts: Ints
    age: Ints
    alive: Bools
    images: Images
    labels: Labels
    floor: Tensor
    hit: Tensor
    candidates: Images

    def live(self) -> "SlotRows":
        """Returns the rows in use."""
        rows = np.flatnonzero(self.alive)
        on_device = torch.from_numpy(rows).to(self.labels.device)
        return SlotRows(
            state=take(self.state, on_device),
            rows=self.rows[rows],
            restarts=self.restarts[rows],
            age=self.age[rows],
            alive=self.alive[rows],
            images=self.images[on_device],
            labels=self.labels[on_device],
            floor=self.floor[on_device],
            hit=self.hit[on_device],
            candidates=self.candidates[on_device],
        )

    def with_fresh(self, fresh: "SlotRows") -> "SlotRows":
        """Returns these rows and then fresh ones."""
        return SlotRows(
            state=join(self.state, fresh.state),
            rows=np.concatenate([self.rows, fresh.rows]),
            restarts=np.concatenate([self.restarts, fresh.restarts]),
            age=np.concatenate([self.age, fresh.age]),
            alive=np.concatenate([self.alive, fresh.alive]),
            images=torch.cat([self.images, fresh.images]),
            labels=torch.cat([self.labels, fresh.labels]),
            floor=torch.cat([self.floor, fresh.floor]),
            hit=torch.cat([self.hit, fresh.hit]),
            candidates=torch.cat([self.candidates, fresh.candidates]),
        )
