"""The rooms of the house.

Layers never point upwards, files and functions stay small. Every test names all offenders.
"""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "robustbench_kd"
ROOT = Path(__file__).parents[1] / PACKAGE
COMPONENTS = {"attacks", "models", "defences", "datasets", "distill", "trust", "suites"}
FOURTH = {"engine", "similarity", "training", "analysis"}
FLOORS = {
    "core": 0,
    "tensors": 1,
    **dict.fromkeys(COMPONENTS, 2),
    "checkpoints": 3,
    **dict.fromkeys(FOURTH, 4),
    "cli": 5,
}
# The rooms of the engine from the top down; a room imports only rooms below it.
DOORS = {"evaluate", "decide", "inspect", "forecast", "clean_pass", "engines"}
ROOMS = [
    "record",
    "reverify",
    "native",
    "autoattack",
    "judging",
    "probing",
    "anatomy",
    "workers",
    "run",
    "passes",
]
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 350, 50


def module(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in sorted(ROOT.rglob("*.py"))}
INSIDE = sorted(set(MODULES) - {PACKAGE, f"{PACKAGE}.__main__"})


@cache
def tree(name):
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name) -> Iterator[str]:
    """Every module that a module imports, wherever it does so.

    `from package import module` counts as the module.
    """
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (found.name for found in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{found.name}" for found in node.names]
            yield from (
                one if one in MODULES else f"{'.' * node.level}{node.module}" for one in full
            )


@cache
def ours(name):
    return frozenset(found for found in imports(name) if found.partition(".")[0] == PACKAGE)


def room(name):
    """The folder of the package that a module lives in; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def neighbours(own):
    """The rooms on the same floor that a room must not know."""
    return next((floor - {own} for floor in (COMPONENTS, FOURTH) if own in floor), set())


def offenders(wrong):
    """The imports within the package for which `wrong(importer, imported)` holds."""
    return [(name, found) for name in INSIDE for found in sorted(ours(name)) if wrong(name, found)]


def test_every_folder_is_a_known_room():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(FLOORS)
    assert len(INSIDE) > 50


def test_nobody_imports_the_package_root_nor_relatively():
    assert offenders(lambda _, found: found == PACKAGE) == []
    assert [name for name in MODULES if any(found.startswith(".") for found in imports(name))] == []


def test_no_file_imports_from_a_floor_above():
    assert offenders(lambda name, found: FLOORS[room(found)] > FLOORS[room(name)]) == []


def test_neighbours_on_a_floor_do_not_know_each_other():
    assert offenders(lambda name, found: room(found) in neighbours(room(name))) == []


def test_components_of_a_folder_share_only_its_underscore_files():
    def a_sibling(name, found):
        within = room(name) in COMPONENTS and room(found) == room(name)
        return within and not found.rpartition(".")[2].startswith("_")

    assert offenders(a_sibling) == []


def engine_room(name):
    """The room of the engine that a module lives in, `doors` for those at its top, else empty."""
    parts = name.split(".")
    if parts[1:2] != ["engine"] or len(parts) == 2:
        return ""
    return "doors" if parts[2] in DOORS else parts[2]


def test_the_engine_has_no_room_that_nobody_planned():
    entries = {path.stem for path in (ROOT / "engine").iterdir() if path.stem[0] != "_"}
    assert entries == DOORS | set(ROOMS)


def test_a_room_of_the_engine_imports_only_rooms_below_it():
    order = {room: position for position, room in enumerate(["doors", *ROOMS])}

    def upwards(name, found):
        importer, imported = engine_room(name), engine_room(found)
        return bool(importer and imported) and order[imported] < order[importer]

    assert offenders(upwards) == []


def test_the_rooms_of_the_engine_form_six_floors_at_most():
    arrows = {room: set() for room in ["doors", *ROOMS]}
    for name in INSIDE:
        for found in ours(name):
            importer, imported = engine_room(name), engine_room(found)
            if importer and imported and importer != imported:
                arrows[importer].add(imported)
    floors = {}
    for room in TopologicalSorter(arrows).static_order():
        floors[room] = 1 + max((floors[below] for below in arrows[room]), default=0)
    assert max(floors.values()) <= 6, floors


def test_imports_run_in_no_circle():
    graph = {name: ours(name) - {name} for name in MODULES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("torch", set(FLOORS) - {"core", "analysis"}),
        ("numpy", set(FLOORS) - {"core"}),
        ("torchvision", {"datasets", "checkpoints"}),
        ("sklearn", {"datasets"}),
        ("pyautoattack", {"checkpoints"}),
        ("click", {"cli"}),
        ("rich", {"cli"}),
        ("matplotlib", {"analysis"}),
        ("jinja2", {"analysis"}),
    ],
)
def test_a_library_is_used_only_where_it_belongs(library, allowed):
    users = {
        name for name in INSIDE if library in {found.partition(".")[0] for found in imports(name)}
    }
    assert {name for name in users if room(name) not in allowed} == set()


def test_files_stay_short():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_functions_stay_short():
    functions = [
        (name, node)
        for name in MODULES
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    lengths = {(name, node.name): 1 + node.end_lineno - node.lineno for name, node in functions}
    assert {
        place: lines for place, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION
    } == {}


def test_only_the_command_line_prints():
    calls = [
        (name, node.lineno)
        for name in INSIDE
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert [place for place in calls if room(place[0]) != "cli"] == []


def test_every_file_begins_with_what_it_is():
    assert [name for name in MODULES if not ast.get_docstring(tree(name))] == []
