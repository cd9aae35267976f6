"""The study's fresh seeds: what tuning promised, and that its words follow the records."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import ROOT

from eval.table import Table, gain
from report import study_fresh
from report.study import Study
from report.study_fresh import MIXSTAR, NETWORK_STEPS, Fresh
from sampling import Plan, Schedule, timesteps
from sampling.plan import eps_scale_of, scale_eps
from sampling.samplers import named

RESULTS = ROOT / "results"
TUNED = RESULTS / "digits" / "tune_star"


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load(RESULTS)


@pytest.fixture(scope="module")
def fresh(study) -> Fresh:
    return study.fresh


def seeds(records):
    return {r["cell"]["config"]["seed"] for r in records}


def test_what_confirms_chose_nothing_and_is_paired(fresh, study):
    apart = {(seed - 10) % 1000 for seed in seeds(fresh.tried)}  # those of generations
    assert apart == {0} and seeds(fresh.table.records) == {11}
    assert all(fresh.table.n(steps) >= 4000 for steps in fresh.steps)
    assert fresh.table.paired_columns("fid") == fresh.steps
    windows = [RESULTS / "digits" / name / "records.json" for name in ("tune", "tune_log_snr")]
    used = set().union(*(seeds(json.loads(path.read_text())) for path in windows))
    assert not used & {10, 11, 12}
    assert seeds(study.scales.records) == {12}


def test_every_rival_is_on_the_grid_that_was_its_best_by_the_tuning_seed(fresh):
    """Of those with as many samples as any of its grids got."""
    for steps in fresh.steps:
        for row in fresh.named:
            tried = [
                r for r in fresh.tried if r["steps"] == steps and r["row"].startswith(f"{row}, ")
            ]
            most = max(r["n"] for r in tried)
            best = min(
                (r for r in tried if r["n"] == most), key=lambda r: r["scores"]["fid"]["value"]
            )
            assert best["cell"]["config"]["spacing"] == fresh.spacing[row, steps], (row, steps)


def test_the_plans_are_those_of_the_records(fresh):
    schedule = Schedule.linear()
    for steps in fresh.steps:
        stored = Plan.from_json((TUNED / f"mixstar-digits-{steps}.json").read_text("utf-8"))
        options = {**fresh.options(steps)}
        scale = eps_scale_of(options.pop("eps_scale", None))
        grid = timesteps(schedule, steps, fresh.spacing[MIXSTAR, steps])
        plan = named(options.pop("name"), schedule, grid, **options)
        plan = scale_eps(plan, *scale, limited=True) if scale else plan
        for name in ("x", "x0", "noise", "t", "s", "eps_scale"):
            assert np.array_equal(getattr(plan, name), getattr(stored, name)), (steps, name)


def test_what_it_scored_when_it_was_tuned_is_beside_it(fresh):
    """Of the seed that chose it, on as many samples as the confirmation."""
    for steps in fresh.steps:
        config = fresh.table.record(MIXSTAR, steps)["cell"]["config"]
        (same,) = (
            r for r in fresh.tried if r["n"] == 4000 and r["steps"] == steps
            and r["cell"]["config"] == {**config, "seed": 10}
        )  # fmt: skip
        assert fresh.when_tuned(steps).value == same["scores"]["fid"]["value"]
        lines = study_fresh._leads(fresh).splitlines()
        (line,) = (line for line in lines if line.startswith(f"| {steps} |"))
        assert f"| {same['scores']['fid']['value']:.2f} ± " in line


def test_a_claim_on_networks_that_they_do_not_bear_out_says_so(study):
    shares = [fresh.noise(NETWORK_STEPS) for fresh in study.networks.values()]
    said = study_fresh.slots(study.fresh, study.networks, study.scales)["noise_follows_error"]
    assert (said == "") == all(a < b for a, b in pairwise(shares))
    backwards = dict(zip(study.networks, reversed(study.networks.values()), strict=True))
    other = study_fresh.slots(study.fresh, backwards, study.scales)["noise_follows_error"]
    assert (other == "") == all(a > b for a, b in pairwise(shares))


def test_a_lead_is_told_from_the_paired_difference(fresh, study):
    """Were Mix*'s scores those of the best of the others, it would lead nowhere."""
    steps = fresh.steps[0]
    best = fresh.table.record(fresh.best_named(steps), steps)
    same = [
        {**best, "row": r["row"]} if r["row"] == MIXSTAR and r["steps"] == steps else r
        for r in fresh.table.records
    ]
    level = replace(fresh, table=Table(same))
    assert level.lead(steps).value == 0 and level.lead(steps).words == "not told apart from"
    slots = study_fresh.slots(level, study.networks, study.scales)
    assert str(steps) in slots["fresh_not_ahead"].split(", ")


def test_advice_names_no_sampler_that_the_study_calls_worse_than_the_best(fresh):
    """results/digits/advice is what `make advise` says in some ten minutes, of its own rivals."""
    records = json.loads((RESULTS / "digits" / "advice" / "records.json").read_text("utf-8"))
    counts = sorted({r["steps"] for r in records} & {*fresh.steps})
    compared = []
    for steps in counts:
        raced = [r for r in records if r["steps"] == steps and r["phase"] == "race"]
        most = max(r["n"] for r in raced)
        best = min((r for r in raced if r["n"] == most), key=lambda r: r["scores"]["fid"]["value"])
        row, _, spacing = best["row"].partition(", ")
        if fresh.spacing[row, steps] != spacing:
            continue  # the study confirms each sampler on one grid, and this is another
        others = {r["row"].partition(", ")[0] for r in raced}
        lowest = fresh.table.best(steps, "fid", others)
        ours, theirs = (fresh.table.score(name, steps, "fid") for name in (row, lowest))
        assert gain("fid", ours, theirs).words != "worse than", (steps, row)
        compared.append(steps)
    assert len(compared) >= 2 and len(counts) == 3
