"""The state of an unfinished training on disk, from which it continues with equal results."""

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
    """Everything except tensors."""

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

    `identity` stands for the data, the first weights and the recipe.
    """

    path: Path
    identity: str

    def keep(self, current: TrainingState, trained: Trained) -> None:
        """Writes everything that changes in a training, whole or not at all.

        Raises `RecordError` if it cannot be written.
        """
        past = _Past(identity=self.identity, best_epoch=trained.best_epoch, history=trained.history)
        groups = {
            "network": current.network.state_dict(),
            "helper": current.helper.state_dict(),
            "average": current.average,
            "best": trained.best_state,
            "optimiser": _optimiser_tensors(current.optimiser),
            "random": _random_states(current.generator),
        }
        tensors = {}
        for group, named in groups.items():
            for name, value in named.items():
                tensors[f"{group}/{name}"] = value
        hashed_file.write(self.path, tensors, {_HEADER: past.model_dump_json()})

    def recall(self, current: TrainingState) -> Trained | None:
        """Restores a training as it stopped, and returns its outcome so far.

        Returns None where there is no file. Raises `CheckpointError` for a file of another
        training, and for one that is damaged or does not fit.
        """
        if not self.path.exists():
            return None
        tensors, header = hashed_file.read(self.path)
        past = self._past(header)
        try:
            _restore(current, tensors)
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
                f"'{self.path}' belongs to another training, by another recipe, seed, teacher, "
                "number of processes or on other data: finish it by the command that began it, "
                "choose another --name, or delete it"
            )
        return past


def _restore(current: TrainingState, tensors: _Tensors) -> None:
    device = next(current.network.parameters()).device
    best, average = _named(tensors, "best"), _named(tensors, "average")
    # The last one counts; the others are refused here if they do not fit.
    for state in (best, average or best, _named(tensors, "network")):
        current.network.load_state_dict(state)
    current.helper.load_state_dict(_named(tensors, "helper"))
    current.average.update({name: value.to(device) for name, value in average.items()})
    _restore_optimiser(current.optimiser, _named(tensors, "optimiser"))
    random = _named(tensors, "random")
    current.generator.set_state(random["lessons"])
    torch.set_rng_state(random["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(
            [random[f"cuda:{number}"] for number in range(torch.cuda.device_count())]
        )


def _named(tensors: _Tensors, group: str) -> _Tensors:
    prefix = f"{group}/"
    named = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            named[name.removeprefix(prefix)] = value
    return named


def _optimiser_tensors(optimiser: optim.Optimizer) -> _Tensors:
    """Returns the state of an optimiser for each parameter; the recipe has its settings."""
    state = optimiser.state_dict()["state"]
    tensors = {}
    for number, remembered in state.items():
        for name, value in remembered.items():
            if value is not None:
                tensors[f"{number}/{name}"] = value
    return tensors


def _restore_optimiser(optimiser: optim.Optimizer, tensors: _Tensors) -> None:
    parameters: list[Tensor] = []
    for group in optimiser.param_groups:
        parameters += group["params"]
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
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"cuda:{number}"] = state
    return states
