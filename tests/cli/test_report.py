"""The command `rkd report`, and its page in a real browser where there is one."""

import json
import re
import shutil
import subprocess
import sys
from html import escape, unescape

import pytest
from fake_boards import HOSTILE, put, run
from fake_runs import Planted, store

from robustbench_kd.core.text import printable

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    "",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def test_a_report_is_written_beside_its_runs_and_its_path_printed(rkd, tmp_path):
    store(tmp_path, model="net")
    told = rkd("report", tmp_path)
    assert (told.code, told.stdout, told.stderr) == (0, f"{tmp_path / 'report.html'}\n", "")
    assert "net" in (tmp_path / "report.html").read_text()


def test_a_report_can_be_written_elsewhere_and_against_a_baseline(rkd, tmp_path):
    store(tmp_path / "before", model="net")
    store(tmp_path / "after", Planted(broken=frozenset({5})), model="net")
    told = rkd(
        "report",
        tmp_path / "after",
        "--baseline",
        tmp_path / "before",
        "--output",
        tmp_path / "pages" / "a.html",
    )
    assert told.stdout == f"{tmp_path / 'pages' / 'a.html'}\n"
    assert "Against the baseline" in (tmp_path / "pages" / "a.html").read_text()
    assert not (tmp_path / "after" / "report.html").exists()


def test_what_is_left_out_is_said(rkd, tmp_path):
    (store(tmp_path, model="net") / "run.json").write_text("{")
    told = rkd("report", tmp_path)
    assert told.code == 0
    assert "left out: " in told.stderr
    assert "is not a run record" in told.stderr


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--baseline", "nowhere"]])
def test_a_folder_that_is_not_there_is_an_error(rkd, arguments):
    assert "there is no results folder 'nowhere'" in rkd("report", *arguments).error(2)


def test_a_page_that_cannot_be_written_is_an_error(rkd, tmp_path):
    (tmp_path / "report.html").mkdir()
    assert f"cannot write '{tmp_path / 'report.html'}'" in rkd("report", tmp_path).error(2)


def test_the_report_loads_no_torch(tmp_path):
    store(tmp_path, model="net")
    command = ["-X", "importtime", "-m", "robustbench_kd", "report", str(tmp_path)]
    told = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert not re.search(r"\| +torch$", told.stderr, re.MULTILINE)


# In a browser

browser = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")


def browse(page, folder):
    """Opens a page and returns its final DOM and what it wrote to the console."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
    ]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900"]
    command = [CHROMIUM, *options, "--dump-dom", page.as_uri()]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return told.stdout, [line for line in told.stderr.splitlines() if "CONSOLE" in line]


def probed(page, script):
    """A copy of a page with a script of the test's own at its end, which the page's policy would
    refuse."""
    copy = page.with_name("probed.html")
    text = POLICY.sub("", page.read_text(encoding="utf-8"))
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return copy


def answer(dom):
    """What the test's script left on the page."""
    return json.loads(unescape(re.search(r'<html[^>]* data-answer="([^"]*)"', dom)[1]))


@pytest.fixture(scope="module")
def report(rkd, tmp_path_factory):
    """A page about twelve runs: ten with plain names and two with hostile ones."""
    results = tmp_path_factory.mktemp("results")
    for number in range(10):
        clean, robust = 0.9 - 0.01 * number, 0.1 + 0.05 * (number * 7 % 10)
        put(results, run(f"net-{number}", robust, clean=clean))
    for name in HOSTILE[1:4]:
        put(results, run(name, 0.01, clean=0.5))
    rkd("report", results)
    return results / "report.html"


@browser
def test_the_page_opens_without_a_complaint(report, tmp_path):
    dom, console = browse(report, tmp_path)
    assert console == []
    body = re.search(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', dom, re.DOTALL)[1]
    assert body.count("<tr>") == 13
    assert dom.count("<svg") == 3


SORT = """
const buttons = [...document.querySelectorAll("thead button")];
const heading = name => buttons.find(button => button.textContent === name);
const rows = () => [...document.querySelector("table.sortable").tBodies[0].rows];
const models = () => rows().map(row => row.cells[1].textContent);
const robust = () => rows().map(row => Number(row.cells[5].dataset.key));
const seen = { before: models() };
heading("model").click(); seen.model = models();
heading("model").click(); seen.back = models();
heading("robust %").click(); seen.robust = robust();
heading("robust %").focus(); seen.focus = document.activeElement.textContent;
const marked = [...document.querySelectorAll("[aria-sort]")];
seen.marked = marked.map(one => one.textContent + " " + one.ariaSort);
seen.requests = performance.getEntriesByType("resource").map(one => one.name);
seen.scripts = document.scripts.length;
seen.images = document.images.length;
document.documentElement.dataset.answer = JSON.stringify(seen);
"""


@browser
def test_tables_sort_at_a_click_and_nothing_is_fetched(report, tmp_path):
    dom, console = browse(probed(report, SORT), tmp_path)
    seen = answer(dom)
    assert console == []
    names = [f"net-{number}" for number in range(10)]
    assert [name for name in seen["model"] if name.startswith("net")] == names
    assert seen["back"] == seen["model"][::-1] != seen["before"]
    assert seen["robust"] == sorted(seen["robust"])
    assert seen["marked"] == ["robust % ascending"]
    assert seen["focus"] == "robust %"
    assert seen["requests"] == []
    assert (seen["scripts"], seen["images"]) == (2, 0), "its own script and the test's"
    assert {printable(name) for name in HOSTILE[1:4]} <= set(seen["model"])


PHONE = """<!DOCTYPE html><iframe width="390" height="800" srcdoc="{page}"></iframe><script>
document.querySelector("iframe").onload = event => {{
  const page = event.target.contentDocument, root = page.documentElement;
  const matrix = one => one.getScreenCTM();
  const scale = one => one.getScreenCTM ? Math.hypot(matrix(one).a, matrix(one).b) : 1;
  const letters = one => parseFloat(getComputedStyle(one).fontSize) * scale(one);
  const texts = [...page.querySelectorAll("p, td, th, li, svg text")];
  const shown = texts.filter(one => one.getBoundingClientRect().width);
  const small = shown.filter(one => letters(one) < 9).map(one => one.textContent);
  const answer = [root.clientWidth, root.scrollWidth, shown.length, small];
  document.documentElement.dataset.answer = JSON.stringify(answer);
}};
</script>"""


@browser
def test_a_phone_shows_the_page_without_scrolling_sideways_and_no_letter_too_small(
    report, tmp_path
):
    host = tmp_path / "phone.html"
    host.write_text(PHONE.format(page=escape(report.read_text(encoding="utf-8"))), encoding="utf-8")
    dom, _ = browse(host, tmp_path)
    width, needed, shown, small = answer(dom)
    assert needed == width <= 390, "a scroll bar takes some of it"
    assert shown > 100
    assert small == []


@browser
def test_the_policy_stops_a_script_that_is_not_the_pages_own(report, tmp_path):
    smuggled = report.with_name("smuggled.html")
    text = report.read_text(encoding="utf-8")
    smuggled.write_text(
        text.replace("</main>", "<script>document.title = 'taken'</script></main>"),
        encoding="utf-8",
    )
    dom, console = browse(smuggled, tmp_path)
    assert "<title>Robustness report</title>" in dom
    assert any("Content Security Policy" in line for line in console)
