"""The tables of coefficients: equivalences over every grid, invariants, recorded numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math

import numpy as np
import pytest
from conftest import golden_json

from sampling import (
    SAMPLERS,
    SPACINGS,
    Plan,
    Schedule,
    ddim,
    ddpm,
    mix,
    naive_stride,
    named,
    skipped,
    splice,
    timesteps,
)
from sampling.plan import COLUMNS

# How far the coefficients of DDIM with eta = 1 may lie from those of Skipped-Step: its x is
# the root of a difference that cancels.  Measured worst 8.5e-14, 8.8e-15 and 3.5e-12.
ATOL = {"linear": 1e-12, "scaled_linear": 1e-13, "cosine": 1e-11}
SCHEDULES = {name: Schedule.named(name) for name in ATOL}
LINEAR = SCHEDULES["linear"]
PAPER = timesteps(1000, 25)  # 0, 42, 83, ..., 250, 291, 333, ..., 999
RESPACED = golden_json("schedules")["respaced"]["entries"]

BUILDERS = {
    "skipped": skipped,
    "ddim(0)": ddim,
    "ddim(0.5)": functools.partial(ddim, eta=0.5),
    "ddim(1)": functools.partial(ddim, eta=1),
    "ddpm(learned)": ddpm,
    "ddpm(fixed_small)": functools.partial(ddpm, variance="fixed_small"),
    "ddpm(fixed_large)": functools.partial(ddpm, variance="fixed_large"),
    "naive_stride": naive_stride,
    "mix": functools.partial(mix, cutoff=500),
}

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_spacing = pytest.mark.parametrize("spacing", [*SPACINGS, "lists", "sections"])
every_builder = pytest.mark.parametrize("builder", BUILDERS)


@functools.cache
def grids(spacing: str) -> list[np.ndarray]:
    """The grids of 1, 2, ..., 1000 steps, without the counts that `ddim` cannot give.

    "lists" and "sections" are random explicit lists and random divisions into five sections.
    """
    rng, nodes = np.random.default_rng(0), []
    for n in range(1, 1001):
        rule = spacing
        if spacing == "lists":
            rule = rng.choice(1000, n, replace=False).tolist()
        if spacing == "sections":
            rule = ",".join(map(str, rng.multivariate_hypergeometric([200] * 5, n)))
        with contextlib.suppress(ValueError):
            nodes.append(timesteps(1000, n, rule))
    assert len(nodes) == 1000 or spacing == "ddim"
    return nodes


def variances(schedule: Schedule, grid: np.ndarray) -> list[Plan]:
    return [ddpm(schedule, grid, kind) for kind in ("learned", "fixed_small", "fixed_large")]


def coefficients(plan: Plan) -> np.ndarray:
    assert plan.look_back == 0
    return np.stack([plan.x, plan.x0[:, 0], plan.noise])


def assert_equal(plan: Plan, other: Plan) -> None:
    """Equal in every bit of every column; the names may differ."""
    assert plan.start == other.start
    for column in COLUMNS:
        assert getattr(plan, column).tobytes() == getattr(other, column).tobytes(), column


def abar(schedule: Schedule, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """alpha_bar before and after every row."""
    a_t = schedule.alpha_bar[plan.t.astype(int)]
    return a_t, np.append(a_t[1:], 1.0)


# --- the same sampler under several names, for every number of steps


@every_schedule
@every_spacing
def test_skipped_is_ddim_with_eta_1_is_ancestral_with_small_variance(name, spacing):
    schedule, worst = SCHEDULES[name], np.zeros(3)
    for grid in grids(spacing):
        plan = coefficients(skipped(schedule, grid))
        song = coefficients(ddim(schedule, grid, eta=1))
        ho = coefficients(ddpm(schedule, grid, variance="fixed_small"))
        assert np.array_equal(plan, ho)
        np.maximum(worst, np.abs(plan - song).max(axis=1), out=worst)
        # x0 and the noise have no cancelling difference, so they also agree relatively.
        np.testing.assert_allclose(song[1:], plan[1:], rtol=1e-12, atol=0)
    assert (worst <= ATOL[name]).all(), worst


@every_schedule
@every_spacing
def test_skipped_and_ddim_are_the_first_order_dpm_solvers(name, spacing):
    # Lu et al. (2022), DPM-Solver++, in lambda = log(alpha / sigma), h = lambda_s - lambda_t:
    # x_s = sigma_s / sigma_t e^-h x_t + alpha_s (1 - e^-2h) x0 + sigma_s sqrt(1 - e^-2h) z, and
    # the ODE's x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) x0.  The last row has
    # lambda_s = infinity.
    schedule, worst = SCHEDULES[name], np.zeros(2)
    alpha, sigma = np.sqrt(schedule.alpha_bar), np.sqrt(1 - schedule.alpha_bar)
    lam = np.log(alpha / sigma)
    for grid in grids(spacing):
        t, s = grid[:-1], grid[1:]
        h = lam[s] - lam[t]
        gain = -np.expm1(-2 * h)
        sde = [sigma[s] / sigma[t] * np.exp(-h), alpha[s] * gain, sigma[s] * np.sqrt(gain)]
        ode = [sigma[s] / sigma[t], -alpha[s] * np.expm1(-h), 0 * sigma[s]]
        ours = [coefficients(build(schedule, grid))[:, :-1] for build in (skipped, ddim)]
        errors = np.abs(np.array(ours) - [sde, ode]).max(axis=(1, 2), initial=0)
        np.maximum(worst, errors, out=worst)
    assert (worst <= [1e-13, 1e-14]).all()  # measured 7e-15 and 6e-16


@every_schedule
@every_spacing
def test_mix_contains_both_of_its_ends(name, spacing):
    schedule = SCHEDULES[name]
    for grid in grids(spacing):
        assert_equal(mix(schedule, grid, cutoff=schedule.T), ddim(schedule, grid))
        assert_equal(mix(schedule, grid, cutoff=0), skipped(schedule, grid))


@every_schedule
@every_spacing
def test_naive_stride_is_ancestral_only_when_every_timestep_is_visited(name, spacing):
    schedule = SCHEDULES[name]
    for grid in grids(spacing):
        ours = coefficients(naive_stride(schedule, grid))
        ancestral = coefficients(ddpm(schedule, grid, variance="fixed_small"))
        # `leading` with more than 500 steps starts at t = N - 1, but leaves none out.
        visits_all = np.array_equal(grid, np.arange(len(grid))[::-1])
        assert np.array_equal(ours, ancestral) == visits_all
        # Not a matter of rounding:
        assert visits_all or np.abs(ours - ancestral).max() > 1e-3


# --- what every plan must satisfy


@every_builder
@every_spacing
def test_every_plan_jumps_between_neighbours_down_to_the_clean_image(builder, spacing):
    for grid in grids(spacing):
        plan = BUILDERS[builder](LINEAR, grid)
        assert len(plan) == len(grid)
        assert np.array_equal(plan.t, grid)
        assert np.array_equal(plan.s, [*grid[1:], -1])
        assert np.array_equal(plan.alpha, np.sqrt(LINEAR.alpha_bar[grid]))
        assert np.array_equal(plan.sigma, np.sqrt(1 - LINEAR.alpha_bar[grid]))
        assert np.isfinite(coefficients(plan)).all()
        # naive_stride goes on from its last timestep t as if to t - 1, so it ends in the clean
        # image only on grids that end at t = 0; it still adds no noise there.
        last = coefficients(plan)[:, -1]
        ends_clean = builder != "naive_stride" or grid[-1] == 0
        assert np.array_equal(last, [0, 1, 0]) if ends_clean else (last[0] > 0 and last[2] == 0)


@pytest.mark.parametrize("eta", [None, 0.0, 0.3, 1.0])
@every_schedule
@every_spacing
def test_marginals_are_those_of_the_forward_process(eta, name, spacing):
    # If x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps and x0 is right, x_s must have q(x_s | x_0).
    schedule, worst = SCHEDULES[name], 0.0
    for grid in grids(spacing):
        plan = skipped(schedule, grid) if eta is None else ddim(schedule, grid, eta=eta)
        a_t, a_s = abar(schedule, plan)
        mean = plan.x * np.sqrt(a_t) + plan.x0[:, 0] - np.sqrt(a_s)
        variance = plan.x**2 * (1 - a_t) + plan.noise**2 - (1 - a_s)
        worst = max(worst, np.abs(mean).max(), np.abs(variance).max())
    assert worst <= 2e-15


@every_schedule
def test_naive_stride_does_not_keep_the_marginals(name):
    plan = naive_stride(SCHEDULES[name], PAPER)
    a_t, a_s = abar(SCHEDULES[name], plan)
    mean = plan.x * np.sqrt(a_t) + plan.x0[:, 0] - np.sqrt(a_s)
    assert np.abs(mean).max() > 0.04  # measured 0.079, 0.052 and 0.064


@every_schedule
@every_spacing
def test_the_noise_of_ddim_is_proportional_to_eta(name, spacing):
    for grid in grids(spacing)[::50]:
        full = ddim(SCHEDULES[name], grid, eta=1).noise
        for eta in (0.0, 0.1, 0.7):
            noise = ddim(SCHEDULES[name], grid, eta=eta).noise
            np.testing.assert_allclose(noise, eta * full, rtol=1e-15)


@every_schedule
@every_spacing
def test_the_three_variances_share_their_mean(name, spacing):
    schedule = SCHEDULES[name]
    for grid in grids(spacing)[::10]:
        learned, small, large = variances(schedule, grid)
        for column in ("x", "x0", "t", "s", "alpha", "sigma"):
            assert np.array_equal(getattr(learned, column), getattr(small, column))
            assert np.array_equal(getattr(learned, column), getattr(large, column))
        # The learned variance lies between the two fixed ones.
        assert np.array_equal(learned.noise, small.noise)
        assert np.array_equal(learned.noise_high[:-1], large.noise[:-1])
        assert (small.noise[:-1] < large.noise[:-1]).all()
        assert np.isnan(learned.noise_high[-1])
        assert np.isnan(small.noise_high).all()
        assert np.isnan(large.noise_high).all()


# --- the recorded, respaced tables of guided-diffusion


def recorded(entry: dict, tables) -> tuple[Schedule, np.ndarray, dict[str, np.ndarray]]:
    """Schedule, grid and tables of one respacing, in sampling order."""
    spec = entry["spec"]
    spacing = "ddim" if spec.startswith("ddim") else "even"
    grid = timesteps(entry["T"], int(spec.removeprefix("ddim")), spacing)
    prefix = entry["key"] + "/"
    golden = {k.removeprefix(prefix): tables[k][::-1] for k in tables if k.startswith(prefix)}
    assert np.array_equal(grid, golden["timestep_map"])
    return Schedule.named(entry["schedule"], entry["T"]), grid, golden


@pytest.mark.parametrize("entry", RESPACED, ids=lambda e: e["key"])
def test_recorded_coefficients_and_variances_that_scale_the_guidance(entry, golden_schedules):
    schedule, grid, golden = recorded(entry, golden_schedules)
    rtol = {"linear": 1e-10, "cosine": 1e-7}[entry["schedule"]]
    close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=0)
    learned, small, large = variances(schedule, grid)
    a_t, a_s = abar(schedule, small)
    close(a_t, golden["alphas_cumprod"])
    close(a_s, golden["alphas_cumprod_prev"])
    close(small.x, golden["posterior_mean_coef2"])
    close(small.x0[:, 0], golden["posterior_mean_coef1"])
    close(small.noise**2, golden["posterior_variance"])
    # The original has the variance of the last row too, but adds no noise there.
    close(large.noise[:-1] ** 2, golden["betas"][:-1])
    close(learned.noise_high[:-1] ** 2, golden["betas"][:-1])
    log_small = golden["posterior_log_variance_clipped"]
    np.testing.assert_allclose(2 * np.log(learned.noise[:-1]), log_small[:-1], rtol=0, atol=rtol)

    # Guidance: the original shifts the mean by variance * gradient, and we shift x0, whose
    # coefficient is x0.  Its logarithms have the last row's 0 replaced by the variance of the
    # row before; the fixed small variance itself stays 0.
    clipped = np.exp(log_small)
    close(learned.gradient * learned.x0[:, 0], clipped)
    close(learned.gradient_high * learned.x0[:, 0], golden["betas"])
    close(small.gradient * small.x0[:, 0], golden["posterior_variance"])
    close(large.gradient * large.x0[:, 0], [*golden["betas"][:-1], clipped[-1]])


@pytest.mark.parametrize("build", [skipped, ddim, functools.partial(mix, cutoff=291)])
def test_guidance_of_the_others_shifts_eps(build):
    # eps -= sqrt(1 - a) g moves x0 = (x - sqrt(1 - a) eps) / sqrt(a) by (1 - a) / sqrt(a) g.
    plan = build(LINEAR, PAPER)
    a = LINEAR.alpha_bar[PAPER]
    np.testing.assert_allclose(plan.gradient, (1 - a) / np.sqrt(a), rtol=1e-15)
    assert np.isnan(plan.gradient_high).all()


# --- mix and splice


def test_the_paper_s_mix_has_18_rows_of_skipped_and_7_of_ddim():
    assert (PAPER >= 291).sum() == 18
    assert repr(mix(LINEAR, PAPER, cutoff=291)) == "Plan(mix(cutoff=291), NFE=25)"
    for schedule in SCHEDULES.values():
        plan = mix(schedule, PAPER, cutoff=291)
        assert plan.name == "mix(cutoff=291)"
        assert np.array_equal(plan.noise > 0, PAPER >= 291)
        stochastic, deterministic = skipped(schedule, PAPER), ddim(schedule, PAPER)
        for column in ("t", "s", "x", "x0", "noise", "alpha", "sigma"):
            ours = getattr(plan, column)
            assert np.array_equal(ours[:18], getattr(stochastic, column)[:18])
            assert np.array_equal(ours[18:], getattr(deterministic, column)[18:])


@every_schedule
@every_spacing
def test_the_three_units_of_the_cutoff_agree(name, spacing):
    schedule = SCHEDULES[name]
    grid = next(grid for grid in grids(spacing) if len(grid) == 25)
    for k, t in enumerate(grid.tolist()):
        plan = mix(schedule, grid, cutoff=t)
        assert_equal(plan, mix(schedule, grid, cutoff_sigma=schedule.noise_level[t]))
        assert_equal(plan, mix(schedule, grid, skipped_steps=k + 1))
        # A row is stochastic when t >= cutoff, so anything up to the next node is the same.
        next_above = grid[k - 1] if k else t + 1
        assert_equal(mix(schedule, grid, cutoff=t + 0.5), mix(schedule, grid, cutoff=next_above))
        assert_equal(mix(schedule, grid, skipped_steps=k), mix(schedule, grid, cutoff=next_above))


ALL_DDIM = [{unit: math.inf} for unit in ("cutoff", "cutoff_sigma")]
ALL_DDIM += [{"cutoff": 1000}, {"cutoff_sigma": 1e4}, {"skipped_steps": 0}]
ALL_SKIPPED = [{"cutoff": 0}, {"cutoff_sigma": 0.0}, {"skipped_steps": 25}]


def test_mix_without_a_stochastic_or_a_deterministic_row():
    for build, cutoffs in ((ddim, ALL_DDIM), (skipped, ALL_SKIPPED)):
        for cutoff in cutoffs:
            assert_equal(mix(LINEAR, PAPER, **cutoff), build(LINEAR, PAPER))


@pytest.mark.parametrize(
    ("cutoff", "message"),
    [
        ({}, "exactly one of cutoff, cutoff_sigma, cutoff_log_snr and skipped_steps"),
        ({"cutoff": 291, "skipped_steps": 18}, "exactly one of"),
        ({"cutoff": 0, "cutoff_sigma": 0.0}, "exactly one of"),
        ({"cutoff": -1}, "must not be negative, got -1"),
        ({"cutoff": math.nan}, "must be a number or null, got nan"),
        ({"cutoff_sigma": -0.1}, "must not be negative, got -0.1"),
        ({"skipped_steps": -3}, "must not be negative, got -3"),
        ({"skipped_steps": 26}, "skipped_steps = 26 exceeds the 25 steps of the grid"),
    ],
)
def test_mix_refuses(cutoff, message):
    with pytest.raises(ValueError, match=message):
        mix(LINEAR, PAPER, **cutoff)


@pytest.mark.parametrize("cutoff", [0, 1, 291, 292, 600, 999, 1000, math.inf])
def test_splice_of_any_two(cutoff):
    head, tail = ddpm(LINEAR, PAPER), ddim(LINEAR, PAPER, eta=0.5)
    plan = splice(head, tail, cutoff)
    for column in COLUMNS:
        ours, theirs = getattr(head, column), getattr(tail, column)
        above = (head.t >= cutoff).reshape(-1, *[1] * (ours.ndim - 1))
        np.testing.assert_array_equal(getattr(plan, column), np.where(above, ours, theirs))
    assert plan.name == f"splice({head.name}, {tail.name}, cutoff={cutoff:g})"


def test_splice_of_three():
    plan = splice(mix(LINEAR, PAPER, cutoff=600), ddpm(LINEAR, PAPER, "fixed_large"), 100)
    assert (plan.noise > 0).tolist() == [t >= 600 or 0 < t < 100 for t in PAPER]


def test_splice_of_different_grids_that_meet():
    # The head's row at 291 ends at 250, which is where this tail begins.
    head, tail = skipped(LINEAR, PAPER), ddim(LINEAR, [250, 120, 3])
    plan = splice(head, tail, 291)
    assert plan.t.tolist() == [t for t in PAPER if t >= 291] + [250, 120, 3]
    assert plan.s.tolist() == [*plan.t[1:], -1]
    # A tail that also has nodes above the cutoff serves as well.
    longer = ddim(LINEAR, [980, 500, 250, 120, 3])
    assert_equal(splice(head, longer, 291), plan)


DO_NOT_MEET = [[260, 120, 3], [120, 3], [290, 250, 3], timesteps(1000, 25, "trailing")]


@pytest.mark.parametrize(
    ("head_grid", "tail_grid", "cutoff", "message"),
    [
        *((PAPER, tail, 291, "must end at a timestep of the tail") for tail in DO_NOT_MEET),
        # No row below the cutoff although the head has not arrived; no row at all.
        ([999, 500, 0], [999], 500, "must end at the clean image"),
        ([200, 0], [999, 500], 300, "at least one row"),
    ],
)
def test_splice_refuses_what_is_no_plan(head_grid, tail_grid, cutoff, message):
    with pytest.raises(ValueError, match=message):
        splice(skipped(LINEAR, head_grid), ddim(LINEAR, tail_grid), cutoff)


# --- bad input


@every_builder
@pytest.mark.parametrize(
    "grid", [[], [5, 5, 0], [0, 5], [1000, 0], [5, -1], [[9, 5], [3, 0]], np.arange(10)]
)
def test_every_builder_refuses_what_is_no_grid(builder, grid):
    with pytest.raises(ValueError, match=r"timesteps must decrease strictly within 0\.\.999"):
        BUILDERS[builder](LINEAR, grid)


@every_builder
def test_every_builder_takes_lists_and_arrays(builder):
    assert_equal(BUILDERS[builder](LINEAR, PAPER), BUILDERS[builder](LINEAR, PAPER.tolist()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros(2)}, "columns of equal length"),
        ({"noise": np.zeros((3, 1))}, "columns of equal length"),
        (
            {column: np.zeros((0, 1)[: 1 + (column in ("x0", "eps"))]) for column in COLUMNS},
            "at least",
        ),
        ({"x0": np.zeros(3)}, "columns of equal length"),
        ({"eps": np.zeros((3, 0))}, "columns of equal length"),
        ({"x0": np.ones((3, 2))}, "looks back at 1 calls, more than were made"),
        ({"eps": np.ones((3, 1))}, "a combination of x and x0"),
        ({"s": np.array([500.0, 400.0, -1.0])}, "between neighbouring nodes"),
        ({"t": np.array([999.0, 500.0, -1.0]), "s": np.array([500.0, -1.0, -1.0])}, "neighbouring"),
        ({"s": np.array([500.0, 0.0, -2.0])}, "must end at the clean image, s = -1"),
    ],
)
def test_a_plan_that_is_none_cannot_be_made(change, message):
    plan = ddim(LINEAR, [999, 500, 0])
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(plan, **change)


# --- plans by name


@pytest.mark.parametrize(
    ("name", "options", "plan"),
    [
        ("skipped", {}, skipped(LINEAR, PAPER)),
        ("naive_stride", {}, naive_stride(LINEAR, PAPER)),
        ("ddim", {}, ddim(LINEAR, PAPER)),
        ("ddim", {"eta": 0.5}, ddim(LINEAR, PAPER, eta=0.5)),
        ("ddpm", {}, ddpm(LINEAR, PAPER)),
        ("ddpm", {"variance": "fixed_large"}, ddpm(LINEAR, PAPER, variance="fixed_large")),
        ("mix", {"cutoff": 291}, mix(LINEAR, PAPER, cutoff=291)),
        (
            "mix",
            {"cutoff": None, "cutoff_sigma": None, "skipped_steps": 18},
            mix(LINEAR, PAPER, cutoff=291),
        ),
    ],
)
def test_named_builds_the_plan_of_that_name(name, options, plan):
    assert_equal(named(name, LINEAR, PAPER, **options), plan)
    assert named(name, LINEAR, PAPER, **options).name == plan.name


def test_named_knows_every_sampler():
    papers = {"ddpm", "ddim", "skipped", "mix", "naive_stride"}
    assert set(SAMPLERS) == papers | {
        *(
            "dpmpp",
            "sde_dpmpp",
            "mixpp",
            "mixstar",
            "ipndm",
            "deis_ab",
            "er_sde",
            "churn",
            "restart",
        )
    }


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("euler", {}, "unknown sampler 'euler': choose one of ddpm, ddim, skipped, mix, dpmpp"),
        ("skipped", {"eta": 1.0}, "sampler skipped has no option 'eta': it takes none"),
        ("ddim", {"cutoff": 5}, "sampler ddim has no option 'cutoff': it takes eta"),
        ("mix", {"eta": 0.0}, "it takes cutoff, cutoff_sigma, cutoff_log_snr, skipped_steps"),
        ("mix", {}, "cutoff_sigma, cutoff_log_snr and skipped_steps: set the others to"),
        *(("ddim", {"eta": eta}, "between 0 and 1, got") for eta in (-0.1, 1.1)),
        ("ddim", {"eta": math.nan}, "eta must be a number, got nan"),
        ("ddim", {"eta": True}, "eta must be a number, got True"),
        ("mix", {"cutoff": "291"}, "cutoff must be a number or null, got '291'"),
        ("mix", {"skipped_steps": 2.5}, "skipped_steps must be an integer or null, got 2.5"),
        ("dpmpp", {"ordr": 2}, "solver_type; did you mean order?"),
        ("churn", {"s_range": 3}, "s_range must be a list of numbers, got 3"),
        ("ddpm", {"variance": "large"}, "'large': choose one of learned, fixed_small, fixed_large"),
    ],
)
def test_named_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        named(name, LINEAR, PAPER, **options)


# --- reading a plan


@every_builder
def test_str_is_a_table_with_one_line_a_row(builder):
    plan = BUILDERS[builder](LINEAR, PAPER)
    title, head, *lines = str(plan).splitlines()
    assert title == f"{plan.name}, 25 network calls"
    assert head.split() == ["t", "s", "x", "x0", "x0_previous", "noise"]
    assert len(lines) == len(plan) == 25
    for line, row in zip(lines, plan.rows(), strict=True):
        t, s, x, x0, x0_previous, noise = line.split()
        assert float(t) == row.t
        assert s == "clean" if row.s == -1 else float(s) == row.s
        assert (float(x), float(x0)) == pytest.approx((row.x, *row.x0), abs=1e-6)
        assert float(x0_previous) == 0
        bounds = [v for v in (row.noise, row.noise_high) if not math.isnan(v)]
        assert [float(v) for v in noise.split("..")] == pytest.approx(bounds, abs=1e-6)


def test_rows_are_plain_floats():
    plan = ddpm(LINEAR, PAPER)
    rows = list(plan.rows())
    for column in COLUMNS:
        ours = [getattr(row, column) for row in rows]
        assert all(type(v) is (tuple if column in ("x0", "eps") else float) for v in ours)
        np.testing.assert_array_equal(ours, getattr(plan, column))
    assert tuple(field.name for field in dataclasses.fields(Plan))[1:-1] == COLUMNS
