"""Shows what masks the gradients of a defence: a short tree of places and surfaces."""

from typing import TYPE_CHECKING

from rich.text import Text
from rich.tree import Tree

from robustbench_kd.cli import _console

if TYPE_CHECKING:
    from robustbench_kd.engine.probing.anatomy import Anatomy, Found


def show(anatomy: "Anatomy") -> None:
    """Writes the tree, nothing where the gradients of the defence are the best ones."""
    from robustbench_kd.engine.probing.anatomy import place_text

    if anatomy.own is None:
        return
    tree = Tree(Text("anatomy", style="bold"))
    places = tree.add("what the images go through")
    for part in anatomy.parts:
        places.add(_console.plain(f"{place_text(part)}: {part.what}"))

    attacked = tree.add("what a short attack breaks there")
    for one in (anatomy.own, *anatomy.found):
        attacked.add(_console.plain(_outcome(one)))
    if not anatomy.found:
        tree.add("no surface is better than the defence itself")
    _console.show(tree)


def facts(anatomy: "Anatomy") -> dict[str, object]:
    """Returns the anatomy as JSON."""
    tried = [anatomy.own, *anatomy.found] if anatomy.own else []
    return {
        "passes": anatomy.passes,
        "parts": [
            {"module": part.module, "line": part.line, "what": part.what} for part in anatomy.parts
        ],
        "surfaces": [
            {
                "name": one.surface.name,
                "broken": one.broken,
                "tried": one.tried,
                "gain": one.gain,
            }
            for one in tried
        ],
    }


def _outcome(one: "Found") -> str:
    return (
        f"{one.surface.name}: {one.broken} of {one.tried} tries; a step gains {one.gain:.0%} of "
        "what the gradient promises"
    )
