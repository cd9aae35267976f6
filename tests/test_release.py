"""A tag, the version in pyproject.toml and CHANGELOG.md agree before anything is released; workflows run what exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def released(tmp_path):
    """The release script on a copy that git knows nothing of, as far as the names: (status, stderr)."""
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")

    def run(tag: str) -> tuple[int, str]:
        ran = subprocess.run(
            [tmp_path / ".ci" / "release", tag, "--names-only"],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            encoding="utf-8",
        )
        return ran.returncode, ran.stderr

    return run


def test_a_tag_is_the_version_and_has_its_section_of_the_changelog(released, tmp_path):
    changes = tmp_path / "CHANGELOG.md"
    text = changes.read_text("utf-8")
    changes.write_text(text.replace(f"## [{VERSION}]", "## [0]"), "utf-8")
    status, err = released(f"v{VERSION}")
    assert status == 2 and f"CHANGELOG.md has no section ## [{VERSION}]" in err
    changes.write_text(f"{text}\n## [{VERSION}] - 2026-01-01\n", "utf-8")
    assert released(f"v{VERSION}") == (0, "")
    for tag in ("v9.9.9", VERSION, f"v{VERSION}.1", ""):
        status, err = released(tag)
        assert status != 0 and len(err.splitlines()) == 1
    status, err = released("v9.9.9")
    assert f'set version = "9.9.9" there, or tag v{VERSION}' in err
    # What the line says works.
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text("utf-8").replace(f'"{VERSION}"', '"9.9.9"', 1), "utf-8")
    changes.write_text(f"{text}\n## [9.9.9]\n", "utf-8")
    assert released("v9.9.9") == (0, "")


def lines_of(workflow: Path) -> list[str]:
    jobs = yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_what_a_workflow_runs_is_there(workflow):
    text, lines = workflow.read_text("utf-8"), lines_of(workflow)
    assert lines
    for name in re.findall(r"\.ci/\w+", "\n".join(lines)):
        assert os.access(ROOT / name, os.X_OK), name
    # What others name never becomes part of a shell line: it comes as a variable.
    assert not re.search(r"\$\{\{", "\n".join(lines))
    assert "permissions:" in text and "timeout-minutes:" in text


def test_every_push_to_main_runs_what_ci_runs():
    ci = ROOT / ".github" / "workflows" / "ci.yml"
    assert ".ci/run" in lines_of(ci)
    on = yaml.safe_load(ci.read_text("utf-8"))[True]  # YAML takes `on` for true
    assert on["push"]["branches"] == ["main"] and "pull_request" in on


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    paper = citation["preferred-citation"]
    assert citation["version"] == VERSION
    assert (
        "2508.15233" in paper["url"]
        and {"family-names": "Xu", "given-names": "Wenju"} in paper["authors"]
    )
    assert paper["title"] == "Pretrained Diffusion Models Are Inherently Skipped-Step Samplers"


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[bi]*.yml")), ids=lambda p: p.stem
)
def test_forms_of_issues_are_such_forms(form):
    content = yaml.safe_load(form.read_text("utf-8"))
    assert {"name", "description", "body"} <= content.keys()
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids)
    assert all(
        field["type"] == "textarea" and field["attributes"]["label"] for field in content["body"]
    )
