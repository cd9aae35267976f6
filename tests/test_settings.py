"""Settings: what is understood, at every level and however it is typed; and which code configs may name."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import settings_fuzz
from conftest import ROOT, done, refused

import evaluate
import reproduce
import sample
from experiments.config import composed, reference_source
from experiments.settings import COMMANDS, callable_at
from sampling.options import described, fits
from scripts import train

DIGITS = ["model.checkpoint=unet-1000", "steps=2", "num_samples=2"]


@pytest.mark.filterwarnings("ignore")  # of libraries, which the commands do not show either
def test_a_fuzz_of_all_settings_finds_no_fault(tmp_path):
    """`python tests/settings_fuzz.py --cases 2000` is the long one."""
    work = settings_fuzz.fuzz(25, 5, tmp_path)
    assert not work.faults
    assert sum(work.counts.values()) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_has_is_what_stands_in_its_file(command):
    """Both ways: a setting in neither the table nor the file is none."""
    cfg = composed(command)
    brought = {"metrics", "reference"} if command == "sample" else set()
    assert set(COMMANDS[command]) == {key for key in cfg if key not in brought}


# As it is typed -> what is said.  The issue's own, and others of their kinds.
UNKNOWN = {
    "step=50": "did you mean steps=50?",
    "+step=50": "did you mean steps=50?",
    "++step=50": "did you mean steps=50?",
    "+modle=digits": "did you mean model=digits?",
    "modle.clip=true": "did you mean model.clip=true?",
    "++spacng=even": "did you mean spacing=even?",
    "+spacing_=[5,3]": "did you mean 'spacing=[5,3]'?",
    "+seeds=3": "did you mean seed=3?",
    "+seeds=[1,2]": "seed must be an integer",
    "+modle=foo": "model must be one of adm,",
    "cutoff=400": "did you mean sampler.cutoff=400?",
    "+sampler.cutof=null": "did you mean sampler.cutoff=null?",
    "sampler.eta=1": "choose among sampler.name, sampler.cutoff",
    "+model.precison=bf16": "did you mean model.precision=bf16?",
    "+logger.mode=offline": "there is no setting logger.mode",
    "+guidance.scale=2": "there is no setting guidance.scale",
    "metrics=clip": "sample has no setting metrics, which is one of evaluate, reproduce, train",
    "+metrics.scores=[fid]": "sample has no setting metrics",
    "+experiment=table1": "sample has no setting experiment",
    "hydra.job.chdr=true": "did you mean hydra.job.chdir?",
    "+hydra.jub=1": "did you mean hydra.job?",
    "sampler=mixx": "did you mean sampler=mix?",
    "+model.net.num_chanels=8": "did you mean model.net.num_channels=8?",
}


@pytest.mark.parametrize("word", UNKNOWN)
def test_an_unknown_setting_is_refused_and_what_is_proposed_can_be_typed(command, tmp_path, word):
    outcome = command(sample, *DIGITS, word)
    refused(outcome, UNKNOWN[word])
    assert not (tmp_path / "runs").exists()
    if found := re.search(r"did you mean (.*=.*)\?", outcome[2]):
        _, _, err = command(sample, *DIGITS, "show_plan=true", *shlex.split(found[1]))
        assert "did you mean" not in err and "Traceback" not in err


VALUES = {
    "out=2026": "out must be a path or null, got 2026: write out=./2026",
    "prompts=1": "got 1: write prompts=./1",
    "seed=true": "seed must be an integer, got True",
    "num_samples=99999999999999999999999": "num_samples must be at most 1,000,000,000",
    "steps=[2]": "steps must be an integer or null, got [2]",
    "batch_size=null": "batch_size must be an integer, got None",
    "label=seven": "label must be an integer or balanced or null, got 'seven'",
    "sampler={name:ddim}": "",
    "model.name=../x": "model.name is part of a file's name",
    "model.name=..": "model.name is part of a file's name",
    "model.name='a\nb'": "model.name is part of a file's name",
    "model.clip=yes": "model.clip must be true or false, got 'yes'",
    "device=meta": "device=meta is not available here",
    "names=prmpt": "unknown names 'prmpt'",
    "spacing=90,60": "write spacing=[90,60] for a list, \"spacing='90,60'\" for one text",
    "out='a": "cannot read out='a: write",
    "steps": "'steps' is no setting: write NAME=VALUE",
    "~steps": "~steps takes away what is needed",
    "seed=${sed}": "seed: Interpolation key 'sed' not found",
    "site=other": "there is no group site: leave it out",
    "sampler@model=mix": "there is no group sampler@model: leave it out",
    "guidance=null": "a group of configs is set to what is no name: write GROUP=NAME",
    "hydra.mode=FOO": "hydra.mode cannot be FOO: leave it out",
    "hydra.sweeper.params.seed=1": "Hydra cannot compose these settings",
    "hydra.job_logging.handlers.console.class=logging.Handler": "Hydra has no setting hydra.job_logging",
    "--config-dir=nowhere": "--config-dir=nowhere is no folder: correct its name",
    "model.name=../elsewhere": "model.name is part of a file's name",
    "downloads=": "downloads must be a path, got ''",
    "sampler.eps_scale=1e-300": "eps_scale must be positive at every timestep, 0.001 to 1000",
    "out=" + "n" * 300: "choose a shorter name",
    "hydra/launcher=slurm": "hydra/launcher=slurm is for a multirun: add -m",
    "--config-path=conf": "leave --config-path out: --config-dir adds configs of your own",
    "--experimental-rerun=x.pickle": "leave --experimental-rerun out",
    "--dry": "unrecognized arguments: --dry: settings are NAME=VALUE, after all flags",
}


@pytest.mark.parametrize("word", VALUES)
def test_a_value_of_another_type_is_one_line_before_any_work(command, tmp_path, word):
    refused(command(sample, *DIGITS, word), VALUES[word])
    assert not list(tmp_path.glob("**/*.npz"))


def test_all_jobs_of_a_multirun_are_looked_at_before_the_first(command, tmp_path, monkeypatch):
    outcome = command(sample, "-m", *DIGITS, "seed=0,1,x")
    refused(outcome, "seed must be an integer, got 'x'")
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = command(sample, "-m", *DIGITS, "seed=0,1", "hydra/launcher=slurm")
    refused(outcome, "no sbatch here: submit from a login node")


@pytest.mark.parametrize("name", ["x=y", "ünï-数字", "a b", "100%", "2026-11-26"])
def test_unusual_names_of_folders_need_no_quotes(command, tmp_path, name):
    done(command(sample, *DIGITS, f"out={name}"))
    assert (tmp_path / name / "samples.npz").is_file()


def test_options_that_no_file_names_need_no_plus(command):
    few = ["samples=mine.npz", "metrics.options.bootstrap=3", "metrics.scores=[fid,kid]"]
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1), dtype=np.uint8)
    np.savez("mine.npz", arr_0=images)
    # As a reader would: each remedy is typed as it stands.
    _, _, err = command(evaluate, *few)
    remedy = re.search(r"metrics\.options\.allow_few=true", err)[0]
    _, _, err = command(evaluate, *few, remedy)
    other = re.search(r"metrics\.options\.kid_subset_size=\d+", err)[0]
    done(command(evaluate, *few, remedy, other))
    done(command(evaluate, *few, f"+{remedy}", f"++{other}"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["experiment.metrics=[]"], "experiment.metrics must not be empty"),
        (["experiment.metrics=fid"], "experiment.metrics must be a list of texts, got 'fid'"),
        (["experiment.steps=[]"], "experiment.steps is missing or empty"),
        (["experiment.steps=[2,2]"], "experiment.steps names a step count twice"),
        (["experiment.rows.Mix=3"], "experiment.rows.Mix.name is missing"),
        (["experiment.rows.A.nam=mix"], "experiment.rows.A.name is missing"),
        (["experiment.rows.Mix.cutof=3"], "did you mean experiment.rows.Mix.cutoff=3?"),
        (["experiment.row.A.name=mix"], "did you mean experiment.rows.A.name=mix?"),
        (["+experiment.metrcs=[fid]"], "did you mean 'experiment.metrics=[fid]'?"),
        (["reference.images.splt=floor"], "did you mean reference.images.split=floor?"),
        (
            ["reference=custom", "reference.images.path=mine.npz", "+reference.floor.pat=null"],
            "did you mean reference.floor.path=null?",
        ),
        (["reference.name=/tmp/x"], "reference.name is part of a file's name"),
        (["metrics.weight=x"], "did you mean metrics.weights=x?"),
        (["metrics.name=../x"], "metrics.name is part of a file's name"),
        (["experiment.name=a/b"], "experiment.name is part of a file's name"),
        (["experiment.rows=[mix]"], "experiment.rows cannot be [mix]"),
        (["experiment.scorer=none"], "a table shows scores: set experiment.scorer=images"),
        (["experiment.renderer=cutoffs"], "its rows are cutoffs: give experiment.cutoffs="),
        (["experiment.paper=nowhere.yaml"], "has no numbers of a paper"),
        (["experiment.paper=configs/common.yaml"], "has no numbers of a paper"),
        (["experiment.frames=0"], "experiment.frames must be at least 1, got 0"),
        (["experiment.cutoffs=[100]", "samplers=[ddim]"], "samplers names the rows of a table"),
        (["samplers=[]"], "samplers names the rows of a table"),
        (["only=[]", "stage=sample"], "only=[] is no step count"),
        (["out=null"], "out must be a path, got None"),
        (["metrics.options.is_splits=1000"], "lower metrics.options.is_splits"),
        (["reference.floor.path=mine"], "there is no setting reference.floor.path"),
        (["reference.preprocess=foo"], "unknown preprocessing 'foo'"),
        (["reference=custom"], "reference.images is missing"),
        (["reference=custom", "reference.images.path=nowhere"], "no images at nowhere: give"),
    ],
)
def test_levels_of_an_experiment(command, tmp_path, words, said):
    table = [
        "experiment=table1_small",
        "model.precision=fp32",
        "num_samples=500",
        "experiment.steps=[2]",
    ]
    refused(command(reproduce, *table, *words), said)
    assert not list(tmp_path.glob("**/*.npz"))


EXPERIMENT = """{{name: mine, title: Mine, scorer: images, renderer: table, steps: [2], num_samples: 70,
spacing: even, label: null, paper: null, metrics: [fid], rows: {{{row}: {{name: ddim}}}}{more}}}"""
EXPERIMENTS = {
    "a key twice": (EXPERIMENT.format(row="A", more=", title: B"), "found duplicate key title"),
    "no YAML": ("a: [1\n b: {", "a config is no YAML (while parsing"),
    "a tab": ("name:\tx\n", "a config is no YAML (while scanning"),
    "code": (EXPERIMENT.format(row="A", more=", names: !!python/name:os.system"), "is no YAML"),
    "UTF-16": (EXPERIMENT.format(row="A", more="").encode("utf-16"), "is not UTF-8 text"),
    "Latin-1": ("name: \xe9".encode("latin-1"), "a config is not UTF-8 text"),
    "a list": ("[1, 2]", "experiment must be settings with names"),
    "another's default": (
        "defaults: [nope]",
        "experiment/mine names experiment/nope, which is not",
    ),
    "no label": ("name: mine", "not found; correct it, or give experiment.label"),
    "a number as row": (EXPERIMENT.format(row=5, more=""), "row of the name 5, which is no text"),
    "truth as row": (EXPERIMENT.format(row="yes", more=""), "row of the name True"),
    "null as row": (EXPERIMENT.format(row="null", more=""), "Incompatible key type 'NoneType'"),
    "a typo": (EXPERIMENT.format(row="A", more=", frams: 2"), "did you mean experiment.frames?"),
}


@pytest.mark.parametrize("case", EXPERIMENTS)
def test_a_file_of_ones_own_that_is_no_experiment_is_one_line(command, tmp_path, case):
    text, said = EXPERIMENTS[case]
    path = tmp_path / "own/experiment/mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(command(reproduce, "--config-dir=own", "experiment=mine", "model=digits"), said)


def test_a_home_behind_an_equals_sign_is_ones_own(command, tmp_path, monkeypatch):
    """No shell expands ~ there, and a folder of that name is dangerous to remove."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    done(command(sample, *DIGITS, "out=~/mine"))
    assert (tmp_path / "home/mine/samples.npz").is_file() and not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("word", "known"),
    [("seed", True), ("reference.images.split=floor", False), ("reference.images=.", False)],
)
def test_stored_features_stand_for_the_images_that_they_were_made_of(word, known):
    cfg = composed("evaluate", "samples=S", *([word] if "=" in word else []))
    assert (reference_source(cfg).folder is not None) == known
    other = composed(
        "evaluate", "samples=S", "reference=cifar10", "reference.floor.source=original"
    )
    assert not reference_source(other).store_floor
    assert reference_source(composed("evaluate", "samples=S", "reference=cifar10")).store_floor


