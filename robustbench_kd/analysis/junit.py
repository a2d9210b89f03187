"""A gate as JUnit XML, which every CI server shows: one test case per accuracy, new run and gap."""

from xml.etree import ElementTree as ET

from robustbench_kd.analysis.gate import Gap, Gate, JudgedAccuracy
from robustbench_kd.analysis.leaderboard import title
from robustbench_kd.analysis.paired import points
from robustbench_kd.analysis.runs import Run
from robustbench_kd.core.text import percent

_NAME = "rkd gate"


def render(gate: Gate) -> str:
    """Returns the XML.

    A regression is a failure, a gap an error, a run without baseline is skipped.
    """
    cases = [*map(_judged, gate.cells), *map(_new, gate.added), *map(_gap, gate.gaps)]
    counts = {
        "tests": str(len(cases)),
        "failures": str(len(gate.failures)),
        "errors": str(len(gate.gaps)),
        "skipped": str(len(gate.added)),
    }
    root = ET.Element("testsuites", {"name": _NAME, **counts})
    ET.SubElement(root, "testsuite", {"name": _NAME, **counts}).extend(cases)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _judged(cell: JudgedAccuracy) -> ET.Element:
    change = cell.change
    case = _case(cell.after.model, f"{change.name} accuracy, {title(cell.after.identity)}")
    if cell.reason:
        ET.SubElement(case, "failure", {"type": "regression", "message": cell.text})

    moved = f"{percent(change.before)} % to {percent(change.after)} %, {points(change)} points"
    output = ET.SubElement(case, "system-out")
    output.text = f"{moved}; lost: {_ids(change.lost)}; gained: {_ids(change.gained)}"
    return case


def _new(run: Run) -> ET.Element:
    case = _case(run.model, title(run.identity))
    ET.SubElement(case, "skipped", {"message": "new, without a baseline"})
    return case


def _gap(gap: Gap) -> ET.Element:
    case = _case(gap.model, gap.run)
    ET.SubElement(case, "error", {"type": "not judged", "message": gap.why})
    return case


def _case(model: str, name: str) -> ET.Element:
    """Returns a test case; all texts here are printable, which XML needs beside its escapes."""
    return ET.Element("testcase", {"classname": model, "name": name})


def _ids(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids)) or "none"
