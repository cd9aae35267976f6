"""Tuning: what is tried, what is chosen, and the whole way on a tiny run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import FEW, done, refused

import sample
from eval.table import Table
from experiments import generate
from experiments.tune import Tuned, search_window
from report.tuning import command as command_of
from report.tuning import verdict
from scripts import advise, tune

EXPERIMENT = {
    "metric": "fid",
    "windows": 5,
    "orders": [[1, 1], [2, 2]],
    "variances": ["fixed_small"],
    "tuning_samples": 10,
    "num_samples": 20,
    "rivals": {"Mix (paper)": {"name": "mix", "cutoff": 291}},
}
GRID = np.array([999, 750, 500, 250, 0])


def record(row, n=10, **scores):
    scores = {metric: {"value": value, "se": 0.1} for metric, value in scores.items()}
    return {"row": row, "steps": 5, "n": n, "scores": scores, "floor": None}


class Judge:
    """One whose scores are a made-up function of the sampler, and which keeps what it was asked."""

    def __init__(self, quality, metric="fid"):
        self.quality, self.metric, self.asked, self.calls = quality, metric, [], 0

    def table(self, samplers, n, seed):
        self.asked.append((list(samplers.values()), n, seed))
        self.calls += 100 * len(samplers)
        rows = [record(row, n, **{self.metric: self.quality(s)}) for row, s in samplers.items()]
        return Table(rows)

    confirmed = table


def searched(judge, seed=0, **options) -> Tuned:
    return search_window({**EXPERIMENT, **options}, 5, GRID, seed, judge)


def distance(sampler):
    """Best at the window 250..750 with orders 2."""
    if sampler["name"] != "mixpp":
        return 9.0
    hi = 1000 if sampler.get("hi") is None else sampler["hi"]
    return abs(sampler["lo"] - 250) / 100 + abs(hi - 750) / 100 + (sampler["stochastic_order"] == 1)


def test_finds_both_ends_and_confirms_on_the_next_seed():
    judge = Judge(distance)
    tuned = searched(judge, seed=7)
    chosen = {"lo": 250, "hi": 750, "stochastic_order": 2}
    assert {key: tuned.chosen[key] for key in chosen} == chosen
    first, second, fresh = judge.asked
    assert len(first[0]) == 2 * 6 and first[1:] == (10, 7)
    assert [s["hi"] for s in second[0]] == [500, 750, 999] and second[1:] == (10, 7)
    assert fresh[0] == [tuned.chosen, {"name": "mix", "cutoff": 291}] and fresh[1:] == (20, 8)
    assert tuned.calls == 100 * (12 + 3 + 2)
    line = command_of(tuned.chosen, 5, {"model": "digits", "spacing": "even"})
    assert line.startswith("python sample.py model=digits steps=5 sampler=mixpp ")
    assert "sampler.lo=250" in line and "sampler.hi=750" in line
    said = verdict(tuned.confirmed, "Mix (paper)", 5, "fid")
    assert said == "better than Mix (paper) (FID +9.00 ± 0.28 in its favour)"


def test_a_window_with_one_side_and_scores_where_higher_is_better():
    def only_lo(sampler):
        return 10 - abs(sampler.get("lo", 0) - 500) / 100 - (sampler.get("hi") is not None)

    judge = Judge(only_lo, "is")
    tuned = searched(judge, metric="is")
    assert tuned.chosen["lo"] == 500 and tuned.chosen.get("hi") is None
    assert verdict(tuned.confirmed, "Mix (paper)", 5, "is").startswith("better than")


def test_differences_within_the_interval_decide_nothing():
    confirmed = Table([record(r, fid=v) for r, v in (("Tuned", 1.0), ("a", 1.2), ("b", 0.5))])
    assert verdict(confirmed, "a", 5, "fid").startswith("not told apart from a")
    assert verdict(confirmed, "b", 5, "fid").startswith("worse than b")


def test_from_the_command_line_and_the_line_that_it_prints(command, tmp_path):
    words = ["experiment=tune_small", "steps=3", "num_samples=70", "experiment.windows=2", *FEW]
    words += ["experiment.tuning_samples=70", "out=out"]
    out = done(command(tune, *words))
    text = (tmp_path / "out/tuning.md").read_text()
    assert text.strip() in out and "image calls.  To use it" in text
    line, of_plan = [row.strip() for row in text.splitlines() if row.startswith("    python ")]
    stored = json.loads((tmp_path / "out/records.json").read_text())
    fresh = [r for r in stored if r["phase"] == "fresh"]
    rivals = ["Mix (paper)", "Skipped-Step", "DDIM", "DPM-Solver++(2M)"]
    assert [r["row"] for r in fresh] == ["Tuned", *rivals]
    assert {r["cell"]["config"]["seed"] for r in fresh} == {1}
    assert {r["cell"]["config"]["seed"] for r in stored if r["phase"] == "tuning"} == {0}
    done(command(sample, *line.split()[2:], "num_samples=2", "out=again"))
    config = json.loads((tmp_path / "again/manifest.json").read_text())["config"]
    assert config["sampler"] == fresh[0]["cell"]["config"]["sampler"]
    done(command(sample, *of_plan.split()[2:], "num_samples=2", "out=plan"))
    assert same_pictures(tmp_path / "again", tmp_path / "plan")
    for word in ("render_only=true", "parts=2", "stage=sample"):
        refused(command(tune, *words, word), "leave")


STAR = [
    *("experiment=tune_star_small", "steps=2", "num_samples=70", *FEW, "out=out", "label=balanced"),
    *("model.checkpoint=unet-1000", "model.precision=fp32", "experiment.rounds=[70]"),
    *("experiment.generation_samples=70", "experiment.finalist_samples=70"),
    *("experiment.starts=1", "experiment.orders=[[2]]"),
    *("experiment.grids=[even,karras]", "budget=5000"),
    *(f"~experiment.rivals.{row}" for row in ("UniPC", "DEIS", "SA-Solver", "Heun", "iPNDM")),
]


def test_mixstar_from_the_command_line_and_every_line_that_it_prints(command, tmp_path):
    text = done(command(tune, *STAR))
    assert (tmp_path / "out/tuning.md").read_text().strip() in text
    by_hand, of_plan = [
        row.strip() for row in text.splitlines() if row.startswith("    python sample.py")
    ]
    stored = json.loads((tmp_path / "out/records.json").read_text())
    fresh = [r for r in stored if r["phase"] == "fresh"]
    rivals = {r["row"].partition(",")[0] for r in fresh[1:]}
    assert fresh[0]["row"] == "Mix*" and {"Mix", "DDIM", "DDPM", "Skipped-Step"} < rivals
    assert {r["cell"]["config"]["seed"] for r in fresh} == {11}
    tuning = {r["cell"]["config"]["seed"] for r in stored if r["phase"] == "tuning"}
    assert tuning == {10, 1010}  # a generation has a seed of its own
    few = ["num_samples=3", "seed=5"]
    for line, out in ((by_hand, "numbers"), (of_plan, "plan")):
        done(command(sample, *shlex.split(line)[2:], *few, f"out={out}"))
    assert same_pictures(tmp_path / "numbers", tmp_path / "plan")
    assert 'PlanScheduler.from_json("out/mixstar-digits-2.json"' in text
    # Again, it finds everything sampled and says the same, byte for byte.
    there = [(tmp_path / "out" / name).read_bytes() for name in ("records.json", "tuning.md")]
    again = command(tune, *STAR)
    assert done(again) and there == [
        (tmp_path / "out" / name).read_bytes() for name in ("records.json", "tuning.md")
    ]
    refused(command(tune, *STAR, "budget=100"), "are too few")
    remedy = re.search(r"give (budget=\d+) or more", command(tune, *STAR, "budget=100")[2])
    done(command(tune, *STAR, remedy[1]))


ADVICE = [
    *("steps=3", *FEW, "model.checkpoint=unet-1000", "experiment.rounds=[70,140]", "out=out"),
    *("experiment.grids=[even,karras]", "budget=9000"),
    *(f"~experiment.rivals.{row}" for row in ("UniPC", "DEIS", "SA-Solver")),
]


def test_advice_from_the_command_line(command, tmp_path):
    text = done(command(advise, *ADVICE))
    assert (tmp_path / "out/advice.md").read_text().strip() in text
    head, table = text.split("| Calls |")
    best = table.splitlines()[2].split("|")[2].strip()
    assert "Scores are of fresh seeds" in head and "many steps" not in head
    lines = [row.strip() for row in text.splitlines() if row.startswith("    python sample.py")]
    few = ["num_samples=3", "seed=5"]
    for line, out in zip(lines, ("numbers", "plan"), strict=True):
        done(command(sample, *shlex.split(line)[2:], *few, f"out={out}"))
    assert same_pictures(tmp_path / "numbers", tmp_path / "plan")
    stored = json.loads((tmp_path / "out/records.json").read_text())
    raced = {r["row"]: r for r in stored if r["phase"] == "race"}
    fresh = {r["row"]: r for r in stored if r["phase"] == "fresh"}
    assert best in fresh and "DDIM, even" in fresh
    assert (
        len(raced) == 4 * 2
    )  # in 3 steps Mix, whose only row without noise is the last, is Skipped-Step
    assert "left out: Mix, even: at 3 steps it is Skipped-Step, even" in text
    most = max(r["n"] for r in raced.values())
    scores = {row: r["scores"]["fid"]["value"] for row, r in raced.items() if r["n"] == most}
    assert best == min(scores, key=scores.get)
    assert spent_of(text) <= 9000
    refused(command(advise, "experiment=tune_small", "steps=2"), "choose advise")


def spent_of(text):
    return int(re.search(r"(?:All of it|this) took ([\d,]+) image calls", text)[1].replace(",", ""))


@pytest.fixture
def images(monkeypatch):
    """Counts the images that the network sees."""
    seen, real = [0], generate.run_tree

    def counting(denoiser, plans, noise):
        def counted(x, *told):
            seen[0] += len(x)
            return denoiser(x, *told)

        return real(counted, plans, noise)

    monkeypatch.setattr(generate, "run_tree", counting)
    return seen


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
def test_what_is_said_to_be_spent_is_what_the_network_saw(command, images):
    """A short shard is made again for more samples; Heun calls twice a jump."""
    words = [*ADVICE, "samplers=[ddim,heun]", "experiment.grids=[even]", "budget=3000"]
    text = done(command(advise, *words))
    assert spent_of(text) == images[0] > 3 * 2 * 140
    again = done(command(advise, *words))
    assert spent_of(again) == spent_of(text) == images[0]


def test_a_dry_run_says_what_it_takes_and_samples_nothing(command, images):
    many = ["experiment.against.steps=4", "experiment.against.num_samples=100", "reference=none"]
    words = [*ADVICE, *many, "samplers=[ddim,skipped]", "budget=4000"]
    out = done(command(advise, *words, "dry=true"))
    low, high = re.search(r"^([\d,]+) to ([\d,]+) image calls in all", out, re.M).groups()
    assert images[0] == 0 and "of one such device" in out and not Path("runs").exists()
    text = done(command(advise, *words))
    assert int(low.replace(",", "")) <= images[0] <= int(high.replace(",", ""))
    assert images[0] == spent_of(text) + 400 and "took 400 image calls more" in text
    out = done(command(tune, *STAR, "dry=true"))
    assert re.search(r"^2 steps +15 .* 5,000 +\+1,680$", out, re.M)
    window = ["experiment=tune_small", "steps=[3,5]", "dry=true", *FEW]
    assert re.search(r"^5 steps +12 ", done(command(tune, *window)), re.M)


MINE = """
defaults: [digits, _self_]
name: mine
checkpoint: unet-1000
"""
OWN = """
# @package _global_
defaults: [advise@experiment, override /model@_global_.model: mine, _self_]
noise: brownian
model: {clip: false}
experiment:
  label: 3
  precision: bf16
  steps: 3
  rounds: [70, 140]
  grids: [even]
  budget: 3000
  rivals: {"a|b\\n<i>": {name: skipped}, b: {name: ddim, eps_scale: [0.00001, 1]}}
