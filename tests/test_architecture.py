"""The shape of the house: floors, siblings, sizes, and who may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "robustbench_kd"
ROOT = Path(__file__).parent.parent / PACKAGE
COMPONENTS = ("attacks", "models", "defences", "datasets", "distill", "trust", "suites")
FLOORS = {"core": 0, "tensors": 1, **dict.fromkeys(COMPONENTS, 2), "checkpoints": 3}
FLOORS |= {"engine": 4, "training": 4, "analysis": 4, "cli": 5}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, inside functions and type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


IMPORTS = {module_of(path): imports_of(path) for path in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def inner(module: str) -> set[str]:
    """Modules of this package that a module imports."""
    return {name for name in IMPORTS[module] if name in IMPORTS and name != module}


@pytest.mark.parametrize("module", IMPORTS)
def test_no_module_imports_a_higher_floor(module):
    upward = {name for name in inner(module) if FLOORS.get(room(name), 9) > FLOORS.get(room(module), 9)}
    assert not upward


@pytest.mark.parametrize("module", [name for name in IMPORTS if room(name) in FLOORS and room(name) != "cli"])
def test_rooms_of_one_floor_do_not_know_each_other(module):
    same = {name for name in inner(module) if FLOORS[room(name)] == FLOORS[room(module)] and room(name) != room(module)}
    assert not same


@pytest.mark.parametrize("module", [name for name in IMPORTS if room(name) in COMPONENTS and name.count(".") == 2])
def test_component_siblings_do_not_import_each_other(module):
    own = f"{PACKAGE}.{room(module)}"
    siblings = {name for name in inner(module) if name.startswith(own) and name != own}
    assert not {name for name in siblings if not name.rpartition(".")[2].startswith("_")}


@pytest.mark.parametrize("module", [name for name in IMPORTS if name != PACKAGE])
def test_nobody_imports_the_package_root(module):
    assert PACKAGE not in inner(module)


@pytest.mark.parametrize("module", [name for name in IMPORTS if room(name) in {"core", "analysis"}])
def test_the_ground_floor_and_the_analysis_import_no_torch(module):
    assert not {name for name in IMPORTS[module] if name.split(".")[0] in {"torch", "torchvision"}}


@pytest.mark.parametrize("module", [name for name in IMPORTS if room(name) != "cli"])
def test_only_the_command_line_imports_click_and_rich(module):
    assert not {name for name in IMPORTS[module] if name.split(".")[0] in {"click", "rich"}}


def test_there_is_no_import_cycle():
    """Modules can be peeled off one by one, each only after all it imports."""
    left = {module: inner(module) for module in IMPORTS}
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_fit_on_their_pages(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 350
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in long.items() if lines > 60}


@pytest.mark.parametrize("path", [path for path in FILES if "cli" not in path.parts], ids=module_of)
def test_only_the_command_line_prints(path):
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--json"], ["leaderboard", "--help"]])
def test_commands_that_need_no_torch_do_not_import_it(arguments):
    code = f"import sys; sys.argv = ['rkd', *{arguments!r}]; from {PACKAGE}.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
