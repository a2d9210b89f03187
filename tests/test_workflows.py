"""Workflows and actions: what they call exists, and nothing that others write can act in them."""

import os
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github").rglob("*.yml"))
ACTION = ROOT / ".github" / "actions" / "rkd-gate" / "action.yml"
WORKFLOWS = [path for path in FILES if path.parent.name == "workflows"]


def named(path):
    return str(path.relative_to(ROOT / ".github"))


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(content):
    """All steps of a workflow or of a composite action."""
    jobs = content.get("jobs", {"": content.get("runs")}).values()
    return [step for job in jobs for step in job["steps"]]


def scripts(path):
    return [step["run"].replace("\\\n", " ") for step in steps(read(path)) if "run" in step]


def options(command):
    found = import_module(f"robustbench_kd.cli.{command}").command.params
    return {name for option in found for name in [*option.opts, *option.secondary_opts]}


def test_there_are_workflows_and_the_action():
    assert [named(path) for path in FILES] == [
        "actions/rkd-gate/action.yml",
        "workflows/ci.yml",
        "workflows/gpu-regression.yml",
    ]


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_a_workflow_may_only_read_and_never_runs_a_fork_with_secrets(path):
    content = read(path)
    triggers = content[True]  # YAML 1.1 reads `on` as a truth value
    assert content["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in content["jobs"].values())
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & set(triggers)
    assert content["concurrency"]["group"]
    assert all("timeout-minutes" in job for job in content["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_a_machine_of_ones_own_runs_no_code_of_a_fork(path):
    for job in read(path)["jobs"].values():
        if "self-hosted" in job["runs-on"]:
            assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_no_expression_is_pasted_into_a_script(path):
    assert [script for script in scripts(path) if "${{" in script] == []


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_action_is_pinned_and_says_its_version(path):
    lines = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert lines
    assert all(
        line.startswith("./") or re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\S+", line)
        for line in lines
    )


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_checkout_leaves_no_token_behind(path):
    found = [
        step for step in steps(read(path)) if step.get("uses", "").startswith("actions/checkout@")
    ]
    assert all(step["with"]["persist-credentials"] is False for step in found)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_make_target_exists(path):
    targets = set(
        re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    called = {found for script in scripts(path) for found in re.findall(r"\bmake ([\w-]+)", script)}
    assert called <= targets
    assert called or path not in WORKFLOWS


@pytest.mark.parametrize("path", FILES, ids=named)
def test_every_option_of_rkd_exists(path):
    for script in scripts(path):
        commands = set(re.findall(r"^\s*rkd (\w+)", script, re.MULTILINE))
        known = set().union(*map(options, commands))
        assert set(re.findall(r"--[a-z][a-z-]+", script)) <= known


def test_the_action_uses_all_its_inputs():
    used = set(re.findall(r"\$\{\{ inputs\.([\w-]+) \}\}", ACTION.read_text(encoding="utf-8")))
    assert used == set(read(ACTION)["inputs"])


@pytest.mark.parametrize(
    ("threats", "typed"),
    [("", []), ("linf:8/255\nl2:0.5 ", ["--threat=linf:8/255", "--threat=l2:0.5"])],
)
def test_the_action_types_what_its_inputs_say_and_nothing_they_hold_acts(tmp_path, threats, typed):
    hostile = "$(touch taken);`touch taken`"
    stub = tmp_path / "bin" / "rkd"
    stub.parent.mkdir()
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@" > "$1.txt"\n')
    stub.chmod(0o755)
    content = read(ACTION)
    given = {name: field.get("default", "") for name, field in content["inputs"].items()}
    given |= {"targets": f"a.toml\n  b.toml {hostile}", "threats": threats, "baseline": hostile}
    for step in steps(content):
        if "run" in step:
            values = {
                name: given[text.split(".")[1].removesuffix(" }}")]
                for name, text in step["env"].items()
            }
            environment = values | {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
            subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step["run"]],
                env=environment,
                cwd=tmp_path,
                check=True,
            )
    told = (tmp_path / "eval.txt").read_text().splitlines()
    assert told[1:] == [
        *typed,
        *("--suite", "standard", "--examples", "all", "--results", "rkd-results", "--"),
        *("a.toml", "b.toml", *hostile.split()),
    ]
    assert (tmp_path / "gate.txt").read_text().splitlines()[:5] == [
        *("gate", "rkd-results", "--baseline", hostile, "--tolerance"),
    ]
    assert not (tmp_path / "taken").exists()
