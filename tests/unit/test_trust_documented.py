"""docs/trust.md names every finding that the code can raise, and no other.

The ids are read from the source without running it. An id is the `check` of a `Finding`: a literal,
a constant, an element of a table, or an argument of any function or class that passes it on.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "robustbench_kd"
PAGE = ROOT / "docs" / "trust.md"
FIRST_CELL = re.compile(r"^\| `([a-z0-9-]+)`", re.MULTILINE)


def sources():
    """Returns the syntax trees of all modules of the package, by name."""
    trees = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


class Collector:
    """Follows the argument `check` from where a finding is made back to all texts that it may be.

    Fails, with the module and the line, if it cannot tell what an argument is.
    """

    def __init__(self, trees):
        self.trees = trees
        self.calls = [
            (module, call, around)
            for module, tree in trees.items()
            for call, around in calls_in(tree, ())
        ]
        self.parameters = {"Finding": []}  # of a callable, by its name
        for tree in trees.values():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    self.parameters[node.name] = parameters_of(node)

    def ids(self):
        """Returns all texts that the `check` of a finding may be."""
        found = set()
        takers = [("Finding", "check")]  # callables, and the parameter that becomes the check
        for taker, parameter in takers:
            for module, call, around in self.calls:
                if name_of(call.func) != taker:
                    continue
                argument = given(call, self.parameters[taker], parameter)
                for value in self.values(argument, module, around, call):
                    if isinstance(value, str):
                        found.add(value)
                    elif value not in takers:
                        takers.append(value)
        return found

    def values(self, node, module, around, call):
        """Yields the texts that an expression may be, and (callable, parameter) where callers say.

        `around` are the functions around the expression, the innermost first.
        """
        match node:
            case ast.Constant(value=str(text)):
                yield text
            case ast.IfExp():
                yield from self.values(node.body, module, around, call)
                yield from self.values(node.orelse, module, around, call)
            case ast.Name(id=name):
                yield from self.values_of_name(name, module, around, call)
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if self.imported(module, owner):
                yield from self.values_of_name(name, self.imported(module, owner), (), call)
            case ast.Attribute(attr=field):
                classes = [owner for owner, fields in self.parameters.items() if field in fields]
                yield from ((owner, field) for owner in classes if owner != "Finding")
            case _:
                pytest.fail(f"cannot tell the check of a finding in {module}, line {call.lineno}")

    def values_of_name(self, name, module, around, call):
        for index, function in enumerate(around):
            if name in parameters_of(function):
                yield function.name, name
                return
            values = list(bound(function, name))
            if values:
                for value in values:
                    yield from self.element(value, module, around[index:], call)
                return
        values = list(bound(self.trees[module], name))
        for value in values:
            yield from self.element(value, module, (), call)
        if not values:
            source = self.imported(module, name)
            where = f"{module}, line {call.lineno}"
            assert source, f"cannot tell what {name} is, the check of a finding in {where}"
            yield from self.values_of_name(name, source, (), call)

    def element(self, value, module, around, call):
        """Yields the texts of a bound value; one of a loop is (table, position)."""
        if not isinstance(value, tuple):
            yield from self.values(value, module, around, call)
            return
        table, position = value
        if isinstance(table, ast.Name):
            (table,) = bound(self.trees[module], table.id)
        assert isinstance(table, ast.Tuple | ast.List), f"no table of checks in {module}"
        for row in table.elts:
            cell = row if position is None else row.elts[position]
            yield from self.values(cell, module, around, call)

    def imported(self, module, name):
        """Returns the module of the package that a name comes from or is, None for any other."""
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        full = f"{node.module}.{alias.name}"
                        return full if full in self.trees else self.known(node.module)
        return None

    def known(self, module):
        return module if module in self.trees else None


def calls_in(node, around):
    """Yields every call below a node with the functions around it, the innermost first."""
    if isinstance(node, ast.Call):
        yield node, around
    if isinstance(node, ast.FunctionDef):
        around = (node, *around)
    for child in ast.iter_child_nodes(node):
        yield from calls_in(child, around)


def name_of(function):
    """Returns the last name of what is called."""
    return getattr(function, "attr", getattr(function, "id", ""))


def parameters_of(node):
    """Returns the names of a function's parameters without `self`, or of a class's fields."""
    if isinstance(node, ast.ClassDef):
        fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
        return [field.id for field in fields]
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in arguments if argument.arg not in {"self", "cls"}]


def given(call, parameters, name):
    """Returns the expression that a call gives to a parameter."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    position = parameters.index(name) if name in parameters else len(call.args)
    return call.args[position] if position < len(call.args) else None


