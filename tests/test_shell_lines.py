"""Every shell line of README, docs and help texts, in order, at a small size: it works, or ends in one honest line.

What needs published weights, a cluster or a network ends in the line that says what is missing and
how to get it.
"""

from __future__ import annotations

import ast
import importlib
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FEW, ROOT

import evaluate
import reproduce
import sample
from scripts import advise, check, train, tune

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {"sample.py": sample, "evaluate.py": evaluate, "reproduce.py": reproduce}
# Their docstrings are the examples of --help.
HELP = [ROOT / name for name in COMMANDS]
OF_HYDRA = {"scripts.train": train, "scripts.tune": tune, "scripts.advise": advise}
STARTS = (
    r"(OMP_NUM_THREADS=\d+ )?(python|\.venv/bin/python|make|torchrun|srun|wandb|pip|skipped-step) "
)
# Of other programs, or this very suite.
NOT_OURS = ("make test", "wandb sync ", "pip install 'skipped-step")
MAKE = shutil.which("make")
CHECKPOINT = "model.checkpoint=unet-1000"
SMALL_TABLE = [CHECKPOINT, *FEW, "num_samples=70", "experiment.steps=[2]", "model.precision=fp32"]
FEWER = [
    *("metrics.scores=[fid]", "experiment.metrics=[fid]", "experiment.orders=[[2,2]]"),
    *("experiment.windows=2", "experiment.tuning_samples=70"),
]
# The first pattern that fits a line says at which size it is tried here.
SMALL = {
    r"scripts\.advise.*model=diffusers": [
        "model.id=DIR",
        "steps=2",
        "experiment.rounds=[4]",
        "experiment.against={sampler:{name:skipped},steps:4,num_samples:4}",
    ],
    r"scripts\.advise.*reference=none": [
        *SMALL_TABLE[:-3],
        *("steps=2", "budget=4000", "experiment.rounds=[70]", "experiment.grids=[even]"),
        "samplers=[ddim,mix]",
        *("experiment.against.steps=2", "experiment.against.num_samples=100"),
    ],
    r"scripts\.advise": [
        *SMALL_TABLE[:-3],
        "steps=2",
        "budget=4000",
        "experiment.rounds=[70]",
        "experiment.grids=[even]",
        "samplers=[ddim,mix]",
    ],
    r"scripts\.tune.*(tune_star|adm_imagenet)": [
        *SMALL_TABLE[:-2],
        *("steps=2", "budget=3000", "experiment.rounds=[70]", "experiment.finalist_samples=70"),
        "experiment.generation_samples=70",
        *("experiment.starts=1", "experiment.orders=[[2]]", "experiment.grids=[even]"),
        "samplers=[ddim,mix]",
    ],
    r"scripts\.tune": [
        *SMALL_TABLE[:-2],
        "experiment.windows=2",
        "steps=3",
        "experiment.tuning_samples=70",
    ],
    r"experiment=figure2_small": [CHECKPOINT, "experiment.steps=[2]"],
    r"experiment=table1_small .*logger=wandb": [*SMALL_TABLE, "logger.mode=disabled", "out=w"],
    r"scripts\.slurm": [],
    r"experiment=table1_small": SMALL_TABLE,
    r"experiment=compare model=digits": [CHECKPOINT, *FEW, "steps=[2]", "num_samples=70"],
    r"^sample.py -m sampler": [CHECKPOINT, "steps=2,3", "num_samples=4"],
    r"^sample.py model=digits": [CHECKPOINT, "steps=2"],
    r"^sample.py sampler=restart": [CHECKPOINT],
    r"^sample.py sampler=plan": [CHECKPOINT, "num_samples=4"],
    r"^sample.py sampler=": [CHECKPOINT, "steps=2", "num_samples=4"],
    r"^evaluate.py samples=runs/mix": ["metrics.options.bootstrap=5"],
    r"scripts\.report": ["--out", "page.html"],
    r"scripts\.vbench setup": ["--dry"],
    r"tabulate_sweep": ["--steps", "2", "--only", "UnCLIPScheduler"],
}
# What must be said by a line that cannot work here.
ENDS = {
    r" --help": None,
    r"eval\.command.*VIRTUAL": "no reference at VIRTUAL_imagenet256_labeled.npz: fetch it from https:",
    r"eval\.command": "no reference at photos: give an .npz or a folder",
    r"scripts\.play": "npm is not here: install Node.js, or run `npm pack onnxruntime-web@",
    r"scripts\.slurm.*--dry": None,
    r"scripts\.download digits": "needs no download",
    r"scripts\.(download adm|prepare_coco)": "no network in tests; run the same command to continue",
    r"scripts\.download": "check the network, or give another hub id or a local folder",
    r"scripts\.vbench (prompts|run)": "is missing: run `python -m scripts.vbench setup`",
    r"scripts\.slurm": "no sbatch here: submit from a login node",
    r"hydra/launcher=slurm": "no sbatch here: submit from a login node",
    r"=photos|scripts\.reference photos": "no images at photos: give an .npz file or a folder",
    r"metrics=adm": "is missing: `python -m scripts.download inception` fetches",
    r"prompts=prompts.txt": "no prompts at prompts.txt: give prompts=FILE",
    r"golden_samplers.py FOLDER": "no recorded runs in FOLDER",
    r"dry=true": None,
    r"sampler.path=results/": "there is no plan at results/",  # whose folder is elsewhere
    r"experiment=table3": "no prompts at",
    r"experiment=table4|experiment=figure[67]|model=opensora11": "",
    r"model=sd21|experiment=figure5": "check the network, or give another hub id or a local folder",
    r"adm_imagenet|adm_lsun|experiment=(table1|table2|figure4)( |$)": "python -m scripts.download adm_",
}


