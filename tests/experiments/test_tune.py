"""Tuning: what is tried, what is chosen, and the whole way on a tiny run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import FEW, done, refused

import sample
from eval.table import Table
from experiments.tune import Tuned, search
from report.tuning import command as command_of
from report.tuning import verdict
from scripts import tune

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


def judged_by(quality, metric="fid"):
    """A judge whose scores are a made-up function of the sampler, and what it was asked."""
    asked = []

    def judge(samplers, n, seed):
        asked.append((list(samplers.values()), n, seed))
        rows = [record(row, n, **{metric: quality(s)}) for row, s in samplers.items()]
        return Table(rows), 100 * len(samplers)

    return judge, asked


def searched(judge, seed=0, **options) -> Tuned:
    return search({**EXPERIMENT, **options}, 5, GRID, seed, judge)


def distance(sampler):
    """Best at the window 250..750 with orders 2."""
    if sampler["name"] != "mixpp":
        return 9.0
    hi = 1000 if sampler.get("hi") is None else sampler["hi"]
    return abs(sampler["lo"] - 250) / 100 + abs(hi - 750) / 100 + (sampler["stochastic_order"] == 1)


def test_finds_both_ends_and_confirms_on_the_next_seed():
    judge, asked = judged_by(distance)
    tuned = searched(judge, seed=7)
    chosen = {"lo": 250, "hi": 750, "stochastic_order": 2}
    assert {key: tuned.chosen[key] for key in chosen} == chosen
    first, second, fresh = asked
    assert len(first[0]) == 2 * 6 and first[1:] == (10, 7)
    assert [s["hi"] for s in second[0]] == [500, 750, 999] and second[1:] == (10, 7)
    assert fresh[0] == [tuned.chosen, {"name": "mix", "cutoff": 291}] and fresh[1:] == (20, 8)
    assert tuned.calls == 100 * (12 + 3 + 2)
    line = command_of(tuned, "digits", "even")
    assert line.startswith("python sample.py model=digits steps=5 sampler=mixpp ")
    assert "sampler.lo=250" in line and "sampler.hi=750" in line
    said = verdict(tuned.confirmed, "Mix (paper)", 5, "fid")
    assert said == "better than Mix (paper) (FID +9.00 ± 0.28 in its favour)"


def test_a_window_with_one_side_and_scores_where_higher_is_better():
    def only_lo(sampler):
        return 10 - abs(sampler.get("lo", 0) - 500) / 100 - (sampler.get("hi") is not None)

    judge, _ = judged_by(only_lo, "is")
    tuned = searched(judge, metric="is")
    assert tuned.chosen["lo"] == 500 and tuned.chosen.get("hi") is None
    assert verdict(tuned.confirmed, "Mix (paper)", 5, "is").startswith("better than")
    with pytest.raises(ValueError, match=r"unknown experiment\.metric 'fdi'"):
        searched(judge, metric="fdi")


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
    (line,) = [row.strip() for row in text.splitlines() if row.startswith("    python sample.py")]
    stored = json.loads((tmp_path / "out/records.json").read_text())
    fresh = [r for r in stored if r["phase"] == "fresh"]
    rivals = ["Mix (paper)", "Skipped-Step", "DDIM", "DPM-Solver++(2M)"]
    assert [r["row"] for r in fresh] == ["Tuned", *rivals]
    assert {r["cell"]["config"]["seed"] for r in fresh} == {1}
    assert {r["cell"]["config"]["seed"] for r in stored if r["phase"] == "tuning"} == {0}
    done(command(sample, *line.split()[2:], "num_samples=2", "out=again"))
    config = json.loads((tmp_path / "again/manifest.json").read_text())["config"]
    assert config["sampler"] == fresh[0]["cell"]["config"]["sampler"]
    for word in ("dry=true", "render_only=true", "parts=2", "stage=sample"):
        refused(command(tune, *words, word), "leave")
