"""Dockerfile and apptainer.def: they install the lock file, agree with each other, and run as docs/containers.md says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "apptainer.def").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
# What of the clone has no use in an image.
NOT_IN_AN_IMAGE = {".ci", ".github", ".gitignore", ".dockerignore", ".pre-commit-config.yaml"}
NOT_IN_AN_IMAGE |= {
    "Dockerfile",
    "apptainer.def",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "environment.yml",
}


def section(name: str) -> str:
    """A section of the definition, without comments."""
    (text,) = re.findall(rf"^%{name}\n(.*?)(?=^%|\Z)", DEFINITION, re.M | re.S)
    return re.sub(r"^\s*#.*\n", "", text, flags=re.M)


def instructions() -> list[str]:
    """Those of the Dockerfile, each on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M).replace("\\\n", " ")
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]


def steps(text: str) -> list[str]:
    """The shell commands of a build, without what the two kinds of image do differently."""
    options = r"--mount=\S+ |--no-cache-dir |PIP_NO_CACHE_DIR=1 "
    parts = (part.strip() for part in re.split(r"&&|\n", re.sub(options, "", text)))
    return [part for part in parts if part and not part.startswith(("set ", "cd ", "chmod"))]


def test_both_begin_from_the_python_that_is_tested():
    (docker,) = (line.removeprefix("FROM ") for line in instructions() if line[:5] == "FROM ")
    (apptainer,) = re.findall(r"^From: (.*)$", DEFINITION, re.M)
    assert docker == apptainer
    version = re.fullmatch(r"python:(3\.\d+)-slim-\w+", docker)[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert f"python={version}" in environment["dependencies"]
    assert f"Python {version}" in PAGE


def test_both_install_the_lock_file_and_nothing_else():
    runs = [line.removeprefix("RUN ") for line in instructions() if line[:4] == "RUN "]
    docker = [
        step for run in runs for step in steps(run) if not step.startswith(("useradd", "install "))
    ]
    assert docker == steps(section("post"))
    pips = [step for step in docker if "pip install" in step]
    assert pips == [".venv/bin/python -m pip install -r requirements.lock"]
    assert "make setup" in docker  # the Makefile's own: the lock file again, and this repository


def test_what_is_run_is_no_root_and_the_packages_lie_in_a_layer_of_their_own():
    lines = instructions()
    user = next(line for line in lines if line.startswith("USER "))
    assert user == "USER 1000:1000" and "useradd --create-home --uid 1000" in DOCKERFILE
    packages = next(i for i, line in enumerate(lines) if "-r requirements.lock" in line)
    copied = [line for line in lines[:packages] if line.startswith(("COPY", "ADD"))]
    assert lines.index(user) < packages
    assert copied == ["COPY --chown=1000:1000 requirements.lock ."]


def test_nothing_that_git_ignores_is_sent_to_docker():
    read = {
        name: {
            line.removeprefix("**/").rstrip("/")
            for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
            if line and line[0] != "#"
        }
        for name in (".gitignore", ".dockerignore")
    }
    assert read[".dockerignore"] == read[".gitignore"] | {".git"}


def test_the_definition_copies_all_that_is_tracked_and_of_use():
    pairs = [line.split() for line in section("files").splitlines() if line.strip()]
    assert all(target == f"/app/{source}" for source, target in pairs)
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, text=True, encoding="utf-8", capture_output=True
    )
    if listed.returncode:
        pytest.skip("no git here")
    tracked = {path.split("/")[0] for path in listed.stdout.splitlines()}
    assert {source for source, _ in pairs} == tracked - NOT_IN_AN_IMAGE


@pytest.mark.parametrize("name", ["post", "runscript"])
def test_the_definition_is_shell(name):
    checks = [["sh", "-n"]] + (
        [["shellcheck", "-s", "sh", "-"]] if shutil.which("shellcheck") else []
    )
    for check in checks:
        done = subprocess.run(
            check, input=section(name), text=True, encoding="utf-8", capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_runs_what_it_builds():
    """Each `run` is of what the page has built, mounts what it writes to, and is a target that exists."""
    built = {"docker": "skipped-step", "apptainer": "skipped-step.sif"}
    assert "docker build -t skipped-step ." in LINES
    assert "apptainer build skipped-step.sif apptainer.def" in LINES
    runs = [shlex.split(line) for line in LINES if line.split()[1] == "run"]
    assert {words[0] for words in runs} == {*built}
    for words in runs:
        at = words.index(built[words[0]])
        options, inner = words[2:at], words[at + 1 :]
        assert {"docker": "--gpus", "apptainer": "--nv"}[words[0]] in options
        assert "$PWD/runs:/app/runs" in options
        made = [*inner, "-n", "-o", ".venv/installed"]
        recipe = subprocess.run(made, cwd=ROOT, text=True, encoding="utf-8", capture_output=True)
        assert recipe.returncode == 0, recipe.stderr
        if "table1" in inner:
            assert (
                "reproduce.py experiment=table1_small model=digits out=runs/table1" in recipe.stdout
            )
    assert shlex.join(runs[-1]) in shlex.join(shlex.split(section("help")))


def test_the_page_names_the_cuda_of_the_lock_file():
    (version,) = re.findall(r"^cuda-toolkit==(\d+\.\d+)", LOCK, re.M)
    assert f"CUDA {version}" in re.sub(r"\s+", " ", PAGE)


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say():
    done = subprocess.run(
        ["hadolint", ROOT / "Dockerfile"], text=True, encoding="utf-8", capture_output=True
    )
    assert done.returncode == 0 and done.stdout == "", done.stdout
