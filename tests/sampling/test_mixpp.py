"""Mix++: windows of stochastic rows, and their variance."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler

from sampling import Plan, Schedule, count_calls, ddpm, dpmpp, mix, mixpp, sde_dpmpp, timesteps
from sampling.gaussian import gaussian_output
from sampling.plan import COLUMNS

SCHEDULE = Schedule.linear()


def same(a, b):
    return all(np.array_equal(getattr(a, c), getattr(b, c), equal_nan=True) for c in COLUMNS)


def flat(plan: Plan, column: str) -> np.ndarray:
    """A column, those that look back as their two parts."""
    values = getattr(plan, column)
    if values.ndim == 1:
        return values
    return np.pad(values, ((0, 0), (0, 2 - values.shape[1]))).T


def test_the_papers_mix_is_one_of_them():
    for n in range(1, 1001):
        grid = timesteps(SCHEDULE, n, "even")
        for cutoff in (0, 291, 500, 1000):
            ours = mixpp(SCHEDULE, grid, lo=cutoff, stochastic_order=1, deterministic_order=1)
            assert same(ours, mix(SCHEDULE, grid, cutoff=cutoff)), (n, cutoff)


@pytest.mark.parametrize("spacing", ["even", "log_snr", "trailing"])
def test_rows_are_stochastic_inside_of_the_window_alone(spacing):
    for n in (1, 2, 5, 10, 25, 100):
        grid = timesteps(SCHEDULE, n, spacing)
        inside, outside = sde_dpmpp(SCHEDULE, grid), dpmpp(SCHEDULE, grid)
        for lo, hi in ((0, 1000), (200, 800), (0, 300), (700, 1000), (400, 400), (0, 0)):
            plan = mixpp(SCHEDULE, grid, lo=lo, hi=hi)
            window = (lo <= plan.t) & (plan.t < hi)
            for column in COLUMNS:
                expected = np.where(window, flat(inside, column), flat(outside, column))
                assert np.array_equal(flat(plan, column), expected, equal_nan=True)
    whole = mixpp(SCHEDULE, grid, lo=0)
    assert same(whole, mixpp(SCHEDULE, grid, lo=0, hi=1000)) and same(whole, inside)


def test_windows_share_their_beginnings():
    grid = timesteps(SCHEDULE, 10, "even")
    plans = [mixpp(SCHEDULE, grid, lo=lo) for lo in grid.tolist()]
    assert count_calls(plans) < sum(map(len, plans)) * 0.65


def test_learned_variance_is_ddpms():
    grid = timesteps(SCHEDULE, 20, "even")
    ours = mixpp(SCHEDULE, grid, lo=0, stochastic_order=1, variance="learned")
    theirs = ddpm(SCHEDULE, grid, "learned")
    for column in ("x", "x0", "noise", "noise_high"):
        a, b = getattr(ours, column), getattr(theirs, column)
        assert np.allclose(a, b, rtol=1e-12, equal_nan=True)


def test_analytic_variance_is_the_optimal_one_on_gaussian_data():
    """With the true error of x0 every marginal variance is right, whatever the number of steps."""
    # Start where nothing of the signal is left, so that x_T ~ N(0, 1) is exact.
    schedule = SCHEDULE.zero_terminal_snr()
    c, a = 0.3, schedule.alpha_bar
    error = c * (1 - a) / (a * c + 1 - a)  # Var(x_0 | x_t)
    for n in (2, 3, 5, 10, 50, 300):
        grid = timesteps(schedule, n, "even")
        options = {"lo": 0, "stochastic_order": 1}
        plan = mixpp(schedule, grid, variance="analytic", x0_variance=error, **options)
        # The last row adds no noise: its output is x0_hat, whose variance lacks what x0_hat lacks.
        got = gaussian_output(plan, np.array([c])).variance[0]
        assert got == pytest.approx(c - error[grid[-1]], rel=1e-9), n
        small = gaussian_output(mixpp(schedule, grid, **options), np.array([c])).variance[0]
        assert abs(small - c) > abs(got - c)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lo": 500, "hi": 400}, "lo = 500 > hi = 400"),
        ({"lo": -1}, "must not be negative"),
        ({"stochastic_order": 4}, "order of sde_dpmpp must be 1, 2 or 3"),
        ({"deterministic_order": 0}, "order of dpmpp must be 1, 2 or 3"),
        ({"variance": "large"}, "choose one of fixed_small, learned, analytic"),
        ({"variance": "analytic"}, "python -m scripts.variance"),
        ({"variance": "analytic", "x0_variance": np.ones(10)}, "1000 numbers"),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(ValueError, match=said):
        mixpp(SCHEDULE, timesteps(SCHEDULE, 10), **options)


# --- flow matching --------------------------------------------------------------------------------


def levels_of_sd3(n: int) -> Schedule:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(n)
    return Schedule.flow(scheduler.sigmas[:-1].double().numpy())


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("n", [4, 10, 20, 28, 50])
def test_rows_that_leap_are_of_first_order(n, order):
    """The last row but one of SD3's default levels; orders as asked for elsewhere."""
    schedule, grid = levels_of_sd3(n), range(n - 1, -1, -1)
    orders = {"stochastic_order": order, "deterministic_order": order}
    plan, first = mixpp(schedule, grid, **orders), mix(schedule, grid, cutoff=291)
    whole = (sde_dpmpp(schedule, grid, order), dpmpp(schedule, grid, order))
    expected = [p.x0[:, 0] for p in whole]
    window = plan.t >= 291
    same_as = plan.x0[:, 0] == np.where(window, *expected)
    assert np.flatnonzero(~same_as).tolist() == [n - 2]
    np.testing.assert_allclose(plan.x0[n - 2].sum(), first.x0[n - 2, 0], rtol=1e-12)
    assert not plan.x0[n - 2, 1:].any()


@pytest.mark.parametrize("variance", [0.01, 0.25, 1.0])
@pytest.mark.parametrize("n", [10, 20, 28, 50])
def test_the_second_order_is_better_than_mix_on_levels_that_leap(n, variance):
    schedule, grid, data = levels_of_sd3(n), range(n - 1, -1, -1), np.array([variance])
    error = [
        abs(gaussian_output(plan, data).variance[0] / variance - 1)
        for plan in (mixpp(schedule, grid, lo=291), mix(schedule, grid, cutoff=291))
    ]
    assert error[0] < error[1]


def test_levels_that_do_not_leap_are_as_they_were():
    for n in (5, 10, 28, 50):
        grid = range(n - 1, -1, -1)
        flux = Schedule.flow(np.linspace(1, 1 / n, n), shift=3.0)
        edm = Schedule.edm(np.geomspace(80, 0.002, n))
        for schedule in (flux, edm):
            plan = mixpp(schedule, grid, lo=0)
            assert np.array_equal(plan.x0, sde_dpmpp(schedule, grid).x0)