"""


def test_printed_lines_know_what_configs_of_ones_own_say(command):
    for group, name, text in (("model", "mine", MINE), ("experiment", "own", OWN)):
        folder = Path("my configs", group)
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(text)
    gone = [
        f"~experiment.rivals.{row}"
        for row in ("DDIM", "Skipped-Step", "Mix", "UniPC", "DEIS", "SA-Solver")
    ]
    words = ["--config-dir=my configs", "experiment=own", *FEW, *gone, "out=out"]
    text = done(command(advise, *words))
    stored = json.loads(Path("out/records.json").read_text())
    lines = [row.strip() for row in text.splitlines() if row.startswith("    python sample.py")]
    for line, out in zip(lines, ("numbers", "plan"), strict=True):
        done(command(sample, *shlex.split(line)[2:], "num_samples=3", f"out={out}"))
        config = json.loads(Path(out, "manifest.json").read_text())["config"]
        theirs = stored[0]["cell"]["config"]
        for key in ("model", "noise", "label"):
            assert config[key] == theirs[key]
    said = Path("out/advice.md").read_text()
    rows = [row for row in said.splitlines() if row.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 7}
    assert "&lt;i>" in said and "<i>" not in said


def test_too_few_samples_end_in_a_line_that_works(command):
    few = {
        (advise, "experiment.rounds=[10]"): ADVICE,
        (tune, "experiment.generation_samples=10"): STAR,
        (tune, "experiment.rounds=[3,5]"): STAR,
        (tune, "num_samples=20"): STAR,
    }
    for (script, word), words in few.items():
        outcome = command(script, *words, word)
        refused(outcome, f"got {word.strip(']').split('=')[1].split(',')[-1].strip('[')}: give ")
        remedy = re.search(r": give (\S+)$", outcome[2].strip())[1]
        assert remedy.partition("=")[0] == word.partition("=")[0]
        done(command(script, *words, remedy, "dry=true"))


def test_budgets_that_are_too_small_end_in_a_line_that_works(command):
    against = ["reference=none", "experiment.against.steps=4", "experiment.against.num_samples=100"]
    for words in (ADVICE, [*ADVICE, *against]):
        outcome = command(advise, *words, "budget=1000")
        refused(outcome, "are too few")
        assert not Path("runs").exists()  # nor were samples to compare with made before
        remedy = re.search(r"give (budget=\d+) or more", outcome[2])[1]
        done(command(advise, *words, remedy, "dry=true"))


WRONG = {  # and what the refusal says
    "steps=[2,2]": "twice",
    "steps=[]": "empty",
    "experiment.rounds=[]": "empty",
    "experiment.rounds=[140,70]": "each larger",
    "experiment.rounds=[70,70]": "each larger",
    "experiment.rounds=[0,70]": "each larger",
    "experiment.grids=[]": "empty",
    "budget=0": "are too few",
    "budget=-1": "are too few",
    "render_only=true": "leave render_only",
    "only=2": "leave only=null",
    "num_samples=100": "leave num_samples=null",
}
WRONG_OF_TUNING = {
    "experiment.orders=[]": "empty",
    "experiment.orders=[[1,2,3]]": "one order or two",
    "experiment.starts=-1": "at least 0",
    "num_samples=[70,70]": "one number",
    "budget=-5": "are too few",
}


def test_what_nothing_can_be_made_of_is_refused(command):
    for word, said in WRONG.items():
        refused(command(advise, *ADVICE, word), said)
    for word, said in WRONG_OF_TUNING.items():
        refused(command(tune, *STAR, word), said)
    refused(command(tune, "experiment=tune_small", "steps=3", "budget=10"), "leave budget=null")


def test_advice_races_the_samplers_of_a_list_and_prints_what_the_model_is(command):
    words = [
        *ADVICE,
        "samplers=[ddim,{name:mix,cutoff:200}]",
        "label=3",
        "noise=brownian",
        "budget=3000",
    ]
    text = done(command(advise, *words, "out=a folder"))
    lines = [row.strip() for row in text.splitlines() if row.startswith("    python sample.py")]
    few = ["num_samples=3", "seed=1", "batch_size=3"]
    for line, out in zip(lines, ("numbers", "plan"), strict=True):
        assert "null" not in line.replace("steps=null", "")
        done(command(sample, *shlex.split(line)[2:], *few, f"out={out}"))
        config = json.loads(Path(out, "manifest.json").read_text())["config"]
        told = config["label"], config["noise"], config["model"]["checkpoint"]
        assert told == (3, "brownian", "unet-1000")
    assert same_pictures(Path("numbers"), Path("plan"))
    assert {r["row"] for r in json.loads(Path("a folder/records.json").read_text())} == {
        f"{row}, {grid}" for row in ("DDIM", "Mix (cutoff=200)") for grid in ("even", "karras")
    }


def test_the_model_to_compare_with_makes_as_many_samples_as_are_asked_for(command):
    few = ["experiment.against.steps=4", "reference=none", "samplers=[ddim,mix]", "budget=3500"]
    for n in (110, 80):  # the larger folder is found again
        text = done(command(advise, *ADVICE, *few, f"experiment.against.num_samples={n}"))
        assert f"reference `itself` ({n} images" in text
    wrong = {"num_samples=1": "2 samples or more", "steps=0": "1 or more", "foo=1": "no option"}
    for word, said in wrong.items():
        refused(command(advise, *ADVICE, *few, f"experiment.against.{word}"), said)
    outcome = command(advise, *ADVICE, *few, "budget=1")
    refused(outcome, "give budget=20000")
    assert "num_samples=" not in outcome[2]  # none is enough


def test_advice_without_real_images_is_against_many_steps_of_the_model(command, tmp_path):
    few = ["experiment.against.num_samples=100", "experiment.against.steps=4", "reference=none"]
    text = done(command(advise, *ADVICE, *few))
    assert "There were no real images" in text and "reference `itself` (100 images" in text
    refused(command(advise, *ADVICE, *few, "budget=700"), "experiment.against.num_samples=87")


def same_pictures(one, other):
    return np.array_equal(*(np.load(folder / "samples.npz")["arr_0"] for folder in (one, other)))
