"""The coefficients of one jump between any two timesteps, all 500,500 pairs at once.

A row of the paper's samplers is a function of its two noise levels alone.  So what holds for every
pair holds for every number of steps from 1 to 1000 and every spacing.  The formulas are those of the
papers, in extended precision from the same alpha_bar.
"""

from __future__ import annotations

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import GOLDEN

from sampling import SPACINGS, Schedule, ddim, ddpm, named, skipped, timesteps
from sampling.builders import Grid

SCHEDULES = {name: Schedule.named(name) for name in ("linear", "scaled_linear", "cosine")}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
WIDE = np.finfo(np.longdouble).eps < 1e-18  # x86 has 80 bits, others may not


class Pairs(Grid):
    """Every jump t -> s as one grid, which is no chain: its "plans" are the columns alone."""

    def plan(self, name, **columns):
        zero, nan = np.zeros(len(self.t)), np.full(len(self.t), np.nan)
        return SimpleNamespace(**{"noise": zero, "noise_high": nan, **columns})


def pairs(schedule: Schedule) -> Pairs:
    t, s = np.tril_indices(schedule.T + 1, -1)
    t, s = t - 1, s - 1  # s = -1 is the end
    a = np.append(schedule.alpha_bar, schedule.final)  # [-1] is that of s = -1
    root, noise = np.sqrt(a), np.sqrt(1 - a)
    ends = (a[t], a[s], root[t], root[s], noise[t], noise[s])
    return Pairs(t, t.astype(float), s.astype(float), *ends, diffusion=True)


def exact(grid: Pairs) -> dict[str, np.ndarray]:
    """Of DDIM (Song et al. 2021, eq. 12, 16) and improved DDPM (Nichol & Dhariwal 2021, eq. 10, 11)."""
    a_t, a_s = grid.a_t.astype(np.longdouble), grid.a_s.astype(np.longdouble)
    beta = 1 - a_t / a_s
    variance = (1 - a_s) / (1 - a_t) * beta
    x = np.sqrt(a_t / a_s) * (1 - a_s) / (1 - a_t)
    found = {
        "beta": np.sqrt(beta),
        "skipped x": x,
        "skipped x0": np.sqrt(a_s) * beta / (1 - a_t),
        "skipped noise": np.sqrt(variance),
    }
    for eta in (0.0, 0.5):
        x = np.sqrt(np.maximum(1 - a_s - eta**2 * variance, 0)) / np.sqrt(1 - a_t)
        found |= {f"ddim {eta} x": x, f"ddim {eta} x0": np.sqrt(a_s) - x * np.sqrt(a_t)}
        found[f"ddim {eta} noise"] = eta * np.sqrt(variance)
    return found


@pytest.fixture
def all_pairs(monkeypatch):
    """Builders that are asked for a schedule make the jumps between all its timesteps."""
    grids = {name: pairs(schedule) for name, schedule in SCHEDULES.items()}
    monkeypatch.setattr(Grid, "of", lambda schedule, _: grids[schedule.name])
    return grids


@pytest.mark.skipif(not WIDE, reason="no number here is wider than float64")
@every_schedule
def test_the_jump_between_any_two_timesteps_is_right_to_1e_15(name, all_pairs):
    schedule, expected = SCHEDULES[name], exact(all_pairs[name])
    inner = all_pairs[name].s >= 0
    ours = {"skipped": skipped(schedule, None)}
    ours |= {f"ddim {eta}": ddim(schedule, None, eta) for eta in (0.0, 0.5)}
    for key, plan in ours.items():
        for column in ("x", "x0", "noise"):
            error = np.abs(getattr(plan, column) - expected[f"{key} {column}"])
            # Between 0 and 1 eta takes roots of differences that cancel.
            assert error.max() <= (1e-12 if key == "ddim 0.5" else 1e-15), (key, column)
    for variance in ("learned", "fixed_small", "fixed_large"):
        plan = ddpm(schedule, None, variance)
        assert np.array_equal(plan.x, ours["skipped"].x)
        assert np.array_equal(plan.x0, ours["skipped"].x0)
        low = expected["beta" if variance == "fixed_large" else "skipped noise"]
        assert np.abs(plan.noise**2 - low**2)[inner].max() <= 1e-15
        assert not plan.noise[~inner].any()
        if variance == "learned":
            assert np.abs(plan.noise_high**2 - expected["beta"] ** 2)[inner].max() <= 1e-15
            assert np.isnan(plan.noise_high[~inner]).all()


@every_schedule
@pytest.mark.parametrize("spacing", [s for s in SPACINGS if not s.startswith("ays")])
def test_a_plan_is_made_of_these_jumps(name, spacing, monkeypatch):
    """Bit for bit, for every number of steps."""
    schedule = SCHEDULES[name]
    grid = pairs(schedule)
    with monkeypatch.context() as patch:
        patch.setattr(Grid, "of", lambda *_: grid)
        whole = [skipped(schedule, None), ddim(schedule, None), ddim(schedule, None, 0.5)]
    for n in range(1, 1001):
        try:
            nodes = timesteps(schedule, n, spacing)
        except ValueError:
            assert spacing == "ddim"
            continue
        t, s = nodes + 1, np.append(nodes[1:], -1) + 1
        at = t * (t - 1) // 2 + s  # the place in `tril_indices`
        own = [skipped(schedule, nodes), ddim(schedule, nodes), ddim(schedule, nodes, 0.5)]
        for plan, jumps in zip(own, whole, strict=True):
            assert np.array_equal(plan.x, jumps.x[at])
            assert np.array_equal(plan.x0[:, 0], jumps.x0[at])
            assert np.array_equal(plan.noise, jumps.noise[at])


# --- as they were -----------------------------------------------------------------------------


def recorded_plans():
    """(name, options, schedule, spacing, steps, columns) of plans of version f6ee9b7.

    That is before plans could look back further, with 18 samplers' columns one after another.
    """
    with np.load(GOLDEN / "plans_before.npz") as file:
        plans, schedules, grids = (
            json.loads(str(file[k])) for k in ("plans", "schedules", "grids")
        )
        columns, at = file["columns"], 0
    for schedule, (spacing, n) in product(schedules, grids):
        for name, options in plans:
            yield name, options, schedule, spacing, n, columns[:, at : at + n]
            at += n
    assert at == columns.shape[1]


def test_plans_are_what_they_were():
    """Learned variances, guidance and analytic variances included; logarithms may be rounded otherwise elsewhere."""
    for name, options, schedule, spacing, n, before in recorded_plans():
        if options.get("variance") == "analytic":
            options = {**options, "x0_variance": np.linspace(0, 1e-2, 1000)}
        grid = timesteps(SCHEDULES[schedule], n, spacing)
        plan = named(name, SCHEDULES[schedule], grid, **options)
        x0 = np.pad(plan.x0, ((0, 0), (0, 2 - plan.x0.shape[1])))
        now = [plan.x, *x0.T, plan.noise, plan.noise_high, plan.gradient, plan.gradient_high]
        rtol = 1e-13 if "pp" in name and options.get("order") != 1 else 1e-15
        np.testing.assert_allclose(np.stack(now), before, rtol=rtol, atol=1e-15, err_msg=name)
        assert plan.look_back <= 1 and plan.eps.shape[1] == 1 and plan.start == 1
