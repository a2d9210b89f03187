"""Code that a person names finds what `python file.py` and `python -m module` would find."""

import hashlib
import shutil
import sys

import pytest
import torch
from targets import DIGITS

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.imports import code_digest
from robustbench_kd.core.errors import CheckpointError, UsageError

SIBLING = """
import torch
from torch import nn

def make(classes=10):
    torch.manual_seed({seed})
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two folders of research code, each with a package of the same name."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for seed, name in enumerate(("first", "second")):
        package = tmp_path / name / "models"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "small.py").write_text(SIBLING.format(seed=seed))
        (package / "relative.py").write_text("from .small import make\n")
        (tmp_path / name / "script.py").write_text("from models.small import make\n")
        (tmp_path / name / "late.py").write_text(
            "def make():\n    from models.small import make as build\n    return build()\n"
        )
    return tmp_path


def weights(name):
    return build_network(name, {}, **DIGITS)[1].weight


@pytest.fixture(autouse=True)
def _modules():
    """Other tests see none of the modules."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def expected(seed):
    torch.manual_seed(seed)
    return torch.nn.Linear(64, 10).weight


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("first", "script.py:make"),
        ("first", "models.small:make"),
        ("first", "models/small.py:make"),
        ("first", "models/relative.py:make"),
        ("first", "late.py:make"),
        ("", "first/script.py:make"),
        ("", "first/late.py:make"),
        ("", "first/models/relative.py:make"),
        ("", "first.models.small:make"),
        ("second", "../first/script.py:make"),
    ],
)
def test_a_factory_finds_its_siblings_and_the_working_directory(
    repository, monkeypatch, folder, name
):
    monkeypatch.chdir(repository / folder)
    before = list(sys.path)
    assert torch.equal(weights(name), expected(0))
    assert sys.path == before


def test_the_import_path_is_restored_where_an_import_or_a_factory_fails(repository):
    (repository / "fails.py").write_text("import models.missing\n")
    (repository / "raises.py").write_text("def make():\n    import missing_sibling\n")
    before = list(sys.path)
    with pytest.raises(UsageError, match="install it, or put it beside the file"):
        weights(f"{repository / 'fails.py'}:make")
    with pytest.raises(CheckpointError, match="missing_sibling"):
        weights(f"{repository / 'raises.py'}:make")
    assert sys.path == before


def test_what_the_code_puts_on_the_import_path_stays(repository):
    (repository / "adds.py").write_text(
        f"import sys\nsys.path.append({str(repository / 'first')!r})\n"
        "def make():\n    from models.small import make as build\n    return build()\n"
    )
    before = list(sys.path)
    assert torch.equal(weights(f"{repository / 'adds.py'}:make"), expected(0))
    assert sys.path == [*before, str(repository / "first")]


@pytest.mark.parametrize("regular", [True, False])
def test_packages_of_one_name_in_two_folders_are_not_mixed_up(repository, monkeypatch, regular):
    if not regular:
        (repository / "elsewhere" / "models").mkdir(parents=True)
        monkeypatch.setattr(sys, "path", [*sys.path, str(repository / "elsewhere")])
        for folder in ("first", "second"):
            (repository / folder / "models" / "__init__.py").unlink()
            (repository / folder / "models" / "relative.py").unlink()
    for folder, file, seed in (
        ("first", "script", 0),
        ("second", "script", 1),
        ("first", "late", 0),
        ("second", "late", 1),
    ):
        name = f"{repository / folder / file}.py:make"
        assert torch.equal(weights(name), expected(seed)), name


def test_what_is_installed_below_the_folder_of_a_file_is_imported_once(repository, monkeypatch):
    installed = repository / "venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "once_only.py").write_text("")
    monkeypatch.syspath_prepend(installed)
    (repository / "uses.py").write_text("import once_only\nfrom first.models.small import make\n")
    weights(f"{repository / 'uses.py'}:make")
    before = sys.modules["once_only"]
    weights(f"{repository / 'second' / 'script.py'}:make")
    assert sys.modules["once_only"] is before


# The digest of the code


@pytest.mark.parametrize(
    ("name", "sibling"),
    [
        ("first/script.py:make", "first/models/small.py"),
        ("first/late.py:make", "first/models/small.py"),
        ("first/models/relative.py:make", "first/models/small.py"),
        ("first.script:make", None),
        ("first/models/small.py:make", None),
    ],
)
def test_the_digest_of_code_covers_what_it_imports_from_beside_itself(
    repository, monkeypatch, name, sibling
):
    monkeypatch.chdir(repository)
    (repository / "first" / "script.py").write_text(
        "import torch\nfrom models.small import make\n"
        if sibling
        else "from pathlib import Path\ndef make():\n    return Path()\n"
    )
    before = code_digest(name)
    if sibling is None:
        file = repository / (name.partition(":")[0].removesuffix(".py").replace(".", "/") + ".py")
        assert before == hashlib.sha256(file.read_bytes()).hexdigest()
        return
    (repository / "second" / "models" / "small.py").write_text("changed = 1\n")
    assert code_digest(name) == before
    (repository / sibling).write_text(SIBLING.format(seed=7))
    assert code_digest(name) != before


def test_the_digest_of_code_is_that_of_any_copy(repository, monkeypatch, tmp_path_factory):
    copy = shutil.copytree(repository / "first", tmp_path_factory.mktemp("other") / "elsewhere")
    assert code_digest(f"{repository}/first/script.py:make") == code_digest(
        f"{copy}/script.py:make"
    )