def bound(scope, name):
    """Yields what a name is bound to in a function or module: an expression, or (table, position).

    A function inside the scope is a scope of its own.
    """
    for node in scope.body:
        yield from bound_by(node, name)


def bound_by(node, name):
    match node:
        case ast.FunctionDef() | ast.ClassDef() | ast.Lambda():
            return
        case ast.Assign(targets=[ast.Name(id=target)]) | ast.AnnAssign(target=ast.Name(id=target)):
            if target == name and node.value:
                yield node.value
        case ast.For() | ast.comprehension():
            yield from bound_by_loop(node, name)
    for child in ast.iter_child_nodes(node):
        yield from bound_by(child, name)


def bound_by_loop(loop, name):
    match loop.target:
        case ast.Name(id=target) if target == name:
            yield loop.iter, None
        case ast.Tuple(elts=parts):
            names = [getattr(part, "id", "") for part in parts]
            if name in names:
                yield loop.iter, names.index(name)


def raised():
    return Collector(sources()).ids()


def documented():
    return FIRST_CELL.findall(PAGE.read_text(encoding="utf-8"))


def test_every_finding_that_the_code_can_raise_is_documented():
    assert sorted(raised() - set(documented())) == []


def test_every_documented_finding_can_be_raised():
    assert sorted(set(documented()) - raised()) == []


def test_every_finding_is_documented_once():
    names = documented()
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


@pytest.mark.parametrize(
    "source",
    [
        "Finding(check='a')",
        "NAME = 'a'\ndef f():\n    return [Finding(check=NAME)]",
        "def f(x):\n    name = 'a' if x else 'a'\n    return Finding(check=name)",
        "def f(check, *, text): return Finding(check=check)\nf('a', text='b')",
        "def f(text, name): return Finding(check=name)\nf('b', 'a')\ndef g(): f('b', name='a')",
        "class C:\n    def f(self, name): return Finding(check=name)\nC().f('a')",
        "def f(n): return Finding(check=n)\ndef g(m): return f(m)\ng('a')",
        "T = (('b', 'a'), ('c', 'a'))\ndef f():\n    for x, y in T: Finding(check=y)",
        "T = ['a']\ndef f(): return [Finding(check=x) for x in T]",
        "class Flag:\n    check: str\n    text: str\nF = Flag('a', 'b')\nFinding(check=F.check)",
        "from other import NAME\nFinding(check=NAME)",
        "from other import NAME as name\nimport other\nFinding(check='a')",
        "from robustbench_kd import other\nFinding(check=other.NAME)",
    ],
)
def test_an_id_is_found_wherever_it_stands(source):
    other = ast.parse("NAME = 'a'")
    trees = {"one": ast.parse(source), "other": other, "robustbench_kd.other": other}
    assert Collector(trees).ids() == {"a"}


@pytest.mark.parametrize("source", ["Finding(check='a' + 'b')", "Finding(**made)"])
def test_an_id_that_cannot_be_read_is_a_failure(source):
    with pytest.raises(pytest.fail.Exception, match="cannot tell the check of a finding in one"):
        Collector({"one": ast.parse(source)}).ids()
