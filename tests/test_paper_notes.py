"""What docs/paper_notes.md states of grids and variances, and that the tests it names exist."""

from __future__ import annotations

import re

import numpy as np
import pytest
import yaml
from conftest import ROOT

from sampling import SPACINGS, Schedule, ddpm, skipped, timesteps

NOTES = (ROOT / "docs" / "paper_notes.md").read_text()


def test_291_is_a_node_of_the_even_grid_of_25_steps_and_of_no_other():
    grids = {spacing: timesteps(1000, 25, spacing).tolist() for spacing in SPACINGS}
    assert [spacing for spacing, grid in grids.items() if 291 in grid] == ["even", "linspace"]
    assert grids["even"] == grids["linspace"]
    assert grids["even"][:-8:-1] == [0, 42, 83, 125, 166, 208, 250]
    assert [t % 40 for t in grids["ddim"] + grids["leading"]] == [0] * 50
    assert grids["trailing"][0] == 999 and grids["trailing"][-2:] == [79, 39]


def test_where_mix_switches_at_other_step_counts():
    below = {n: int(max(t for t in timesteps(1000, n) if t < 291)) for n in (50, 100, 500)}
    assert below == {50: 285, 100: 283, 500: 290}
    assert all(291 not in timesteps(1000, n) for n in below)


@pytest.mark.parametrize(("steps", "factor"), [(25, 14.8), (50, 7.9), (100, 4.7), (1000, 1.5)])
def test_ddpm_and_skipped_step_share_the_mean_and_the_variance_bounds_differ(steps, factor):
    grid = timesteps(1000, steps)
    learned, fixed = ddpm(Schedule.linear(), grid), skipped(Schedule.linear(), grid)
    np.testing.assert_array_equal(learned.x, fixed.x)
    np.testing.assert_array_equal(learned.x0, fixed.x0)
    ratio = (learned.noise_high / learned.noise)[:-1]
    assert round(ratio[-1], 1) == factor
    assert np.median(ratio) < 1.02


def test_the_gaps_that_the_notes_quote():
    rows = yaml.safe_load((ROOT / "results/paper/table1.yaml").read_text())["rows"]
    fid = {row["name"]: {cell["steps"]: cell["fid"] for cell in row["cells"]} for row in rows}
    gap = {
        steps: round(fid["Skipped-Step"][steps] - fid["DDPM"][steps], 2) for steps in (1000, 50, 25)
    }
    assert gap == {1000: 0.51, 50: 7.01, 25: 4.08}
    assert round(fid["DDIM"][25] - fid["Mix"][25], 2) == 0.11
    assert round(fid["DDPM"][1000] - fid["Mix"][1000], 2) == 0.12


def test_the_files_that_the_notes_name_exist():
    named = re.findall(r"`(tests/[\w/.]+)`|`(tests/[\w/.]+)`:", NOTES)
    paths = {a or b for a, b in named} | {"tests/sampling/test_plan.py"}
    assert len(paths) >= 4
    assert all((ROOT / path).exists() for path in paths)


def test_the_cutoff_is_another_noise_level_on_stable_diffusions_schedule():
    adm, sd = Schedule.linear(), Schedule.scaled_linear()
    assert (round(sd.noise_level[291], 2), round(adm.noise_level[291], 2)) == (0.81, 1.19)
    assert sd.first_t_at_sigma(adm.noise_level[291]) == 406
    assert "sigma 0.81 instead of 1.19, which here is t = 406" in NOTES
    grid = timesteps(1000, 50, "leading+1").tolist()
    assert (grid[0], grid[-1], 291 in grid) == (981, 1, False)
    assert [t for t in timesteps(1000, 10, "leading+1") if t >= 291][-1] == 301
