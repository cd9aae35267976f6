"""`pip install .` gives samplers, schedulers and evaluation, under one name, and asks for little."""

from __future__ import annotations

import ast
import json
import os
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
    return built(copied_source(folder / "source"), folder)


def copied_source(source):
    """What the wheel is built from, and some that it is not."""
    heavy = shutil.ignore_patterns("*.safetensors", "*.npz", "__pycache__", "*.png")
    for name in ("sampling", "eval", "files", "models", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=heavy)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


def built(source, folder):
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, source], check=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel as it is installed."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def of_wheel(site, words, cwd, **env):
    """The outcome of Python with these words, where only the wheel is found of what is ours."""
    env = {**os.environ, "PYTHONPATH": str(site), "SKIPPED_STEP_DOWNLOADS": str(cwd), **env}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def test_the_wheel_holds_one_package(wheel):
    assert wheel.name.startswith("skipped_step-") and wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"skipped_step", next(top for top in tops if top.endswith(".dist-info"))}
    modules = {path.name for path in (ROOT / "sampling").glob("*.py")}
    ours = {
        name.removeprefix("skipped_step/") for name in names if name.startswith("skipped_step/")
    }
    assert {name for name in ours if "/" not in name} == modules
    below = {name.split("/")[0] for name in ours if "/" in name}
    assert below == {"evaluation", "files", "models", "configs"}
    configs = {name for name in ours if not name.endswith(".py")}
    assert {name for name in configs if "/reference/" not in name} == {
        f"configs/metrics/{protocol}.yaml"
        for protocol in ("adm", "dinov2", "torch_fidelity", "clean")
        if (ROOT / f"configs/metrics/{protocol}.yaml").is_file()
    }
    published = {f"configs/reference/{p.name}" for p in (ROOT / "configs/reference").glob("adm_*")}
    assert {name for name in configs if "/reference/" in name} == published
    assert len(ours) < 100


def test_an_sdist_builds_the_same_wheel(wheel, tmp_path):
    source = copied_source(tmp_path / "source")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=source, check=True, timeout=120,
                   capture_output=True)  # fmt: skip
    (sdist,) = tmp_path.glob("*.tar.gz")
    other = built(sdist, tmp_path)
    with zipfile.ZipFile(wheel) as a, zipfile.ZipFile(other) as b:
        assert {i.filename: i.CRC for i in a.infolist()} == {
            i.filename: i.CRC for i in b.infolist()
        }


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


def test_it_works_without_what_the_commands_need(site, tmp_path):
    done = of_wheel(site, ["-c", SCRIPT], tmp_path)
    assert done.returncode == 0, done.stderr
    nfe, finite, module, file = done.stdout.split()
    assert (nfe, finite, module) == ("4", "True", "skipped_step.schedulers")
    assert str(site) in file


# --- skipped_step.evaluation --------------------------------------------------------------------


def test_adms_golden_numbers_from_the_wheel(site, tmp_path):
    """By `evaluate` and the command, with nothing of the other extras or of the clone."""
    pytest.importorskip("torch_fidelity")
    done = of_wheel(site, [ROOT / "tests/wheel_evaluation.py", ROOT / "tests/golden"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "800 samples, protocol adm, extractor inception" in done.stdout
    assert "FID (inception)" in done.stdout and "3.98" in done.stdout
    assert done.stdout.split()[-1].startswith(str(site))


def test_all_of_its_modules_can_be_imported(site, tmp_path):
    """Where an import is not rewritten, or what is imported left out, this fails."""
    pytest.importorskip("torch_fidelity")
    code = (
        "import pkgutil, sys, skipped_step, skipped_step.evaluation as e, importlib, os\n"
        "assert 'GOMP_SPINCOUNT' not in os.environ\n"
        "names = [m.name for m in pkgutil.walk_packages(skipped_step.__path__, 'skipped_step.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "ours = {'eval', 'files', 'models', 'sampling'}\n"
        "print(len(names), sorted(ours & set(sys.modules)), e.evaluate.__module__)"
    )
    env = {name: os.environ[name] for name in os.environ if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        **{"cwd": tmp_path, "env": {**env, "PYTHONPATH": str(site)}},
        **{"capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1)[1].strip() == "[] skipped_step.evaluation.library"


def test_what_its_modules_import_is_there_also_where_they_do_so_late(site):
    """Of what is ours; the classifiers of the models in the repository are not."""
    package, absent = site / "skipped_step", set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level:
                continue
            top, *rest = (node.module or "").split(".")
            assert top not in ("eval", "files", "models", "sampling"), path
            place = package.joinpath(*rest)
            if top == "skipped_step" and not (place.is_dir() or place.with_suffix(".py").is_file()):
                absent.add(node.module)
    assert absent == {"skipped_step.evaluation.classifiers"}


RUN = "from skipped_step.command import main; main()"
# Runs the command once for each list of words, and prints how each ended.
RUN_ALL = """
import contextlib, io, json, sys
from skipped_step.command import main

ends = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stop:
            ends.append((stop.code, err.getvalue()))
print(json.dumps(ends))
"""
TO_NOTHING = ["evaluate", "x.npz", "--reference", "."]
MISTAKES = [
    ([], "the command is evaluate, which is missing"),
    (["score"], "the command is evaluate, not 'score'"),
    (["evaluate", "x.npz"], "required: --reference; skipped-step evaluate --help"),
    (["evaluate", "x.npz", "--reference", "no.npz"], "no reference at no.npz: give"),
    (["evaluate", "x", "--reference", "VIRTUAL_lsun_cat256.npz"], "fetch it from https://openai"),
    ([*TO_NOTHING, "k=5", "--protocol", "ADM"], "unknown protocol 'ADM': choose one of adm, "),
    ([*TO_NOTHING, "k"], "'k' is no setting: write NAME=VALUE"),
    ([*TO_NOTHING, "kk=1"], "has no setting 'kk': choose among"),
    ([*TO_NOTHING, "--resize", "256"], "center_lanczos:256 or"),
    ([*TO_NOTHING, "--resize", "bicubic:0"], "center_lanczos:256 or"),
    ([*TO_NOTHING, "--num-samples", "few"], "--num-samples: invalid int value"),
    (TO_NOTHING, "no samples at x.npz: give an .npz file"),
]


def test_mistakes_of_the_command_are_one_line(site, tmp_path):
    pytest.importorskip("torch_fidelity")
    words = json.dumps([words for words, _ in MISTAKES])
    done = of_wheel(site, ["-c", RUN_ALL, words], tmp_path)
    assert done.returncode == 0, done.stderr
    for (status, err), (words, said) in zip(json.loads(done.stdout), MISTAKES, strict=True):
        (line,) = err.splitlines()
        assert status == 2 and line.startswith("error: ") and said in line, words


def test_without_the_extra_the_command_says_what_to_install(site, tmp_path):
    code = f"import sys; sys.modules['torch_fidelity'] = sys.modules['yaml'] = None; {RUN}"
    done = of_wheel(site, ["-c", code, "evaluate", "--help"], tmp_path)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.endswith("pip install 'skipped-step[evaluation]'")


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
