"""What an unfinished training leaves on disk after each epoch, so that it goes on as if it had never stopped."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator
from torch import Tensor, optim

from robustbench_kd.core.errors import CheckpointError
from robustbench_kd.tensors import hashed_file
from robustbench_kd.training.events import Epoch, Trained
from robustbench_kd.training.training_state import TrainingState

_Tensors = dict[str, Tensor]
_HEADER = "training"


class _Past(BaseModel):
    """What is no tensor."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    identity: str
    best_epoch: PositiveInt
    history: tuple[Epoch, ...]

    @model_validator(mode="after")
    def _counts(self) -> "_Past":
        if [epoch.epoch for epoch in self.history] != list(range(1, len(self.history) + 1)):
            raise ValueError("expected every epoch once")
        if self.best_epoch > len(self.history):
            raise ValueError("expected the best epoch among those that are over")
        return self


@dataclass(frozen=True)
class TrainingCheckpoint:
    """The file of an unfinished training.

    `identity` says of what, from which weights on, and by which recipe.
    """

    path: Path
    identity: str

    def keep(self, course: TrainingState, trained: Trained) -> None:
        """Writes everything that changes in a training, whole or not at all.

        Raises `RecordError` where that fails.
        """
        past = _Past(identity=self.identity, best_epoch=trained.best_epoch, history=trained.history)
        groups = {
            "network": course.network.state_dict(),
            "helper": course.helper.state_dict(),
            "average": course.average,
            "best": trained.best_state,
            "optimiser": _optimiser_tensors(course.optimiser),
            "random": _random_states(course.generator),
        }
        tensors = {
            f"{group}/{name}": value
            for group, named in groups.items()
            for name, value in named.items()
        }
        hashed_file.write(self.path, tensors, {_HEADER: past.model_dump_json()})

    def recall(self, course: TrainingState) -> Trained | None:
        """Puts a training where it stopped, and returns its outcome so far.

        None where there is nothing to go on from. Raises `CheckpointError` for a file of another
        training, and for one that is damaged or does not fit.
        """
        if not self.path.exists():
            return None
        tensors, header = hashed_file.read(self.path)
        past = self._past(header)
        try:
            _restore(course, tensors)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"'{self.path}' does not fit this training ({reason}): delete it"
            ) from error
        return Trained(
            _named(tensors, "best"),
            past.best_epoch,
            past.history[past.best_epoch - 1].validation,
            past.history,
        )

    def forget(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)

    def _past(self, header: Mapping[str, str]) -> _Past:
        try:
            past = _Past.model_validate_json(header.get(_HEADER, ""))
        except ValidationError as error:
            raise CheckpointError(f"'{self.path}' is no unfinished training: delete it") from error
        if past.identity != self.identity:
            raise CheckpointError(
                f"'{self.path}' belongs to another training, by another recipe, seed, teacher, number of processes or on "
                "other data: finish it by the command that began it, choose another --name, or delete it"
            )
        return past


def _restore(course: TrainingState, tensors: _Tensors) -> None:
    device, average = next(course.network.parameters()).device, _named(tensors, "average")
    for state in (
        _named(tensors, "best"),
        average or _named(tensors, "best"),
        _named(tensors, "network"),
    ):
        # The last one counts; the others are refused here if they do not fit.
        course.network.load_state_dict(state)
    course.helper.load_state_dict(_named(tensors, "helper"))
    course.average.update({name: value.to(device) for name, value in average.items()})
    _restore_optimiser(course.optimiser, _named(tensors, "optimiser"))
    random = _named(tensors, "random")
    course.generator.set_state(random["lessons"])
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(
            [random[f"cuda:{number}"] for number in range(torch.cuda.device_count())]
        )


def _named(tensors: _Tensors, group: str) -> _Tensors:
    prefix = f"{group}/"
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _optimiser_tensors(optimiser: optim.Optimizer) -> _Tensors:
    """Returns what an optimiser remembers of each parameter; its settings are the recipe's."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}/{name}": value
        for number, remembered in state.items()
        for name, value in remembered.items()
        if value is not None
    }


def _restore_optimiser(optimiser: optim.Optimizer, tensors: _Tensors) -> None:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, _Tensors] = {}
    for key, value in tensors.items():
        number, _, name = key.partition("/")
        if value.shape not in {parameters[int(number)].shape, torch.Size()}:
            raise ValueError(f"what the optimiser knows of parameter {number} has another shape")
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict(
        {"state": state, "param_groups": optimiser.state_dict()["param_groups"]}
    )


def _random_states(generator: torch.Generator) -> _Tensors:
    states = {"lessons": generator.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {
            f"cuda:{number}": state for number, state in enumerate(torch.cuda.get_rng_state_all())
        }
    return states
