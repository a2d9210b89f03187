"""An HTML page: tables that sort at a click, in light and dark, for the screen and the phone."""

from robustbench_kd.analysis.leaderboard import Leaderboard
from robustbench_kd.analysis.page import render_page
from robustbench_kd.analysis.table import legend, tabulate

SUFFIX = "html"


def render(leaderboard: Leaderboard) -> str:
    """Returns the page; names are escaped, whatever they hold."""
    tables = [tabulate(board) for board in leaderboard.boards]
    return render_page("leaderboard.html", tables=tables, notes=legend(leaderboard.boards))
