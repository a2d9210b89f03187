"""JSON: every table with its runs, ranks, records and published numbers."""

import json

from robustbench_kd.analysis.leaderboard import Board, Leaderboard

SUFFIX = "json"


def render(leaderboard: Leaderboard) -> str:
    """Returns one object; accuracies are fractions, and each record is that of its `run.json`."""
    content = {
        "schema_version": 1,
        "boards": [_board(board) for board in leaderboard.boards],
        "left_out": leaderboard.left_out,
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _board(board: Board) -> dict[str, object]:
    runs = []
    for rank, record in zip(board.ranks, board.records, strict=True):
        runs.append({"rank": rank, "record": json.loads(record.model_dump_json())})
    return {
        "title": board.title,
        "protocol_hash": board.records[0].protocol_hash,
        "runs": runs,
        "published": [number.model_dump(mode="json") for number in board.published],
    }
