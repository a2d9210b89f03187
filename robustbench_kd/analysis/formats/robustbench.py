"""RobustBench: a list of objects with the fields of its `model_info` files, one per run."""

import json

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.analysis.table import is_autoattack, mode
from robustbench_kd.core.records import Accuracy, RunRecord

SUFFIX = "robustbench.json"

_THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def render(leaderboard: Leaderboard) -> str:
    """Returns accuracies in percent as text, as RobustBench writes them.

    `--published` reads them back. `autoattack_acc` is there only where an exact run had all attacks
    of AutoAttack, `external` where adaptive attacks followed. What a paper would say (authors,
    venue, link) is left empty.
    """
    entries = []
    for board in leaderboard.boards:
        for record in board.records:
            entries.append(_entry(record))
    return json.dumps(entries, indent=2) + "\n"


def _entry(record: RunRecord) -> dict[str, str | bool]:
    identity = record.identity
    entry: dict[str, str | bool] = {
        "model_name": identity.model,
        "name": identity.model,
        "authors": "",
        "venue": "",
        "link": "",
        "dataset": identity.dataset,
        "threat_model": _THREATS.get(identity.norm, identity.norm),
        "eps": identity.eps_text,
        "architecture": identity.architecture,
        "clean_acc": _percent(record.clean),
        "reported": _percent(record.robust),
        "footnote": _footnote(record),
        "unreliable": record.verdict == "unreliable",
    }
    if is_autoattack(identity) and identity.mode == "exact":
        entry["autoattack_acc"] = _percent(record.standard or record.robust)
        if record.standard:
            entry["external"] = _percent(record.robust)
    return entry


def _footnote(record: RunRecord) -> str:
    identity = record.identity
    how = f"{identity.suite} by {identity.engine}, run {record.run_id}"
    about = f"{identity.examples} examples, {how}"
    return f"{mode(record)}; {about}" if mode(record) else about


def _percent(accuracy: Accuracy | None) -> str:
    return f"{100 * accuracy.value:.2f}" if accuracy else ""
