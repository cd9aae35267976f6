"""`pip install .` gives the samplers and schedulers, under one name, and asks for little."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser

import pytest
from conftest import ROOT

# What the commands and the evaluation need, and a user of the schedulers does not.
NOT_NEEDED = {
    "hydra",
    "omegaconf",
    "wandb",
    "torch_fidelity",
    "cleanfid",
    "open_clip",
    "matplotlib",
}

SCRIPT = f"""
import os
import sys

os.environ.pop("GOMP_SPINCOUNT", None)  # inherited from the tests, which set it as the commands do
import torch
from diffusers import DDIMScheduler
import skipped_step
from skipped_step.schedulers import MixScheduler

scheduler = MixScheduler.from_config(DDIMScheduler().config, cutoff=500)
scheduler.set_timesteps(4)
x = torch.zeros(1, 3, 8, 8)
for t in scheduler.timesteps:
    x = scheduler.step(x, t, x).prev_sample
plan = skipped_step.mix(skipped_step.Schedule.linear(), skipped_step.timesteps(1000, 4), cutoff=500)
assert "GOMP_SPINCOUNT" not in os.environ  # a library in other people's processes
assert not {NOT_NEEDED} & set(sys.modules), {NOT_NEEDED} & set(sys.modules)
print(len(plan), bool(x.isfinite().all()), MixScheduler.__module__, skipped_step.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "sampling", source / "sampling")
    for name in ("models", "eval"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, source], check=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_one_package(wheel):
    assert wheel.name.startswith("skipped_step-") and wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"skipped_step", next(top for top in tops if top.endswith(".dist-info"))}
    modules = {path.name for path in (ROOT / "sampling").glob("*.py")}
    assert {name.split("/")[1] for name in names if name.startswith("skipped_step/")} == modules


def test_its_metadata_say_versions_and_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = Parser().parsestr(archive.read(info).decode())
        licence = archive.read(f"{info.removesuffix('METADATA')}licenses/LICENSE").decode()
    assert licence == (ROOT / "LICENSE").read_text()
    assert (metadata["License-Expression"], metadata["License"]) == ("MIT", None)
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    pythons = [name for name in metadata.get_all("Classifier") if "Python :: 3." in name]
    assert [name.split()[-1] for name in pythons] == ["3.11", "3.12", "3.13"]
    asked = metadata.get_all("Requires-Dist")
    assert {"torch>=2.6", "numpy>=2.0", "diffusers>=0.32"} == {a for a in asked if ";" not in a}
    hydra = {re.sub("[ ()\"']", "", one) for one in asked if one.startswith("hydra-core")}
    assert hydra == {
        "hydra-core<1.4,>=1.3.2;extra==commands",
        "hydra-core>1.3.8;python_version>=3.14andextra==commands",
    }


def test_it_works_without_what_the_commands_need(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    nfe, finite, module, file = done.stdout.split()
    assert (nfe, finite, module) == ("4", "True", "skipped_step.schedulers")
    assert str(tmp_path) in file


def test_what_it_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", one)[0] for one in project["dependencies"]}
    assert names == {"torch", "numpy", "diffusers"}
    extras = project["optional-dependencies"]
    everything = {re.match(r"[\w-]+", one)[0] for extra in extras.values() for one in extra}
    for name in (
        "hydra-core",
        "omegaconf",
        "wandb",
        "torch-fidelity",
        "clean-fid",
        "open-clip-torch",
    ):
        assert name in everything
    assert set(extras) - {"all"} == set(
        re.findall(r"\w+", re.search(r"\[(.*)\]", extras["all"][0])[1])
    )