def test_one_step_count_needs_no_list(command):
    words = ["experiment=figure2_small", "model.checkpoint=unet-1000", "num_samples=2"]
    done(command(reproduce, *words, "experiment.steps=2"))


def test_settings_of_training(command):
    refused(command(train, "training.unet.stps=3"), "did you mean training.unet.steps=3?")
    refused(command(train, "model.net.dropout=0.1"), "leave model.net.dropout out")
    refused(command(train, "training.unet.steps=many"), "training.unet.steps must be an integer")
    refused(command(train, "model.net.num_channels=7"), "makes no network")


def test_kinds():
    assert fits(np.int64(3), int) and fits(3, float) and fits([1, 2], list[int])
    assert not (fits(True, int) or fits(True, float) or fits(float("nan"), float) or fits(1.0, int))
    assert not (fits("ab", list[str]) or fits({"a": 1}, list[int]) or fits([1, None], list[int]))
    assert described(int | list[int] | None) == "an integer or a list of integers or null"


# --- code ---------------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A package that leaves a mark when anything of it runs, or is imported."""
    home = tmp_path / "packages"
    home.mkdir()
    mark = tmp_path / "CODE_RAN"
    (home / "evil_package.py").write_text(
        f"open({str(mark)!r}, 'w')\ndef load(*a, **k): raise ValueError('ran')\n"
    )
    monkeypatch.syspath_prepend(home)
    yield mark
    sys.modules.pop("evil_package", None)


