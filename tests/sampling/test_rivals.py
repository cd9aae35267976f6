"""DPM-Solver++ as plans, and the spacings by noise level."""

from __future__ import annotations

import itertools

import diffusers
import numpy as np
import pytest
import torch
from conftest import bound
from seeded import SeededNoise, network

from sampling import Schedule, ddim, dpmpp, run, sde_dpmpp, skipped, timesteps
from sampling.gaussian import gaussian_frechet, gaussian_output

# diffusers hands torch's tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SCHEDULES = {name: Schedule.named(name) for name in ("linear", "scaled_linear", "cosine")}
LINEAR = SCHEDULES["linear"]


def betas(schedule):
    return (1 - schedule.alpha_bar / np.append(1, schedule.alpha_bar[:-1])).tolist()


@pytest.fixture
def double(monkeypatch):
    """diffusers' step rounds to float32: here its float32 is float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)


def theirs(schedule, grid, algorithm, order, clean):
    """diffusers' DPMSolverMultistepScheduler in float64 on a grid of ours."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        trained_betas=betas(schedule),
        algorithm_type=algorithm,
        solver_order=order,
        final_sigmas_type="zero" if clean else "sigma_min",
    )
    scheduler.set_timesteps(len(grid))
    end = 0.0 if clean else np.sqrt((1 - schedule.final) / schedule.final)
    scheduler.timesteps = torch.from_numpy(grid)
    scheduler.sigmas = torch.from_numpy(np.append(schedule.noise_level[grid], end))
    scheduler.set_begin_index(0)
    noise = SeededNoise()
    x = noise.start()
    for t in grid:
        eps, _ = network(x, int(t))
        x = scheduler.step(eps, int(t), x, variance_noise=noise.at(t), return_dict=False)[0]
    return x


@pytest.mark.parametrize("spacing", ["even", "trailing", "log_snr"])
@pytest.mark.parametrize(
    ("builder", "algorithm"), [(dpmpp, "dpmsolver++"), (sde_dpmpp, "sde-dpmsolver++")]
)
def test_every_count_equals_diffusers(double, builder, algorithm, spacing):
    for n in range(2, 201) if spacing == "even" else (*range(2, 31), 100, 200):
        grid = timesteps(LINEAR, n, spacing)
        for order in (1, 2):
            ours = run(bound(network), builder(LINEAR, grid, order=order), SeededNoise())
            expected = theirs(LINEAR, grid, algorithm, order, clean=True)
            assert (ours - expected).abs().max() <= 1e-11 * expected.abs().max(), (n, order)


@pytest.mark.parametrize("n", [2, 10, 14, 15, 50])
@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_an_end_that_is_not_clean_equals_diffusers(double, name, n):
    """Stable Diffusion's: the last row is of second order from 15 steps on."""
    alpha_bar = SCHEDULES[name].alpha_bar
    schedule = Schedule(alpha_bar, name, final=float(alpha_bar[0]))
    grid = timesteps(schedule, n, "leading+1")
    for builder, algorithm in ((dpmpp, "dpmsolver++"), (sde_dpmpp, "sde-dpmsolver++")):
        ours = run(bound(network, schedule), builder(schedule, grid), SeededNoise())
        expected = theirs(schedule, grid, algorithm, 2, clean=False)
        assert (ours - expected).abs().max() <= 1e-11 * expected.abs().max()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_order_one_is_ddim_and_skipped_step(schedule):
    for n in range(1, 1001):
        grid = timesteps(schedule, n, "even")
        for plan, known in (
            (dpmpp(schedule, grid, order=1), ddim(schedule, grid)),
            (sde_dpmpp(schedule, grid, order=1), skipped(schedule, grid)),
        ):
            assert plan.look_back == 0
            for column in ("x", "x0", "noise"):
                ours, expected = getattr(plan, column), getattr(known, column)
                assert np.allclose(ours, expected, rtol=1e-9, atol=1e-12), (n, column)


