"""The contract of attacks: every file of `attacks/`, and the worked example of the documents.

A new attack is found by itself. Each promise of `tensors/attack.py` is a test here.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from oracles import told

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.plugins import components, module
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import (
    Attack,
    AttackState,
    Rows,
    begin_at_random,
    join,
    put,
    row_fields,
    take,
)
from robustbench_kd.tensors.geometry import inside

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "ARCHITECTURE.md"
THREATS = {Norm.LINF: "linf:0.1", Norm.L2: "l2:0.7", Norm.L1: "l1:3"}
SHORT = {"steps": 12, "queries": 40}  # settings that make any attack short
N, CLASSES, SHAPE = 6, 5, (3, 6, 6)


@dataclass(frozen=True)
class Case:
    """An attack under a norm that it knows."""

    name: str
    attack: Attack
    threat: Threat

    @property
    def norm(self):
        return self.threat.norm

    @property
    def schedule(self):
        return self.attack.schedule(self.norm)

    def begin(self, rows, seed=0):
        return begin_at_random(self.attack, rows, self.threat, seed)


def example():
    """The worked example of the documents, as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    found = ModuleType("fgsm")
    exec(code, vars(found))
    return code, found


def shortened(make, arguments):
    names = {field.name for field in dataclasses.fields(make)}
    return make(**arguments, **{name: SHORT[name] for name in SHORT.keys() & names})


def attacks():
    """Every attack by name, short; targeted and restarted ones with more than one restart."""
    for name, component in components("attacks").items():
        yield name, shortened(module("attacks", component.stem).component, component.arguments)
    yield "fgsm", shortened(example()[1].component, {})
    apgd, fab = (module("attacks", stem).component for stem in ("apgd", "fab"))
    yield "apgd-ce with a large radius", apgd(loss="ce", steps=20, large_radius=True)
    yield "fab-t with restarts", fab(targeted=True, restarts=2, steps=12)