GLOBAL = "# @package _global_\nreference: {name: none, floor: null}\n"
FOREIGN = {
    "reference/evil.yaml": "name: evil\nimages: {_target_: evil_package.load}\nfloor: null\nfolder: null\n",
    "reference/floor.yaml": "defaults: [digits]\nfloor: {_target_: evil_package.load, split: null}\n",
    "reference/nested.yaml": "name: e\nfloor: null\nfolder: null\n"
    "images: {_target_: files.images.load_samples, path: {_target_: evil_package.load}}\n",
    "reference/through.yaml": "name: e\nfloor: null\nfolder: null\n"
    "images: {_target_: files.images.os.system, command: 'touch CODE_RAN'}\n",
    "reference/write.yaml": "name: e\nfloor: null\nfolder: null\n"
    "images: {_target_: files.whole.write_text, path: CODE_RAN, text: x}\n",
    "reference/callback.yaml": f"{GLOBAL}hydra: {{callbacks: {{e: {{_target_: evil_package.load}}}}}}\n",
    "reference/logging.yaml": f"{GLOBAL}hydra: {{job_logging: {{version: 1, root: {{handlers: [h]}}, "
    "handlers: {h: {(): evil_package.load}}}}\n",
    "reference/trust.yaml": "# @package _global_\ntrusted: [evil_package]\n"
    "reference: {name: e, floor: null, folder: null, images: {_target_: evil_package.load}}\n",
    "reference/environment.yaml": f"{GLOBAL}hydra: {{job: {{env_set: {{PATH: evil}}}}}}\n",
    "reference/params.yaml": f"{GLOBAL}hydra: {{sweeper: {{params: {{trusted: evil_package}}}}}}\n",
    "reference/circle.yaml": "# @package _global_\ndefaults: [{/reference@_global_.reference: digits}]\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_config_from_elsewhere_runs_no_code(command, evil, tmp_path, name):
    path = tmp_path / "conf" / name
    path.parent.mkdir(parents=True)
    path.write_text(FOREIGN[name])
    images = np.zeros((90, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "s.npz", arr_0=images)
    words = ["--config-dir", "conf", "samples=s.npz"]
    for more in ([f"reference={path.stem}"], ["-m", f"reference=digits,{path.stem}"]):
        status, _, err = command(evaluate, *words, *more)
        assert status == 2 and len(err.strip().splitlines()) == 1, err
        assert not evil.exists() and not list(tmp_path.glob("**/CODE_RAN"))


# What a config from elsewhere may want SLURM's shell to run.
SHELL_LINES = {
    "setup": "launcher: {setup: [touch CODE_RAN]}",
    "sbatch": "launcher: {additional_parameters: {task-prolog: CODE_RAN}}",
    "option": 'launcher: {partition: "x\\ntouch CODE_RAN"}',
    "folder": 'sweep: {dir: "x\\ntouch CODE_RAN"}',
    "name": 'job: {name: "x\\ntouch CODE_RAN"}',
    "setup@hydra.launcher": "setup: [touch CODE_RAN]",
    "launcher": "defaults: [slurm, _self_]\nsetup: [touch CODE_RAN]",
}


@pytest.mark.parametrize("case", SHELL_LINES)
def test_what_slurm_runs_is_of_the_users_own(tmp_path, case):
    """With configs from elsewhere in reach, the command line and configs/ alone say it."""
    slurm, text = ["hydra/launcher=slurm"], SHELL_LINES[case]
    if case == "launcher":
        path, words = "hydra/launcher/theirs.yaml", ["hydra/launcher=theirs"]
    elif "@" in case:
        path, words = "site/theirs.yaml", [*slurm, "site@hydra.launcher=theirs"]
    else:
        path, words = "model/theirs.yaml", [*slurm, "model=theirs"]
        text = f"# @package _global_\ndefaults: [digits@model]\nhydra: {{{text}}}"
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(f"{text}\n")
    there = f"hydra.searchpath=[file://{tmp_path}]"
    with pytest.raises(ValueError, match=r"from elsewhere .* configs/site and configs/hydra"):
        composed("sample", there, *words, with_hydra=True)
    mine = ["hydra.launcher.setup=[module load cuda]", "hydra.launcher.partition=p"]
    cfg = composed("sample", there, *slurm, *mine, "seed=3", with_hydra=True)
    assert cfg.hydra.launcher.setup == ["module load cuda"] and cfg.seed == 3


def test_a_model_of_a_package_that_the_user_trusts(command, evil, tmp_path):
    path = tmp_path / "conf/model/mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "defaults: [{/metrics@_global_.metrics: digits}, {/reference@_global_.reference: digits}]\n"
        "name: mine\n_target_: evil_package.load\n"
    )
    words = ["--config-dir", "conf", "model=mine"]
    outcome = command(sample, *words)
    refused(outcome, "give trusted=[evil_package]")
    assert not evil.exists()
    refused(command(sample, *words, "trusted=[evil_package]"), "error: ran")
    assert evil.exists()


@pytest.mark.parametrize(
    "target",
    ["os.system", "models.digits.np", "models.trainer.Path", "models.nowhere.x", "x", 3, ""],
)
def test_the_resolver_refuses(target):
    with pytest.raises(ValueError, match="_target_"):
        callable_at(target)


def test_a_locale_that_is_not_utf_8(tmp_path):
    """Names and messages are UTF-8 all the same."""
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, str(ROOT / "sample.py"), *DIGITS, "out=ünï"]
    ended = subprocess.run(
        words, cwd=tmp_path, capture_output=True, env=ascii_only | {"PATH": "/bin"}
    )
    assert ended.returncode == 0, ended.stderr
    assert "ünï" in ended.stdout.decode("utf-8")
    assert (tmp_path / "ünï" / "samples.npz").is_file()


def test_an_empty_folder_of_references_is_none():
    cfg = composed("evaluate", "samples=S", "reference.folder=''")
    assert reference_source(cfg).folder is None
