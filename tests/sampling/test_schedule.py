"""Noise schedules against the recorded numbers of guided-diffusion and against diffusers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from sampling import Schedule, ddim, ddpm, flow_shift, karras_sigmas, naive_stride, skipped

NAMES = ("linear", "cosine", "scaled_linear")
GOLDEN = ("linear", "cosine")


def betas_of(schedule: Schedule) -> np.ndarray:
    return 1 - schedule.alpha_bar / np.append(1.0, schedule.alpha_bar[:-1])


@pytest.mark.parametrize("name", GOLDEN)
def test_alpha_bar_is_that_of_guided_diffusion(name, golden_schedules):
    golden = golden_schedules[f"{name}_1000/alphas_cumprod"]
    np.testing.assert_allclose(Schedule.named(name).alpha_bar, golden, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", GOLDEN)
def test_betas_are_those_of_guided_diffusion(name, golden_schedules, monkeypatch):
    # A schedule keeps alpha_bar alone, and 1 - abar_t / abar_before loses digits where beta is
    # small; so the betas are caught on their way in.
    seen = []
    original = Schedule.from_betas.__func__

    def spy(cls, betas, *rest):
        seen.append(np.asarray(betas))
        return original(cls, betas, *rest)

    monkeypatch.setattr(Schedule, "from_betas", classmethod(spy))
    Schedule.named(name)
    golden = golden_schedules[f"{name}_1000/betas"]
    np.testing.assert_allclose(seen[0], golden, rtol=1e-12, atol=0)
    np.testing.assert_allclose(betas_of(Schedule.named(name)), golden, rtol=1e-11, atol=1e-15)


# Stable Diffusion's own numbers; diffusers' default ends are those of `linear`.
SD_ENDS = {"beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("ours", "options"),
    [
        (Schedule.named("linear"), {"beta_schedule": "linear"}),
        (Schedule.named("scaled_linear"), {"beta_schedule": "scaled_linear", **SD_ENDS}),
        (Schedule.named("cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            Schedule.scaled_linear(T=200, start=0.001, end=0.02),
            {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.02},
        ),
    ],
)
def test_schedules_are_those_of_diffusers(ours, options):
    theirs = DDPMScheduler(ours.T, **options)  # in float32, so the betas agree to about 1e-6
    np.testing.assert_allclose(betas_of(ours), theirs.betas.double().numpy(), rtol=2e-5)
    np.testing.assert_allclose(ours.alpha_bar, theirs.alphas_cumprod.double().numpy(), rtol=1e-4)


@pytest.mark.parametrize("T", [50, 300, 4000])
def test_linear_is_scaled_so_that_its_end_hardly_depends_on_T(T):
    betas = betas_of(Schedule.linear(T))
    np.testing.assert_allclose(betas[[0, -1]], [0.1 / T, 20 / T], rtol=1e-10)
    # sum(beta) is T (beta_first + beta_last) / 2 = 10.05 for every T.
    assert betas.sum() == pytest.approx(10.05, rel=1e-10)


def test_betas_of_cosine_are_capped():
    betas = betas_of(Schedule.cosine())
    assert betas[-1] == pytest.approx(0.999, rel=1e-12)
    assert (betas <= 0.999 * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("T", [100, 1000])
def test_named_has_T_timesteps_and_knows_its_name(name, T):
    schedule = Schedule.named(name, T)
    assert schedule.T == len(schedule.alpha_bar) == T
    assert schedule.name == name
    assert schedule.alpha_bar.dtype == np.float64


def test_named_lists_the_known_names():
    with pytest.raises(ValueError, match=r"'sqrt'.*choose one of linear, cosine, scaled_linear"):
        Schedule.named("sqrt")


NO_BETAS = [[], 0.5, [[0.1, 0.2]], [0.0], [0.1, -0.1], [0.1, 1.0], [0.1, 1.1]]
NO_BETAS += [[math.nan], [0.1, math.inf]]


@pytest.mark.parametrize("betas", NO_BETAS)
def test_from_betas_refuses(betas):
    with pytest.raises(ValueError, match=r"non-empty one-dimensional list within \(0, 1\)"):
        Schedule.from_betas(betas)


def test_from_betas_multiplies():
    schedule = Schedule.from_betas([0.1, 0.2, 0.5])
    np.testing.assert_allclose(schedule.alpha_bar, [0.9, 0.72, 0.36], rtol=1e-15)
    assert schedule.name == "betas"


@pytest.mark.parametrize("name", NAMES)
def test_abar_has_the_clean_image_at_minus_one(name):
    schedule = Schedule.named(name)
    assert schedule.abar(-1) == 1.0
    assert [schedule.abar(t) for t in range(1000)] == schedule.alpha_bar.tolist()
    assert type(schedule.abar(5)) is float


@pytest.mark.parametrize("name", NAMES)
def test_sigma_and_log_snr_say_the_same_as_alpha_bar_which_falls(name):
    schedule = Schedule.named(name)
    assert (np.diff(schedule.alpha_bar) < 0).all()
    assert (np.diff(schedule.noise_level) > 0).all()
    assert (np.diff(schedule.log_snr) < 0).all()
    assert schedule.noise_level.shape == schedule.log_snr.shape == (1000,)
    # EDM: abar = 1 / (1 + sigma^2); VDM: abar = sigmoid(2 lambda).
    np.testing.assert_allclose(1 / (1 + schedule.noise_level**2), schedule.alpha_bar, rtol=1e-13)
    np.testing.assert_allclose(1 / (1 + np.exp(-schedule.log_snr)), schedule.alpha_bar, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_first_t_at_sigma(name):
    schedule = Schedule.named(name)
    sigma = schedule.noise_level
    between = np.sqrt(sigma[1:] * sigma[:-1])
    # "At least sigma" includes equality: the level of a node is found at that node.
    assert [schedule.first_t_at_sigma(s) for s in sigma] == list(range(1000))
    assert [schedule.first_t_at_sigma(s) for s in between] == list(range(1, 1000))
    ends = (0.0, sigma[-1] * 1.001, math.inf)
    assert [schedule.first_t_at_sigma(s) for s in ends] == [0, schedule.T, schedule.T]


def test_the_end_may_be_the_noise_level_of_timestep_0():
    schedule = replace(Schedule.scaled_linear(), final=float(Schedule.scaled_linear().alpha_bar[0]))
    assert schedule.abar(-1) == schedule.abar(0) < 1
    plan = ddim(schedule, [981, 501, 1])
    # From a point x0 with noise eps the last row goes to that level exactly.
    a, b = schedule.abar(1), schedule.abar(0)
    x0, eps = 0.7, -1.3
    x = a**0.5 * x0 + (1 - a) ** 0.5 * eps
    assert plan.x[-1] * x + plan.x0[-1] * x0 == pytest.approx(b**0.5 * x0 + (1 - b) ** 0.5 * eps)
    # Arriving at timestep 0 there is nothing left to do.
    plan = skipped(schedule, [500, 0])
    assert (plan.x[-1], plan.x0[-1], plan.noise[-1]) == (1, 0, 0)
    for builder in (skipped, ddim, ddpm, naive_stride):
        assert np.isfinite(builder(schedule, [500, 0]).x0).all()


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr(name):
    schedule = Schedule.named(name).zero_terminal_snr()
    assert schedule.alpha_bar[-1] == 0
    assert schedule.alpha_bar[0] == pytest.approx(Schedule.named(name).alpha_bar[0], rel=1e-12)
    assert (np.diff(schedule.alpha_bar) < 0).all()
    assert np.isinf(schedule.noise_level[-1])
    # The first jump takes nothing of x_T but its noise: x_s = sqrt(a_s) x0 + sqrt(1 - a_s) noise.
    a_s = schedule.abar(500)
    jump, step = skipped(schedule, [999, 500]), ddim(schedule, [999, 500])
    assert (jump.x[0], jump.x0[0]) == (0, pytest.approx(a_s**0.5))
    assert jump.noise[0] == pytest.approx((1 - a_s) ** 0.5)
    assert (step.x[0], step.x0[0]) == (pytest.approx((1 - a_s) ** 0.5), pytest.approx(a_s**0.5))


# --- other paths


def test_the_path_of_edm():
    sigmas = karras_sigmas(18)
    # Karras et al. (2022), eq. 5, at their defaults.
    u = np.arange(18) / 17
    expected = (80 ** (1 / 7) + u * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, expected, rtol=1e-13)
    schedule = Schedule.edm(sigmas)
    assert schedule.T == 18 and schedule.end == (1, 0)
    assert np.array_equal(schedule.alpha, np.ones(18))
    for column in (schedule.sigma, schedule.times, schedule.noise_level):
        assert np.array_equal(column, sigmas[::-1])
    np.testing.assert_allclose(schedule.alpha_bar, 1 / (1 + sigmas[::-1] ** 2), rtol=1e-14)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_path_of_flow_matching(shift):
    s = np.linspace(1, 0.25, 4)
    schedule = Schedule.flow(s, shift=shift)
    shifted = shift * s / (1 + (shift - 1) * s)
    np.testing.assert_allclose(schedule.sigma[::-1], shifted, rtol=1e-15)
    np.testing.assert_allclose(schedule.alpha + schedule.sigma, 1, rtol=1e-15)
    np.testing.assert_allclose(schedule.times, 1000 * schedule.sigma, rtol=1e-15)
    assert schedule.times[-1] == 1000 and np.isinf(schedule.noise_level[-1])
    if shift == 3:  # SD3's, as its pipeline makes them for four steps
        np.testing.assert_allclose(schedule.sigma[::-1], [1, 0.9, 0.75, 0.5], rtol=1e-15)


def test_the_shift_by_resolution_is_flux_s():
    # 256 and 4096 tokens: images of 256 and 1024 pixels a side.
    assert flow_shift(256) == pytest.approx(math.exp(0.5), rel=1e-15)
    assert flow_shift(4096) == pytest.approx(math.exp(1.15), rel=1e-15)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    s = np.linspace(1, 1 / 7, 7)
    scheduler.set_timesteps(sigmas=s.tolist(), mu=math.log(flow_shift(1024)))
    ours = Schedule.flow(s, shift=flow_shift(1024)).sigma[::-1]
    np.testing.assert_allclose(ours, scheduler.sigmas[:-1], rtol=1e-6)


PATHS = {
    "linear": Schedule.linear(),
    "edm": Schedule.edm(karras_sigmas(10), end=0.001),
    "flow": Schedule.flow(np.linspace(0.95, 0.05, 10), shift=2.0),
}


@pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)
def test_times_between_the_levels(schedule):
    for k in (0, 3, schedule.T - 1):
        alpha, sigma = schedule.level(schedule.times[k])
        assert (alpha, sigma) == pytest.approx((schedule.alpha[k], schedule.sigma[k]), rel=1e-14)
        assert schedule.time_at(schedule.noise_level[k]) == pytest.approx(schedule.times[k])
    assert schedule.level(-1) == schedule.end
    ends = (schedule.noise_level[0], 1.3 * schedule.noise_level[-1])
    for ratio in np.geomspace(*ends, 37):
        alpha, sigma = schedule.level(schedule.time_at(ratio))
        assert sigma / alpha == pytest.approx(ratio, rel=1e-9)
        assert (alpha, sigma) == pytest.approx(schedule.level_at(ratio), rel=1e-9)
        norm = {"linear": alpha**2 + sigma**2, "edm": alpha, "flow": alpha + sigma}
        assert norm[schedule.name] == pytest.approx(1, rel=1e-12)


def test_what_is_no_level_is_refused():
    for sigmas in ([], [1.0, 1.0], [1.0, 2.0], [[2.0, 1.0]], [1.0, 0.0], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="must decrease strictly"):
            Schedule.edm(sigmas)
    with pytest.raises(ValueError, match="from at most 1 to above the end"):
        Schedule.flow([1.5, 0.5])
    with pytest.raises(ValueError, match=r"above the end, 0\.5"):
        Schedule.flow([1.0, 0.5], end=0.5)
    with pytest.raises(ValueError, match="lies below that of timestep 0"):
        Schedule.linear().time_at(1e-4)
    with pytest.raises(IndexError, match="negative"):
        Schedule.linear().level(-0.5)
    with pytest.raises(ValueError, match="karras_sigmas needs"):
        karras_sigmas(0)
