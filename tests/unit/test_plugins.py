"""Components are found by file name, without an import."""

import subprocess
import sys

import pytest

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import UsageError

CODE_KINDS = [
    "models",
    "datasets",
    "defences",
    "attacks",
    "distill",
    "trust",
    "training/methods",
    "cli",
]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of components of its own."""
    monkeypatch.setattr(plugins, "_ROOT", tmp_path)
    (tmp_path / "things").mkdir()

    def put(name, text):
        (tmp_path / "things" / name).write_text(text)

    return put


def test_a_file_is_a_component_and_its_first_line_its_summary(shelf):
    shelf("lamp.py", '"""Gives light.\n\nMore.\n"""\n')
    assert plugins.components("things") == {"lamp": plugins.Component("lamp", {}, "Gives light.")}


def test_a_file_may_serve_several_names(shelf):
    shelf(
        "lamp.py",
        '"""Gives light."""\nVARIANTS: dict = {"lamp-s": {"watt": 5}, "lamp-l": {"watt": 60}}\n',
    )
    found = plugins.components("things")
    assert {name: (one.stem, one.arguments) for name, one in found.items()} == {
        "lamp-s": ("lamp", {"watt": 5}),
        "lamp-l": ("lamp", {"watt": 60}),
    }


def test_shared_files_are_no_components_and_no_file_is_run(shelf):
    shelf("_shared.py", "raise AssertionError('imported')")
    shelf("broken.py", "raise AssertionError('imported')")
    assert list(plugins.components("things")) == ["broken"]
    assert plugins.components("things")["broken"].summary == ""


def test_an_unknown_name_comes_with_the_nearest(shelf):
    shelf("lamp.py", "")
    with pytest.raises(
        UsageError, match=r"unknown thing 'lamb': did you mean 'lamp'\? Known: lamp"
    ):
        plugins.find("things", "lamb", "thing")
    with pytest.raises(UsageError, match=r"unknown thing 'oven'\. Known: lamp"):
        plugins.find("things", "oven", "thing")


def test_names_are_sorted_by_file(shelf):
    for name in ("b.py", "a.py", "c.toml"):
        shelf(name, "")
    assert list(plugins.files("things")) == ["a", "b"]
    assert list(plugins.files("things", ".toml")) == ["c"]


@pytest.mark.parametrize("kind", CODE_KINDS)
def test_every_shipped_component_has_a_summary_and_a_name_of_its_own(kind):
    found = plugins.components(kind)
    stems = plugins.files(kind)
    assert found
    assert {one.stem for one in found.values()} == set(stems), "no name hides another"
    assert all(one.summary for one in found.values())


def test_finding_components_imports_none_of_them():
    program = (
        "import sys; from robustbench_kd.core import plugins\n"
        f"for kind in {CODE_KINDS}: plugins.components(kind)\n"
        "sys.exit('torch' in sys.modules or any('.models.' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
