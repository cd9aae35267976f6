"""--help: every setting of a command has its sentence, in one place, and all that is said there is true."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, done, refused

import evaluate
import reproduce
import sample
from eval.extractors import EXTRACTORS
from eval.scoring import Options
from experiments.choices import (
    CONFIGS,
    TABLES,
    adm_models,
    chain,
    chosen,
    config_path,
    in_file,
    options_of,
    sentence_of,
)
from experiments.config import composed, plain
from experiments.help import FLAGS, help_text, sections
from experiments.settings import (
    COMMANDS,
    CONTEST,
    EXPERIMENT,
    FAMILIES,
    GIVEN,
    GUIDANCE,
    LOGGERS,
    METRICS,
    REFERENCE,
    Group,
    callable_at,
)
from models.adm.cards import card_names, read_card
from models.trainer import ClassifierRecipe, Recipe, Saving
from sampling.borrowed import sampler_kinds
from sampling.options import kinds_of
from scripts import advise, train, tune

MODULES = {
    **{"sample": sample, "evaluate": evaluate, "reproduce": reproduce},
    **{"train": train, "tune": tune, "advise": advise},
}
GROUPS = [
    "model",
    "sampler",
    "guidance",
    "metrics",
    "reference",
    "experiment",
    "logger",
    "training",
]
CHOICES = [(group, name) for group in GROUPS for name in options_of(group)]


def level(path: Path, prefix: str) -> set[str]:
    return {setting.name for file in chain(path) for setting in in_file(file, prefix)}


def understood(group: str, name: str) -> set[str]:
    """What `Checker` allows for a choice, but for whole levels, functions and the name of its file."""
    if group == "model":
        config = yaml.safe_load(config_path(group, name).read_text())
        while "_target_" not in config:
            config = yaml.safe_load(config_path(group, config["defaults"][0]).read_text())
        kinds = kinds_of(callable_at(config["_target_"]))
        return {key for key in kinds if key not in GIVEN} | {"name"}
    if group == "sampler":
        if name == "plan":
            return {"path", "eps_scale"}
        if name == "diffusers":
            return {"scheduler", "eps_scale"}  # the others are its class's
        return {*sampler_kinds(name, None), "eps_scale"} - {"x0_variance"}
    if group == "metrics":
        kinds = {key for one in EXTRACTORS.values() for key in kinds_of(one)} - {"device", "mode"}
        return (
            {f"options.{key}" for key in kinds_of(Options)}
            | kinds
            | {*METRICS}
            - {
                "options",
                "name",
            }
        )
    if group == "reference":
        return {key for key, kind in REFERENCE.items() if kind != Group}
    if group == "experiment":
        command = command_of(name)
        if command == "reproduce":
            return set(EXPERIMENT)
        kinds = {**CONTEST, **FAMILIES[composed(command, f"experiment={name}").experiment.family]}
        return {*kinds} - ({"num_samples"} if command == "advise" else set())
    if group == "training":
        parts = {"unet": Recipe, "saving": Saving, "classifier_recipe": ClassifierRecipe}
        return {f"{k}.{key}" for k, part in parts.items() for key in kinds_of(part)} - {
            "saving.folder"
        }
    return set({"guidance": GUIDANCE, "logger": LOGGERS}[group][name]) - {"name"}


def command_of(experiment):
    commands = {"tune": "tune", "advise": "advise"}
    return commands.get(experiment.partition("_")[0], "reproduce")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_lists_its_settings_each_once_and_nothing_else(command):
    own = [s for title, part in sections(command).items() if "=" not in title for s in part]
    names = [setting.name for setting in own]
    assert sorted(names) == sorted({*COMMANDS[command], "hydra/launcher"})
    assert all(setting.sentence for setting in own)
    groups = chosen(command, [])
    assert set(groups) == {name for name in names if (CONFIGS / name).is_dir()} - {"hydra/launcher"}
    for setting in own:
        if setting.name in groups:
            assert setting.sentence.endswith(", ".join(options_of(setting.name)))


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_setting_that_is_understood_has_a_sentence(group, name):
    for key in understood(group, name):
        assert sentence_of(config_path(group, name), f"{group}.{key}", f"{group}."), key


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_no_sentence_is_of_a_setting_that_is_gone(group, name):
    """What stands in a file is checked by Hydra and `Checker`; here what stands in its comments alone."""
    settings = [s for s in in_file(config_path(group, name), f"{group}.") if s.unset]
    for setting in settings:
        assert setting.name.removeprefix(f"{group}.") in understood(group, name)


def test_a_sentence_stands_in_one_place():
    """None repeats what is said of the setting where nothing is said."""
    for path in sorted(CONFIGS.rglob("*.yaml")):
        if path.parent.name in ("launcher", "site", "experiment"):
            continue  # whose comments say why a value is this one
        prefix = "" if path.parent == CONFIGS else f"{path.parent.name}."
        for setting in in_file(path, prefix):
            others = [f for f in sorted(path.parent.glob("*.yaml")) if f != path]
            said = [
                s.sentence for f in others for s in in_file(f, prefix) if s.name == setting.name
            ]
            first = next(filter(None, said), None)
            is_table = set(setting.name.split(".")) & set(TABLES)
            assert is_table or not setting.sentence or setting.sentence != first, (path, setting)


@pytest.mark.parametrize("experiment", options_of("experiment"))
def test_defaults_are_those_of_the_composed_config(experiment):
    command = command_of(experiment)
    cfg = plain(composed(command, f"experiment={experiment}"))
    shown = [s for part in sections(command, [f"experiment={experiment}"]).values() for s in part]
    for setting in shown:
        if setting.default in (None, "...", "[...]") or "<" in setting.default:
            continue
        if setting.name == "hydra/launcher":
            continue
        value = cfg
        for key in setting.name.split("."):
            value = value.get(key, "absent") if isinstance(value, dict) else "absent"
        if isinstance(value, dict):
            value = value["name"] if setting.name in chosen(command, []) else value
        if value != "absent" and not (isinstance(value, str) and "$" in setting.default):
            stated_here = yaml.safe_load(setting.default.replace(",", ", "))
            assert setting.name in ("model", "metrics", "reference", "experiment") or (
                stated_here == value
            ), setting


def test_models_without_a_file_are_those_of_the_cards():
    cards = {name: read_card(name) for name in card_names()}
    assert set(adm_models()) == {name for name, card in cards.items() if card.kind == "unet"}
    for name, node in adm_models().items():
        assert node["checkpoint"].endswith(cards[name].file_name)
        assert node["precision"] == cards[name].precision


@pytest.mark.parametrize("flag", ["--help", "-h", "--hel"])
@pytest.mark.parametrize("name", MODULES)
def test_help_is_printed_and_nothing_is_done(command, name, flag, tmp_path):
    out = done(command(MODULES[name], flag))
    for setting in COMMANDS[name]:
        assert re.search(rf"^  {setting}(=|$| )", out, re.M), setting
    for flag in FLAGS:
        assert f"  {flag}" in out
    assert "Powered by Hydra" not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=adm"], ["model.flags=null", "reference", "model=adm: Any checkpoint"]),
        (["model=adm_imagenet64"], ["model.card=adm_imagenet64", "model.precision=fp16"]),
        (["model=dit_xl2_256"], ["model.id=facebook/DiT-XL-2-256", "model.guided_channels=3"]),
        (["sampler=ddim,mixpp"], ["sampler.eta=0.0", "sampler.lo=291"]),
        (["+guidance=classifier"], ["guidance.scale=1.0"]),
        (["logger=wandb", "steps=7"], ["logger.mode=online", "steps=50"]),
    ],
)
def test_help_of_what_is_chosen(command, words, said):
    out = done(command(sample, *words, "--help"))
    for text in said:
        assert text in out.replace("\n", " ") or text in out


def test_an_experiment_brings_its_model_and_a_model_its_scores(command):
    out = done(command(reproduce, "experiment=table3", "-h"))
    for text in ("model=sd21", "model.set_alpha_to_one=false", "metrics.scores=[is,fid,kid]"):
        assert f"  {text}" in out
    assert "  reference=coco_center_lanczos256" in out
    out = done(command(reproduce, "experiment=table3", "model=digits", "-h"))
    assert "  model=digits" in out and "  reference=digits" in out
    out = done(command(sample, "-h"))
    for other in ("metrics", "reference", "experiment", "samples", "dry"):
        assert not re.search(rf"^  {other}[=.]", out, re.M)


def test_a_name_that_is_not_there_is_refused_with_a_guess(command):
    refused(command(sample, "model=adn", "--help"), "did you mean model=adm?")
    refused(command(reproduce, "-h", "experiment=tabel1"), "did you mean experiment=table1?")


def test_help_of_a_config_of_ones_own(command, tmp_path):
    (tmp_path / "mine" / "sampler").mkdir(parents=True)
    text = "name: mix\ncutoff: 400\n"
    (tmp_path / "mine" / "sampler" / "later.yaml").write_text(text)
    out = done(command(sample, "--config-dir=mine", "sampler=later", "--help"))
    assert "  sampler=later" in out


@pytest.mark.parametrize("width", [40, 72, 110, 1000])
@pytest.mark.parametrize("name", COMMANDS)
def test_lines_are_as_wide_as_the_terminal(name, width):
    """But for examples and names, which are to be copied."""
    text = help_text(name, MODULES[name].__doc__, width=width)
    assert text.isascii()
    copied = {f"  {s.name}={s.default}" for part in sections(name).values() for s in part}
    copied |= {f"  {s.name}" for part in sections(name).values() for s in part}
    copied |= {f"  {flag}" for flag in FLAGS}
    for line in text.splitlines():
        one = line in copied or len(line.split()) == 1
        assert len(line) <= width or one or line.startswith("    python "), line


def started(*words: str, **options) -> subprocess.CompletedProcess:
    made = [sys.executable, *words]
    return subprocess.run(made, cwd=ROOT, text=True, capture_output=True, **options)


@pytest.mark.parametrize("words", [("--help",), ("model=dit", "-h"), ("-sc", "install=bash")])
@pytest.mark.parametrize("script", ["sample.py", "reproduce.py", "evaluate.py"])
def test_help_does_not_wait_for_torch(script, words):
    status = started("-X", "importtime", script, *words)
    assert status.returncode == 0 and status.stdout
    imported = set(re.findall(r"\| +([\w.]+)$", status.stderr, re.M))
    assert "hydra" in imported and not imported & {"torch", "numpy", "diffusers"}


def test_a_reader_may_close_the_pipe():
    line = f"{sys.executable} sample.py --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    outcome = subprocess.run(["bash", "-c", line], cwd=ROOT, text=True, capture_output=True)
    assert outcome.stdout == "Sample a pretrained diffusion model.\n0\n"
    assert outcome.stderr == ""
    narrow = started("sample.py", "--help", env={**os.environ, "COLUMNS": "50"})
    lines = narrow.stdout.split("\n\n")[2].splitlines()
    assert lines[0].startswith("Writes samples.npz") and max(map(len, lines)) <= 50


def test_the_flags_of_hydra_have_their_own_help():
    outcome = started("sample.py", "--hydra-help")
    assert outcome.returncode == 0 and "--experimental-rerun" in outcome.stdout


# --- scripts and make ---------------------------------------------------------------------------

SCRIPTS = [p.stem for p in sorted((ROOT / "scripts").glob("[a-z]*.py")) if p.stem not in MODULES]


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options of a parser and of its commands, these themselves too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._choices_actions
            for command in action.choices.values():
                yield from options(command)
        else:
            yield action


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_of_each_option_and_does_nothing(script, monkeypatch, name):
    parsers, parse = [], argparse.ArgumentParser.parse_known_args

    def seen(self, *args, **more):
        parsers.append(self)
        return parse(self, *args, **more)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", seen)
    module = importlib.import_module(f"scripts.{name}")
    out = done(script(module.main, "--help"))
    assert module.__doc__.splitlines()[0] in out
    for option in (option for parser in parsers for option in options(parser)):
        text = str(option.help)
        assert option.help and text[0].islower() and text[-1] != "." and "default:" not in text


def test_make_help_tells_of_every_target():
    makefile = (ROOT / "Makefile").read_text()
    (targets,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    told = re.findall(r"^([a-z0-9_-]+):.*## [a-zA-Z].*[^.]$", makefile, re.M)
    assert sorted(told) == sorted(targets.split())
    # As it is printed: each once, in a group.
    out = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout
    first, *groups = out.split("\n\n")
    assert first.split()[0] == "help" and len(groups) > 4
    printed = re.findall(r"^  ([a-z0-9_-]+) +[a-zA-Z]", out, re.M)
    assert sorted(printed) == sorted(told)
    for group in groups[:-1]:
        title, *lines = group.splitlines()
        assert title[0].isupper() and lines and all(line.startswith("  ") for line in lines)
    assert re.search(r"^  test .* minutes ", out, re.M)


# --- shell completion ---------------------------------------------------------------------------

# What is typed -> some of what is proposed.
COMPLETED = {
    "sample.py mod": {"model.", "model="},
    "sample.py model=adm_ls": {"model=adm_lsun_bedroom", "model=adm_lsun_cat"},
    "sample.py sampler=mixp": {"sampler=mixpp"},
    "sample.py sampler=ddim sampler.e": {"sampler.eta=", "sampler.eps_scale="},
    "reproduce.py experiment=table1_s": {"experiment=table1_small"},
    "evaluate.py metrics.op": {"metrics.options."},
}
# How the shell is told, in the page's words.
(TOLD,) = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/completion.md").read_text("utf-8"), re.S)
BASH, ZSH, OF_FISH = TOLD.splitlines()
ASKED = (
    f"{BASH}\n"
    + """\
