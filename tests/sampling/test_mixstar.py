"""Mix*: a share of noise for every noise level, of which the samplers before are points."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import yaml
from conftest import ROOT
from diffusers import FlowMatchEulerDiscreteScheduler

from sampling import (
    Plan,
    Schedule,
    ddim,
    dpmpp,
    mix,
    mixpp,
    mixstar,
    scale_eps,
    sde_dpmpp,
    skipped,
    timesteps,
)
from sampling.builders import Grid
from sampling.gaussian import gaussian_output
from sampling.plan import COLUMNS

LINEAR = Schedule.linear()
_SCALED = Schedule.scaled_linear()
STABLE_DIFFUSION = dataclasses.replace(_SCALED, final=float(_SCALED.alpha_bar[0]))
COUNTS = (*range(1, 101), 250, 1000)


def flow_of(n: int, shift: float = 3.0) -> Schedule:
    """SD3's levels, whose last row but one leaps."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(n)
    return Schedule.flow(scheduler.sigmas[:-1].double().numpy())


@functools.cache
def path(name: str, n: int) -> tuple[Schedule, tuple[int, ...]]:
    """A schedule and a grid of n nodes on it."""
    straight = {
        "sd3": flow_of,
        "flux": lambda n: Schedule.flow(np.linspace(1, 1 / n, n), shift=2.5),
        "edm": lambda n: Schedule.edm(np.geomspace(80, 0.002, n) if n > 1 else [80.0]),
        "edm, noisy end": lambda n: Schedule.edm(np.geomspace(80, 0.02, n + 1)[:-1], end=0.02),
    }
    if name in straight:
        return straight[name](n), tuple(range(n - 1, -1, -1))
    schedule, spacing = {
        "linear": (LINEAR, "even"),
        "cosine": (Schedule.cosine(), "log_snr"),
        "sd": (STABLE_DIFFUSION, "leading+1"),
        "zero snr": (LINEAR.zero_terminal_snr(), "even"),
    }[name]
    return schedule, tuple(timesteps(schedule, n, spacing).tolist())


DIFFUSION, STRAIGHT = (
    ("linear", "cosine", "sd", "zero snr"),
    ("sd3", "flux", "edm", "edm, noisy end"),
)
every_path = pytest.mark.parametrize("name", [*DIFFUSION, *STRAIGHT])


def assert_same(ours: Plan, theirs: Plan, said: object) -> None:
    assert ours.start == theirs.start
    for column in COLUMNS:
        a, b = getattr(ours, column), getattr(theirs, column)
        assert np.array_equal(a, b, equal_nan=True), (said, column)


def constant(share: float) -> list[list[float]]:
    return [[0.0, share]]


def switch(schedule: Schedule, level: int) -> float:
    """The log-SNR of a level of the schedule; of one without signal, one between it and the next."""
    log_snr = schedule.log_snr[[level, max(level - 1, 0)]]
    return float(log_snr[0] if np.isfinite(log_snr[0]) else max(log_snr[1] - 1, -9))


# --- the points -----------------------------------------------------------------------------------


@every_path
def test_ddim_and_skipped_step_are_points(name):
    for n in COUNTS if name in DIFFUSION else COUNTS[:100]:
        on = path(name, n)
        for share, builder in ((0, ddim), (1, skipped)):
            ours = mixstar(*on, knots=_inside(on[0], share), orders=[1])
            assert_same(ours, builder(*on), n)


def _inside(schedule: Schedule, share: float) -> list[list[float]]:
    """One knot at a log-SNR that the schedule has."""
    return [[switch(schedule, schedule.T - 1), share]]


@every_path
@pytest.mark.parametrize("order", [2, 3])
def test_dpm_solver_and_its_sde_are_points(name, order):
    options = {"solver_type": "heun", "lower_order_final": True}
    for n in range(1, 101):
        on = path(name, n)
        for share, builder in ((0, dpmpp), (1, sde_dpmpp)):
            knots = _inside(on[0], share)
            for more in ({}, options, {"solver_type": "polynomial", "lower_order_final": False}):
                ours = mixstar(*on, knots=knots, orders=[order], **more)
                assert_same(ours, builder(*on, order, **more), (n, more))