def test_every_row_keeps_a_constant_image():
    """x0 = c throughout: rows map alpha_t c to alpha_s c, the x0 of the rows before included."""
    for builder in (dpmpp, sde_dpmpp):
        for n in range(2, 300):
            plan = builder(LINEAR, timesteps(LINEAR, n, "log_snr"))
            kept = plan.x * plan.alpha + plan.x0.sum(axis=1)
            rtol = 1e-12 if builder is dpmpp else 1e-9
            assert np.allclose(kept, np.append(plan.alpha[1:], 1.0), rtol=rtol)


def test_no_signal_at_the_start():
    """Zero terminal SNR: the first jump is infinitely long, and the second is of first order."""
    schedule = LINEAR.zero_terminal_snr()
    for builder in (dpmpp, sde_dpmpp):
        plan = builder(schedule, timesteps(1000, 20, "even"))
        assert plan.x0[1, 1] == 0 and plan.x0[2, 1] != 0
        assert all(np.isfinite(getattr(plan, c)).all() for c in ("x", "x0", "noise"))


# --- order of convergence -------------------------------------------------------------------


def slope(builder, **options):
    """Of the standard deviation's error over the number of steps, both logarithmic, from 32 on."""
    schedule = Schedule.linear(100_000)  # so fine that rounding to timesteps does not matter
    counts, errors = [32, 64, 128, 256], []
    for n in counts:
        plan = builder(schedule, timesteps(schedule, n, "log_snr"), **options)
        variance = gaussian_output(plan, np.array([0.25])).variance[0]
        errors.append(abs(np.sqrt(variance) - 0.5))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def test_order_of_convergence_on_gaussian_data():
    assert slope(ddim) == pytest.approx(1, abs=0.2)
    assert slope(dpmpp) == pytest.approx(2, abs=0.2)
    assert slope(skipped) == pytest.approx(1, abs=0.2)


def test_an_erring_score_says_nothing_of_x0_without_signal():
    schedule = Schedule.linear().zero_terminal_snr()
    plan = ddim(schedule, timesteps(schedule, 5))
    assert np.isfinite(gaussian_output(plan, np.array([0.3])).variance).all()
    with pytest.raises(ValueError, match="keeps some signal at T"):
        gaussian_output(plan, np.array([0.3]), 0.01)


@pytest.mark.parametrize("score_error", [0.0, 0.05, -0.03])
def test_gaussian_output_is_what_sampling_gives(score_error):
    c, mean = 0.25, 0.7

    def network(x, t, condition=None):
        a = LINEAR.alpha_bar[int(t)]
        score = -(x - np.sqrt(a) * mean) / (a * c + 1 - a)
        return -np.sqrt(1 - a) * (1 + score_error) * score, None

    class Many(SeededNoise):
        def draw(self, seed):
            generator = torch.Generator().manual_seed(seed)
            return torch.randn(400_000, generator=generator, dtype=torch.float64)

    for builder in (ddim, skipped, dpmpp, sde_dpmpp):
        plan = builder(LINEAR, timesteps(LINEAR, 10, "even"))
        x = run(bound(network), plan, Many())
        output = gaussian_output(plan, np.array([c]), score_error)
        assert x.var().item() == pytest.approx(output.variance[0], rel=0.01)
        assert x.mean().item() == pytest.approx(mean * output.gain[0], abs=0.005)
        frechet = (x.std().item() - 0.5) ** 2 + (x.mean().item() - mean) ** 2
        ours = gaussian_frechet(plan, np.array([c]), np.array([mean]), score_error)
        assert ours == pytest.approx(frechet, rel=0.05, abs=1e-4)


def test_a_stochastic_sampler_forgets_the_errors_of_the_score():
    """What is left at 1000 steps is the score's error: DDIM keeps it, noise makes up for it."""
    grid, c = timesteps(LINEAR, 1000, "even"), np.geomspace(0.01, 20, 30)
    for error in (0.02, -0.02):
        kept, forgotten = (
            gaussian_frechet(b(LINEAR, grid), c, None, error) for b in (ddim, skipped)
        )
        assert kept > 10 * forgotten
    assert gaussian_frechet(ddim(LINEAR, grid), c) < gaussian_frechet(skipped(LINEAR, grid), c)


