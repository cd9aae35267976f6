"""Bounds, lock file, environment.yml and the Makefile say the same of versions."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCK = (ROOT / "requirements.lock").read_text()
PYTHONS = ("3.11", "3.12", "3.13")


def bounds() -> list[Requirement]:
    """All of them but the extra `all`, which names the others."""
    texts = [*PROJECT["dependencies"], *(t for n, ts in EXTRAS.items() if n != "all" for t in ts)]
    return [Requirement(text) for text in texts]


def locked() -> list[Requirement]:
    return [Requirement(line) for line in LOCK.splitlines() if re.match(r"\w", line)]


def on(python: str) -> dict[str, str]:
    """What markers ask for, on Linux."""
    system = {"sys_platform": "linux", "platform_machine": "x86_64"}
    return {"python_version": python, "python_full_version": f"{python}.9", **system}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_one_version_of_everything_and_it_is_within_the_bounds(python):
    pins: dict[str, Version] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(on(python)):
            name, (only,) = canonicalize_name(pin.name), pin.specifier
            assert name not in pins and only.operator == "=="
            pins[name] = Version(only.version)
    for bound in bounds():
        if bound.marker is None or bound.marker.evaluate(on(python)):
            assert bound.specifier.contains(pins[canonicalize_name(bound.name)]), str(bound)


def test_the_lock_says_how_it_is_made():
    assert "uv pip compile pyproject.toml --extra all --universal" in LOCK.splitlines()[1]


def test_environment_and_requirements_name_no_versions_of_their_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, *rest = environment["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert python.removeprefix("python=") in PYTHONS
    assert rest == ["make", "pip", {"pip": ["-r requirements.txt"]}]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [li for li in lines if li[0] != "#"] == ["-c requirements.lock", "-e .[all]"]


def fake_python(path: Path, version: str) -> Path:
    """A Python that says it is of that version; told to make an environment, it tells and fails."""
    numbers = f"({version.replace('.', ', ')}, 0)"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || {{ echo {version} was told: "$@"; exit 1; }}\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = {numbers}; $2"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


@pytest.fixture
def make(tmp_path):
    """`make WORDS` in a copy with no environment, where only these Pythons are found: its output."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    pythons = tmp_path / "bin"
    pythons.mkdir()

    def run(*words: str, **versions: str) -> str:
        for name, version in versions.items():
            fake_python(pythons / name, version)
        shell = ["make", "--no-print-directory", *words]
        path = {"PATH": f"{pythons}:{tmp_path / 'tools'}"}
        (tmp_path / "tools").mkdir(exist_ok=True)
        for tool in ("sh", "make", "touch"):
            link = tmp_path / "tools" / tool
            link.exists() or link.symlink_to(shutil.which(tool))
        done = subprocess.run(shell, cwd=tmp_path, env=path, capture_output=True, text=True)
        assert done.returncode != 0
        return done.stdout

    return run


@pytest.mark.parametrize("version", ["3.10", "3.14", "4.0"])
def test_make_refuses_other_pythons_before_anything_and_its_remedy_works(make, version):
    versions = {"python3": version, "python3.12": "3.12", "python3.13": version}
    out = make("table1", **versions)
    assert "error: Python 3.11, 3.12 or 3.13 is needed" in out and "was told" not in out
    remedy = re.search(r"try make (.*)", out)[1]
    assert remedy == "setup PYTHON=python3.12"  # python3.13 only bears the name
    assert "3.12 was told: -m venv .venv" in make(*remedy.split())


def test_make_without_any_fitting_python_says_what_to_install(make):
    out = make("setup", python3="3.14")
    assert "install Python 3.13, then make setup PYTHON=python3.13" in out
    assert "3.13 was told: -m venv .venv" in make(
        "setup", "PYTHON=python3.13", **{"python3.13": "3.13"}
    )


@pytest.mark.parametrize("version", PYTHONS)
def test_make_and_the_bounds_agree_on_pythons(make, version):
    assert f"{version} was told: -m venv .venv" in make("setup", python3=version)
    hydra = [bound for bound in bounds() if bound.name == "hydra-core"]

    def fit(hydra_version: str, python: str) -> bool:
        asked = [b for b in hydra if b.marker is None or b.marker.evaluate(on(python))]
        return all(bound.specifier.contains(hydra_version) for bound in asked)

    assert fit("1.3.8", version) and not fit("1.3.8", "3.14")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
    assert not SpecifierSet(PROJECT["requires-python"]).contains("3.10.9")