@every_path
def test_mix_is_a_point(name):
    for n in range(1, 101):
        schedule, grid = path(name, n)
        for level in {grid[0], grid[n // 3], grid[n // 2], grid[-1]}:
            if np.isinf(schedule.log_snr[level]):
                continue  # all but the first row are DDIM's: no number is between
            c = float(schedule.log_snr[level])
            ours = mixstar(schedule, grid, knots=[[c, 1], [c, 0]], orders=[1])
            assert_same(ours, mix(schedule, grid, cutoff=schedule.times[level]), (n, level))


@every_path
@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (2, 1), (1, 2), (3, 2), (3, 3)])
def test_mix_of_second_order_is_a_point(name, orders):
    """Windows with one side and with two, at nodes and between them."""
    inside, outside = orders
    leap = {} if name in DIFFUSION else {"leap": 2}
    for n in (*range(1, 31), 50, 100):
        schedule, grid = path(name, n)
        high, low = grid[n // 4], grid[-(n // 3) - 1]
        hi, lo = (float(schedule.log_snr[level]) for level in (high, low))
        if np.isinf(hi) or np.isinf(lo):
            continue
        times = {"stochastic_order": inside, "deterministic_order": outside}
        window = mixstar(
            *(schedule, grid),
            knots=[[hi, 0], [hi, 1], [lo, 1], [lo, 0]],
            orders=[outside, inside, outside],
            switches=[hi, lo],
            **leap,
        )
        lo_t, hi_t = schedule.times[low], schedule.times[high]
        assert_same(window, mixpp(schedule, grid, lo=lo_t, hi=hi_t, **times), n)
        whole = mixstar(
            *(schedule, grid),
            knots=[[lo, 1], [lo, 0]],
            orders=[inside, outside],
            switches=[lo],
            **leap,
        )
        assert_same(whole, mixpp(schedule, grid, lo=lo_t, **times), n)


def test_ddim_between_its_ends_is_a_point():
    """A knot a row: eta is another function of lambda for every jump."""
    for n in (1, 2, 5, 25, 100):
        for name in ("linear", "cosine", "edm"):
            schedule, grid = path(name, n)
            nodes = Grid.of(schedule, grid)
            r2 = np.exp(-2 * np.diff(nodes.log_snr))
            for eta in (0.2, 0.5, 0.9):
                theirs = ddim(schedule, grid, eta)
                with np.errstate(divide="ignore"):
                    share = np.sqrt(np.log(1 - eta**2 * (1 - r2)) / np.log(r2))
                knots = np.stack([schedule.log_snr[list(grid)], share], axis=1)
                ours = mixstar(schedule, grid, knots=knots, orders=[1])
                for column in ("x", "x0", "noise"):
                    a, b = getattr(ours, column), getattr(theirs, column)
                    assert np.allclose(a, b, rtol=1e-9, atol=1e-12), (n, name, eta, column)


def test_the_mix_of_the_configs_comment_is_the_papers():
    text = (ROOT / "configs/sampler/mixstar.yaml").read_text()
    assert yaml.safe_load(text)["knots"] == [
        list(k) for k in mixstar.__wrapped__.__kwdefaults__["knots"]
    ]
    (knots,) = (
        line.split(" is Mix")[0] for line in text.splitlines() if "is Mix of cutoff" in line
    )
    grid = timesteps(LINEAR, 25)
    ours = mixstar(LINEAR, grid, knots=yaml.safe_load(knots[knots.index("[[") :]), orders=[1])
    assert_same(ours, mix(LINEAR, grid, cutoff=291), knots)


# --- between the points ---------------------------------------------------------------------------

RAMPS = {
    "fades": [[-4, 1], [0, 0.5], [4, 0]],
    "a hill": [[-6, 0.1], [-1, 0.9], [0, 0.9], [3, 0.2]],
    "a jump": [[-3, 0.3], [1, 0.8], [1, 0.2], [5, 0.4]],
    "little": [[0, 1e-3]],
}


def shares(schedule: Schedule, plan: Plan) -> np.ndarray:
    """lambda of every row but the last, from its noise: 1 - R^2 = (noise / sigma_s)^2."""
    h = np.diff(np.log(plan.alpha / plan.sigma))
    return np.sqrt(-np.log1p(-((plan.noise[:-1] / plan.sigma[1:]) ** 2)) / (2 * h))


@pytest.mark.parametrize("name", ["linear", "cosine", "edm"])
@pytest.mark.parametrize("ramp", RAMPS)
def test_the_share_is_linear_between_the_knots_and_constant_beyond(ramp, name):
    knots = RAMPS[ramp]
    for n in (5, 20, 100):
        schedule, grid = path(name, n)
        plan = mixstar(schedule, grid, knots=knots)
        for log_snr, share in zip(
            schedule.log_snr[list(grid)][:-1], shares(schedule, plan), strict=True
        ):
            assert share == pytest.approx(_by_hand(knots, log_snr), rel=1e-6), (n, log_snr)


def _by_hand(knots, log_snr: float) -> float:
    if log_snr <= knots[0][0]:
        return knots[0][1]
    for (a, left), (b, right) in itertools.pairwise(knots):
        if log_snr <= b:
            return left + (right - left) * (log_snr - a) / (b - a)
    return knots[-1][1]


def test_a_row_at_a_jump_or_a_switch_has_what_comes_before():
    grid = timesteps(LINEAR, 25)
    for level in grid[3:-3].tolist():
        at = float(LINEAR.log_snr[level])
        knots = [[at, 0.75], [at, 0.25]]
        plan = mixstar(LINEAR, grid, knots=knots, orders=[2, 1], switches=[at])
        here = int(np.flatnonzero(grid == level)[0])
        assert shares(LINEAR, plan)[here : here + 2] == pytest.approx([0.75, 0.25], rel=1e-6)
        assert plan.x0[here, 1] != 0 and plan.x0[here + 1, 1] == 0


@every_path
@pytest.mark.parametrize("ramp", RAMPS)
def test_every_row_keeps_the_marginals(ramp, name):
    """Of the right x0: x_t = alpha_t x0 + sigma_t eps becomes alpha_s x0 + sigma_s eps."""
    for n in (1, 2, 3, 4, 5, 7, 10, 15, 25, 50, 100):
        schedule, grid = path(name, n)
        nodes = Grid.of(schedule, grid)
        for order in (1, 2, 3):
            plan = mixstar(schedule, grid, knots=_within(schedule, RAMPS[ramp]), orders=[order])
            signal = plan.x * nodes.alpha_t + plan.x0.sum(axis=1)
            assert np.allclose(signal, nodes.alpha_s, rtol=1e-9, atol=1e-12), (n, order)
            variance = (plan.x * nodes.sigma_t) ** 2 + plan.noise**2
            assert np.allclose(variance, nodes.sigma_s**2, rtol=1e-9, atol=1e-15), (n, order)


def _within(schedule: Schedule, knots) -> list[list[float]]:
    """The same knots, pushed into the levels of a schedule: those of one step are few."""
    low = switch(schedule, schedule.T - 1)
    high = schedule.log_snr[0] if schedule.straight is None else np.inf
    return [[float(np.clip(at, low, high)), share] for at, share in knots]


@every_path
def test_more_share_is_more_noise(name):
    """In every row that ends above the clean image, and less of x_t is left."""
    for n in (2, 5, 25, 100):
        schedule, grid = path(name, n)
        plans = [
            mixstar(schedule, grid, knots=_inside(schedule, share), orders=[1])
            for share in np.linspace(0, 1, 21)
        ]
        rows = (plans[0].s != -1) & np.isfinite(schedule.log_snr[list(grid)])
        noise, x = (np.array([getattr(plan, c)[rows] for plan in plans]) for c in ("noise", "x"))
        assert (np.diff(noise, axis=0) > 0).all() and (np.diff(x, axis=0) < 0).all()


def test_near_the_ends_the_formula_meets_the_rows_of_the_ends():
    """DDIM's and Skipped-Step's own formulas, to the last bits: no step between them and the rest."""
    for n in (1, 10, 100, 1000):
        grid = timesteps(LINEAR, n)
        for share, builder in ((1e-9, ddim), (1 - 1e-15, skipped)):
            ours, theirs = (
                mixstar(LINEAR, grid, knots=constant(share), orders=[1]),
                builder(LINEAR, grid),
            )
            for column in ("x", "x0", "noise"):
                a, b = getattr(ours, column), getattr(theirs, column)
                assert np.allclose(a, b, rtol=1e-9, atol=1e-8), (n, column)


def slope(knots, order: int, **options) -> float:
    """Of the standard deviation's error over the number of steps, both logarithmic."""
    schedule = Schedule.linear(100_000)  # so fine that rounding to timesteps does not matter
    counts, errors = [32, 64, 128, 256], []
    for n in counts:
        grid = timesteps(schedule, n, "log_snr")
        plan = mixstar(schedule, grid, knots=knots, orders=[order], **options)
        variance = gaussian_output(plan, np.array([0.25])).variance[0]
        errors.append(abs(np.sqrt(variance) - 0.5))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("ramp", ["fades", "a hill"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_variance_of_gaussian_data_is_right_within_the_order(ramp, order):
    assert slope(RAMPS[ramp], order) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
@pytest.mark.parametrize(("order", "solver"), [(2, "heun"), (3, "polynomial")])
def test_a_row_integrates_its_sde_where_x0_is_a_polynomial(share, order, solver):
    """SA-Solver's, with tau = lambda: where u = log(alpha / sigma) from u_t to u_s, what x0(u) adds is

    alpha_s (1 + tau^2) * integral of exp(-(1 + tau^2) (u_s - u)) x0(u) du.
    """
    roots, weights = np.polynomial.legendre.leggauss(40)
    grid = timesteps(LINEAR, 20, "log_snr")
    plan = mixstar(LINEAR, grid, knots=constant(share), orders=[order], solver_type=solver)
    at, rate = np.log(plan.alpha / plan.sigma), 1 + share**2
    for i in range(order - 1, len(grid) - 1):
        h = at[i + 1] - at[i]
        u = at[i] + h * (roots + 1) / 2
        kernel = plan.alpha[i + 1] * rate * np.exp(-rate * (at[i + 1] - u)) * weights * h / 2
        for power in range(order):
            ours = (plan.x0[i, :order] * at[i - np.arange(order)] ** power).sum()
            assert ours == pytest.approx((kernel * u**power).sum(), rel=1e-7, abs=1e-7), (i, power)


def test_leaps_are_of_first_order():
    for n in (5, 10, 25):
        grid = timesteps(LINEAR, n, "even")
        h = np.diff(LINEAR.log_snr[grid])
        first, plan, free = (
            mixstar(LINEAR, grid, orders=[order], leap=leap)
            for order, leap in ((1, None), (2, 1.5), (2, None))
        )
        leaps = np.flatnonzero(h[1:] > 1.5 * h[:-1]) + 1
        assert len(leaps)
        for row in range(n):
            same_as = first if row in leaps else free
            assert plan.x0[row].sum() == pytest.approx(same_as.x0[row].sum(), rel=1e-12)
            assert bool(plan.x0[row, 1]) == bool(row not in leaps and free.x0[row, 1])


def test_it_is_a_plan_like_any_other(tmp_path):
    grid = timesteps(LINEAR, 12, "log_snr")
    plan = scale_eps(mixstar(LINEAR, grid, orders=[3, 1], switches=[2.0]), 1e-5, 1.004)
    again = Plan.from_json(plan.to_json())
    assert_same(again, plan, "json")
    assert again.name == plan.name
    assert plan.name.startswith("mixstar(share 1 at -4, 0.5 at 0, 0 at 4; order 3 then 1 from 2)")


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "no knot": ({"knots": []}, "knots must be one or more of two numbers"),
    "three numbers": ({"knots": [[0, 1, 1]]}, r"got \[\[0, 1, 1\]\]"),
    "of two lengths": ({"knots": [[0], [1, 1]]}, r"got \[\[0\], \[1, 1\]\]"),
    "an array": ({"knots": np.ones((2, 3))}, r"got \[\[1.0, 1.0, 1.0\]"),
    "flat": ({"knots": [0, 1]}, "knots must be a list"),
    "too much": ({"knots": [[0, 1.01]]}, r"in 0..1, got 1.01"),
    "negative": ({"knots": [[0, 1], [1, -0.1]]}, r"in 0..1, got -0.1"),
    "no number": ({"knots": [[0, float("nan")]]}, "knots must be a list"),
    "a timestep": (
        {"knots": [[291, 1]]},
        "between -10.11 and 9.21 on this noise schedule, got 291",
    ),
    "below": ({"knots": [[-10.2, 1], [0, 0]]}, "between -10.11 and 9.21 .* got -10.2"),
    "infinite": ({"knots": [[-np.inf, 1], [0, 0]]}, "between -10.11 and 9.21 .* got -inf"),
    "backwards": ({"knots": [[2, 0], [0, 1]]}, r"put their log-SNRs in the order \[0, 2\]"),
    "no order": ({"orders": []}, r"must be 1, 2 or 3, as \[2\], got \[\]"),
    "an order": ({"orders": [2, 4], "switches": [9]}, r"must be 1, 2 or 3, as \[2\], got \[2, 4\]"),
    "a huge order": ({"orders": [10**30]}, "must be 1, 2 or 3"),
    "one number": ({"orders": 2}, "orders must be a list of integers, got 2"),
    "too few switches": ({"orders": [2, 1]}, "there are 2 orders and 0 switches"),
    "too many switches": ({"switches": [1]}, "there are 1 orders and 1 switches"),
    "a switch": ({"orders": [2, 1], "switches": [300]}, "switches are at a log-SNR.* got 300"),
    "switches backwards": (
        {"orders": [3, 2, 1], "switches": [2, 1]},
        r"switches go from much noise to little.* in the order \[1, 2\]",
    ),
    "a leap": ({"leap": 0}, "leap must be above 0, got 0: 2 is usual"),
    "a solver": ({"solver_type": "bh1"}, "unknown solver_type 'bh1'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_refused_in_one_line(case):
    options, said = MISTAKES[case]
    with pytest.raises(ValueError, match=said) as refusal:
        mixstar(LINEAR, timesteps(LINEAR, 10), **options)
    assert "\n" not in str(refusal.value)


@every_path
def test_the_levels_that_a_message_names_are_taken(name):
    schedule, grid = path(name, 10)
    with pytest.raises(ValueError, match="which is between") as refusal:
        mixstar(schedule, grid, knots=[[np.inf, 1]])
    words = str(refusal.value).split("between ")[1].split(" on this")[0].split(" and ")
    for level in map(float, words):
        if np.isfinite(level):
            mixstar(schedule, grid, knots=[[level, 1]])
    assert name != "linear" or words == ["-10.11", "9.21"]


def test_the_knots_of_a_flow_hold_for_every_number_of_steps():
    """The levels are those of a run: what few steps do not visit is no mistake."""
    for n in range(1, 51):
        for shift in (1.0, 3.0):
            plan = mixstar(flow_of(n, shift), range(n - 1, -1, -1))
            assert np.isfinite(plan.x0).all() and len(plan) == n