def test_mistakes():
    for builder in (dpmpp, sde_dpmpp):
        with pytest.raises(ValueError, match="must be 1, 2 or 3, got 4"):
            builder(LINEAR, [999, 0], order=4)
        with pytest.raises(ValueError, match="unknown solver_type 'logrho'"):
            builder(LINEAR, [999, 0], solver_type="logrho")


# --- spacings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spacing", ["log_snr", "karras", "ays_sd", "ays_sdxl", "karras+1+0.01", "karras+1000+100"]
)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_spacings_by_noise_level_for_every_count(schedule, spacing):
    for n in range(1, 1001):
        grid = timesteps(schedule, n, spacing)
        assert len(grid) == n
        assert (np.diff(grid) < 0).all() and grid[-1] >= 0 and grid[0] < 1000
    assert timesteps(schedule, 1000, spacing).tolist() == list(range(999, -1, -1))


def test_spacings_are_what_they_say():
    log_snr = LINEAR.log_snr[timesteps(LINEAR, 12, "log_snr")]
    assert np.abs(np.diff(log_snr, 2))[:6].max() < 0.05  # below, timesteps are coarse
    karras = LINEAR.noise_level[timesteps(LINEAR, 12, "karras")] ** (1 / 7)
    assert np.abs(np.diff(karras, 2))[:8].max() < 0.01
    published = diffusers.schedulers.AysSchedules
    assert timesteps(LINEAR, 10, "ays_sd").tolist() == published["StableDiffusionTimesteps"]
    assert timesteps(LINEAR, 10, "ays_sdxl").tolist() == published["StableDiffusionXLTimesteps"]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_rho_and_a_shift_span_what_there_is(schedule):
    """7 and 1 are Karras's; a large rho is even in log-SNR, 1 in sigma; a shift moves the nodes to noise."""
    for n in range(1, 101):
        karras = timesteps(schedule, n, "karras")
        for same in ("karras+7", "karras+7.0", "karras+7+1"):
            assert np.array_equal(timesteps(schedule, n, same), karras)
        even = timesteps(schedule, n, "log_snr")
        assert np.abs(timesteps(schedule, n, "karras+1000+1") - even).max() <= 10
        grids = [timesteps(schedule, n, f"karras+5+{s}") for s in (0.5, 1, 2.5)]
        assert all((b >= a).all() for a, b in itertools.pairwise(grids)), n
        if n > 9:
            assert len({*map(tuple, grids)}) == 3


def test_a_shift_is_that_of_flow_matching():
    u = LINEAR.noise_level[timesteps(LINEAR, 9, "karras+3+2")] ** (1 / 3)
    share = (u - u[-1]) / (u[0] - u[-1])
    even = np.linspace(1, 0, 9)
    assert share == pytest.approx(2 * even / (1 + even), abs=0.02)


def test_spacing_mistakes():
    for spacing in ("karras+0.9", "karras+1001+1", "karras+7+0", "karras+7+101"):
        with pytest.raises(ValueError, match=r"rho of 1 to 1000 and a shift.*karras\+7\+1 is"):
            timesteps(LINEAR, 10, spacing)
    for spacing in (
        "karras+",
        "karras+7+",
        "karras+-1",
        "karras+7+1+1+1",
        "karras+7+1+0.5",
        "log_snr+7",
        "karras+1e2",
    ):
        with pytest.raises(ValueError, match=r"unknown spacing .*karras\+5\+2"):
            timesteps(LINEAR, 10, spacing)
    with pytest.raises(ValueError, match="needs the noise schedule"):
        timesteps(1000, 10, "karras+7")
    with pytest.raises(ValueError, match="needs the noise schedule"):
        timesteps(1000, 10, "log_snr")
    with pytest.raises(ValueError, match="keeps some signal"):
        timesteps(LINEAR.zero_terminal_snr(), 10, "karras")
    with pytest.raises(ValueError, match="published for T = 1000"):
        timesteps(Schedule.linear(100), 10, "ays_sd")