def shell_lines(page: Path) -> list[str]:
    """Those in indented blocks that start with a command, without their comments."""
    text = page.read_text(encoding="utf-8")
    text = text if page.suffix == ".md" else str(ast.get_docstring(ast.parse(text)))
    lines = re.findall(rf"^    ({STARTS}.*)$", text, re.M)
    return [shlex.join(shlex.split(line[0], comments=True)) for line in lines]


# Every line -> the page where it stands first: each is run once.
LINES: dict[str, str] = {}
for page in (*PAGES, *HELP):
    for line in shell_lines(page):
        LINES.setdefault(line, page.name)


def recipe(line: str) -> list[list[str]]:
    """The Python commands of a line, as words: those of a make target are its recipe's."""
    words = shlex.split(line)
    if words[0] == "make":
        made = [MAKE, "--no-print-directory", "-n", "-o", ".venv/installed", *words[1:]]
        out = subprocess.run(made, cwd=ROOT, text=True, capture_output=True, check=True).stdout
        lines = [shlex.split(part) for part in out.replace("\\\n", " ").splitlines()]
        return [words[1:] for words in lines if words and words[0] == ".venv/bin/python"]
    if words[0] == "skipped-step":
        return [["-m", "eval.command", *words[1:]]]
    while not re.search(r"python$|torchrun$", words[0]):
        words = words[1:]
    return [[word for word in words[1:] if not word.startswith("--nproc")]]


pytestmark = pytest.mark.filterwarnings("ignore")  # of the hub's client


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all lines are run, one after the other, as a reader would."""
    return tmp_path_factory.mktemp("reader")


@pytest.fixture
def run(command, script, folder, monkeypatch):
    """Run the words after `python`: (exit status, stdout, stderr), in a world without network."""

    def unreachable(*args, **kwargs):
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(check, "check", lambda *args: 0)
    monkeypatch.setattr("diffusers.utils.logging.set_verbosity_error", lambda: None)  # for good
    # Of networks that are too large for a test:
    monkeypatch.setattr(reproduce, "dry_run", lambda cfg: ["what it costs"])
    monkeypatch.setattr(logging, "raiseExceptions", False)  # of others, whose stream pytest closed
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(folder / "downloads"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    monkeypatch.chdir(folder)

    def call(words: list[str]):
        if words[0] in COMMANDS:
            return command(COMMANDS[words[0]], *words[1:])
        if words[0].startswith("tests/"):
            return script(importlib.import_module(Path(words[0]).stem).main, *words[1:])
        assert words[0] == "-m"
        if words[1] in OF_HYDRA:
            return command(OF_HYDRA[words[1]], *words[2:])
        module = importlib.import_module(words[1])
        return script(module.main, *words[2:])

    return call


def fitting(table, words):
    line = " ".join(words)
    return next((value for pattern, value in table.items() if re.search(pattern, line)), None)


@pytest.mark.parametrize("line", LINES, ids=[f"{page}: {line}" for line, page in LINES.items()])
def test_a_shell_line_works_or_says_what_is_missing(run, line):
    if line.startswith(NOT_OURS):
        return
    for words in recipe(line):
        ends = fitting(ENDS, words)
        status, out, err = run([*words, *(fitting(SMALL, words) or [])])
        if ends is None:
            assert status == 0, err
            continue
        said = err.strip().splitlines()[-1]
        assert status == 2, out
        assert said.startswith("error: ") and err.count("error: ") == 1
        assert ends in said
        return  # make ends, too


def test_every_help_text_has_three_examples():
    for page in HELP:
        assert len(shell_lines(page)) >= 3, page


def test_there_are_such_lines_and_every_target_that_is_named_exists():
    assert len(LINES) > 40
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(
            r"\bmake ([a-z0-9_-]+)(?=[ `\n.,)])", page.read_text(encoding="utf-8")
        ):
            if f"`make {target}" in page.read_text(encoding="utf-8"):
                assert re.search(rf"^{target}:", makefile, re.M), (page.name, target)
        for module in re.findall(r"python -m scripts\.([a-z_]+)", page.read_text(encoding="utf-8")):
            assert (ROOT / "scripts" / f"{module}.py").is_file(), (page.name, module)