COMP_LINE="python $1" COMP_WORDS=(python $1) COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
COMP_POINT=${#COMP_LINE}
hydra_bash_completion
printf '%s\n' "${COMPREPLY[@]}"
complete -p python >&2
"""
)


FISH = f"""
{OF_FISH}
complete -C "python sample.py sampler=mixp"
complete -C "python sample.py sampler=ddim sampler.e"
"""


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_settings_and_names():
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    made, environment = ["fish", "--no-config", "-c", FISH], {**os.environ, "PATH": path}
    out = subprocess.run(made, cwd=ROOT, text=True, capture_output=True, env=environment)
    assert {"sampler=mixpp", "sampler.eta=", "sampler.eps_scale="} <= set(out.stdout.split())


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_can_be_told_as_bash_is():
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    made, environment = ["zsh", "-f", "-c", f"{ZSH}\n{BASH}"], {**os.environ, "PATH": path}
    out = subprocess.run(made, cwd=ROOT, text=True, capture_output=True, env=environment)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize("typed", COMPLETED)
def test_bash_completes_settings_and_names(typed):
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    made = ["bash", "-c", ASKED, "bash", typed]
    environment = {**os.environ, "PATH": path}
    out = subprocess.run(made, cwd=ROOT, text=True, capture_output=True, env=environment)
    assert COMPLETED[typed] <= set(out.stdout.split()), out.stderr
    assert "-F hydra_bash_completion python" in out.stderr