class Curved(torch.nn.Module):
    """Logits with a bend, summed row by row so that a row does not depend on its batch."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        pixels = torch.Size(SHAPE).numel()
        self.weight = torch.randn(classes, pixels, generator=generator)

    def forward(self, images):
        bent = torch.tanh(images.flatten(1)[:, None] * self.weight.to(images.dtype))
        return bent.sum(dim=2)


def rows_of(model, n=N, restarts=1):
    images = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(3))
    logits = model(images)
    ids = torch.arange(100, 100 + n)
    return Rows(images, logits.argmax(dim=1), logits, ids, torch.arange(n) % restarts)


def some(rows, chosen):
    return Rows(*(getattr(rows, field.name)[chosen] for field in dataclasses.fields(rows)))


def path(case, rows, model):
    """All points that restarts ask for, `(points, n, c, h, w)`."""
    state = case.begin(rows)
    points = []
    for wanted in case.schedule:
        points.append(state.ask())
        state = state.tell(*told(state, model, wanted))
    return torch.stack(points)


def named(found):
    return [pytest.param(case, id=f"{case.name}-{case.norm}") for case in found]


def is_refused(case):
    try:
        case.begin(rows_of(Curved()))
    except UsageError:
        return True
    return False


EVERY = [
    Case(name, attack, Threat.parse(threat))
    for name, attack in attacks()
    for threat in THREATS.values()
]
REFUSED = [case for case in EVERY if is_refused(case)]
CASES = [case for case in EVERY if case not in REFUSED]
IN_THE_BALL = [case for case in CASES if case.attack.stays_in_ball(case.norm)]
CHOOSY = [case for case in CASES if case.attack.least_classes() > 2]
REPLACED = [case for case in CASES if case.attack.substitute()]


@pytest.fixture(params=named(CASES))
def case(request):
    """Every attack under every norm that it does not refuse."""
    return request.param


@pytest.fixture
def model():
    return Curved()


@pytest.fixture
def rows(case, model):
    return rows_of(model, restarts=case.attack.restart_count(case.norm, CLASSES))


def test_the_worked_example_fits_into_40_lines_and_is_typed():
    code, found = example()
    assert len([line for line in code.splitlines() if line]) < 40
    assert isinstance(found.component(), Attack)


def test_an_attack_is_a_frozen_value_whose_repr_shows_its_settings(case):
    assert isinstance(case.attack, Attack)
    with pytest.raises(dataclasses.FrozenInstanceError):
        case.attack.steps = 1
    for field in dataclasses.fields(case.attack):
        assert f"{field.name}={getattr(case.attack, field.name)!r}" in repr(case.attack)


def test_every_field_of_a_state_leads_with_the_row_or_is_marked(case, rows):
    state = case.begin(rows)
    names = row_fields(state)
    assert "labels" in names
    for name in names:
        assert isinstance(getattr(state, name), torch.Tensor), name
        assert len(getattr(state, name)) == N, name


def test_a_restart_asks_for_as_many_points_as_its_schedule_says(case, rows, model):
    points = path(case, rows, model)
    assert points.shape == (len(case.schedule), N, *SHAPE)
    assert points.dtype == rows.images.dtype
    assert ((points >= 0) & (points <= 1)).all()


@pytest.mark.parametrize("case", named(IN_THE_BALL))
def test_points_stay_in_the_ball_where_the_attack_promises_it(case, model):
    rows = rows_of(model)
    for points in path(case, rows, model):
        assert inside(points, rows.images, case.threat.eps, case.norm).all()


def test_a_point_without_a_wanted_gradient_is_told_none_or_zeros(case, rows, model):
    state = case.begin(rows)
    for wanted in case.schedule:
        logits, values, gradient = told(state, model, wanted)
        assert values.shape[1] == N
        if not wanted:
            zeros = torch.zeros(len(values), *rows.images.shape)
            assert torch.equal(
                state.tell(logits, values, None).ask(), state.tell(logits, values, zeros).ask()
            )
        state = state.tell(logits, values, gradient)


def test_a_row_asks_the_same_in_a_batch_of_any_size(case, rows, model):
    together = path(case, rows, model)
    for size in (1, 4):
        parts = [path(case, some(rows, part), model) for part in torch.split(torch.arange(N), size)]
        assert torch.equal(torch.cat(parts, dim=1), together)


def test_a_row_asks_the_same_among_others_in_any_order(case, rows, model):
    chosen = torch.tensor([4, 1, 2])
    assert torch.equal(path(case, some(rows, chosen), model), path(case, rows, model)[:, chosen])


@dataclass
class Batch:
    """A state with the row and the age of each of its rows."""

    state: AttackState
    rows: list[int]
    ages: list[int]

    def take(self, places):
        return Batch(
            take(self.state, torch.tensor(places, dtype=torch.int64)),
            [self.rows[place] for place in places],
            [self.ages[place] for place in places],
        )

    def join(self, other):
        return Batch(join(self.state, other.state), self.rows + other.rows, self.ages + other.ages)


def test_rows_that_join_leave_return_and_change_places_ask_the_same(case, rows, model):
    """A row joins at every third step, the first one is set aside for a while, and all turn."""
    expected = path(case, rows, model)
    schedule = torch.tensor(case.schedule)
    fresh = Batch(case.begin(rows), list(range(N)), [0] * N)
    batch, aside, finished = fresh.take([0, 1]), None, []

    for step in range(4 * N + len(schedule)):
        if step % 3 == 2 and step // 3 + 2 < N:
            batch = batch.join(fresh.take([step // 3 + 2]))
        if step == 4:
            aside, batch = batch.take([0]), batch.take(range(1, len(batch.rows)))
        if step == 9:
            batch = batch.join(aside)

        going = [place for place, age in enumerate(batch.ages) if age < len(schedule)]
        finished += [
            row for row, age in zip(batch.rows, batch.ages, strict=True) if age == len(schedule)
        ]
        batch = batch.take(going[::-1])
        if not batch.rows:
            break
        points = batch.state.ask()
        for place, (row, age) in enumerate(zip(batch.rows, batch.ages, strict=True)):
            assert torch.equal(points[place], expected[age, row])
        wanted = schedule[torch.tensor(batch.ages)]
        batch.state = batch.state.tell(*told(batch.state, model, wanted))
        batch.ages = [age + 1 for age in batch.ages]

    assert sorted(finished) == list(range(N))


def test_a_row_that_is_put_in_place_of_another_begins_afresh(case, rows, model):
    expected = path(case, rows, model)
    state = fresh = case.begin(rows)
    for wanted in case.schedule[:3]:
        state = state.tell(*told(state, model, wanted))
    state = put(state, torch.tensor([2]), take(fresh, torch.tensor([5])))
    assert torch.equal(state.ask()[2], expected[0, 5])
    assert torch.equal(state.ask()[3], expected[3, 3])


def test_telling_changes_no_earlier_state_and_nothing_that_is_told(case, rows, model):
    state = case.begin(rows)
    before = {name: getattr(state, name).clone() for name in row_fields(state)}
    answer = told(state, model, case.schedule[0])
    copies = [None if part is None else part.clone() for part in answer]
    state.tell(*answer)
    assert all(torch.equal(getattr(state, name), value) for name, value in before.items())
    for part, copy in zip(answer, copies, strict=True):
        assert part is None or torch.equal(part, copy)


def test_start_points_follow_from_the_names_alone(case, rows):
    points = case.attack.start_points(rows, case.threat, 7)
    chosen = torch.tensor([3, 0])
    again = case.attack.start_points(some(rows, chosen), case.threat, 7)
    assert torch.equal(again, points[chosen])
    assert ((points >= 0) & (points <= 1)).all()


def test_restarts_begin_where_they_are_told_to(case, rows):
    points = rows.images.flip(0)
    assert torch.equal(case.attack.begin(rows, case.threat, points, 0).ask(), points)


def test_nothing_waits_for_the_values_of_a_tensor(case):
    """Tensors on the meta device have none, as a GPU must not be asked for them."""
    with torch.device("meta"):
        images = torch.empty(N, *SHAPE)
        logits = torch.empty(N, CLASSES)
        ids = torch.zeros(N, dtype=torch.int64)
        state = case.attack.begin(Rows(images, ids, logits, ids, ids), case.threat, images, 0)
        for wanted in (case.schedule[0], case.schedule[1]):
            values = state.objective(logits)
            gradient = torch.empty(len(values), *images.shape) if wanted else None
            state = state.tell(logits, values, gradient)
        assert state.ask().shape == images.shape


def test_the_least_number_of_classes_is_enough(case):
    classes = case.attack.least_classes()
    model = Curved(classes)
    assert case.attack.restart_count(case.norm, classes) >= 1
    assert len(path(case, rows_of(model), model)) == len(case.schedule)


@pytest.mark.parametrize("case", named(CHOOSY))
def test_fewer_classes_are_refused_in_one_line(case):
    least = case.attack.least_classes()
    with pytest.raises(UsageError, match=rf"^expected at least {least} classes[^\n]*$"):
        case.begin(rows_of(Curved(least - 1)))


@pytest.mark.parametrize("case", named(REPLACED))
def test_a_substitute_is_an_attack_for_fewer_classes(case):
    component = components("attacks")[case.attack.substitute()]
    substitute = module("attacks", component.stem).component(**component.arguments)
    assert substitute.least_classes() < case.attack.least_classes()


@pytest.mark.parametrize("case", named(REFUSED))
def test_a_norm_is_refused_in_one_line(case):
    with pytest.raises(UsageError, match=r"^expected [^\n]*, got l[^\n]*$"):
        case.begin(rows_of(Curved()))


def test_float64_images_stay_float64(case, model):
    rows = rows_of(model)
    exact = Rows(rows.images.double(), rows.labels, rows.logits.double(), rows.ids, rows.restart)
    assert path(case, exact, model).dtype == torch.float64
