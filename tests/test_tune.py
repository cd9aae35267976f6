"""Tuning: what is tried, what is chosen, and the whole way on a tiny run."""

from __future__ import annotations

import json

import numpy as np
import pytest

import reproduce
import sample
from eval.table import Cell
from experiments.tune import config_line, tune, verdict

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


def cell(row, fid, n=10, se=0.1):
    scores = {"fid": {"value": fid, "se": se}}
    return Cell(row, 5, {"scores": scores, "floor": None, "n": n})


def make_judge(quality, asked):
    """Scores are a made-up function of the sampler."""

    def judge(samplers, n, seed):
        asked.append((list(samplers.values()), n, seed))
        return [cell(row, quality(s), n) for row, s in samplers.items()], 100 * len(samplers)

    return judge


def distance(sampler):
    """Best at the window 250..750 with orders 2."""
    if sampler["name"] != "mixpp":
        return 9.0
    hi = 1000 if sampler.get("hi") is None else sampler["hi"]
    return abs(sampler["lo"] - 250) / 100 + abs(hi - 750) / 100 + (sampler["stochastic_order"] == 1)


def test_finds_both_ends_and_confirms_on_the_next_seed():
    asked = []
    found = tune(EXPERIMENT, 5, GRID, 7, make_judge(distance, asked))
    assert {k: found.chosen[k] for k in ("lo", "hi", "stochastic_order")} == {
        "lo": 250,
        "hi": 750,
        "stochastic_order": 2,
    }
    first, second, fresh = asked
    assert len(first[0]) == 2 * 6 and first[1:] == (10, 7)
    assert [s["hi"] for s in second[0]] == [500, 750, 999] and second[1:] == (10, 7)
    assert fresh[0] == [found.chosen, {"name": "mix", "cutoff": 291}] and fresh[1:] == (20, 8)
    assert found.calls == 100 * (12 + 3 + 2)
    line = config_line(found, "digits", "even")
    assert line.startswith("python sample.py model=digits steps=5 sampler=mixpp ")
    assert "sampler.lo=250" in line and "sampler.hi=750" in line
    assert verdict(found, found.confirmed[1], "fid") == (
        "better than Mix (paper) (FID +9.00 ± 0.28 in its favour)"
    )


def test_a_window_with_one_side_and_scores_where_higher_is_better():
    def only_lo(sampler):
        return 10 - abs(sampler.get("lo", 0) - 500) / 100 - (sampler.get("hi") is not None)

    def judge(samplers, n, seed):
        cells = []
        for row, s in samplers.items():
            scores = {"is": {"value": only_lo(s), "se": 1.0}}
            cells.append(Cell(row, 5, {"scores": scores, "floor": None, "n": n}))
        return cells, 0

    found = tune({**EXPERIMENT, "metric": "is"}, 5, GRID, 0, judge)
    assert found.chosen["lo"] == 500 and found.chosen.get("hi") is None
    assert "better than" in verdict(found, found.confirmed[1], "is")
    with pytest.raises(ValueError, match=r"unknown experiment\.metric 'fdi'"):
        tune({**EXPERIMENT, "metric": "fdi"}, 5, GRID, 0, judge)


def test_differences_within_the_interval_decide_nothing():
    found = tune(EXPERIMENT, 5, GRID, 0, make_judge(lambda s: 1.0, []))
    assert verdict(found, cell("DDIM", 1.2), "fid").startswith("not told apart from DDIM")
    assert verdict(found, cell("DDIM", 0.5), "fid").startswith("worse than DDIM")


def test_from_the_command_line_and_the_line_that_it_prints(command, tmp_path):
    words = ["experiment=tune", "model=digits", "steps=3", "num_samples=70", "experiment.windows=2",
             "experiment.tuning_samples=70", "metrics.options.kid_subset_size=50",
             "metrics.options.bootstrap=10", "out=out"]  # fmt: skip
    status, out, err = command(reproduce, *words)
    assert status == 0, err
    text = (tmp_path / "out/tuning.md").read_text()
    assert text in out and "image calls. To use it" in text.replace("calls.  To", "calls. To")
    (line,) = [row.strip() for row in text.splitlines() if row.startswith("    python sample.py")]
    stored = json.loads((tmp_path / "out/records.json").read_text())
    fresh = [r for r in stored if r["phase"] == "fresh"]
    assert [r["row"] for r in fresh] == ["Tuned", "Mix (paper)", "Skipped-Step", "DDIM", "DPM-Solver++(2M)"]  # fmt: skip
    assert {r["cell"]["config"]["seed"] for r in fresh} == {1}
    assert {r["cell"]["config"]["seed"] for r in stored if r["phase"] == "tuning"} == {0}
    made = line.split()[2:]
    status, _, err = command(sample, *made, "num_samples=2", "out=again")
    assert status == 0, err
    config = json.loads((tmp_path / "again/manifest.json").read_text())["config"]
    assert config["sampler"] == fresh[0]["cell"]["config"]["sampler"]
    status, _, err = command(reproduce, *words, "dry=true")
    assert status == 2 and "leave dry and render_only" in err
