"""Step by step against the schedulers of diffusers, a second reference besides the recordings.

Both sides see the same network, noise and alpha_bar, all in float64, so that agreement is a
matter of formulas alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import bound
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from sampling import Plan, Schedule, ddim, ddpm, iterate, mix, skipped, timesteps

SHAPE = (2, 3, 4, 4)
SCHEDULES = {name: Schedule.named(name) for name in ("linear", "cosine", "scaled_linear")}
# The coefficients of the two sides round differently.  Relative to the largest |x| of a step,
# because without clipping the made-up network lets x grow (to 4e4 with cosine).  Measured worst
# 3e-14 and 1e-11.
TOLERANCE = {"linear": 1e-12, "cosine": 1e-10, "scaled_linear": 1e-12}
# diffusers' DDIM goes from t to t - T // N, which is the next timestep of a `leading` grid
# always, of a `trailing` one only if N divides T, and of an `even` one hardly ever.
DDIM_GRIDS = [("leading", n) for n in (1, 2, 7, 20, 30)] + [("trailing", n) for n in (1, 2, 8, 20)]
# Its DDPM looks the next timestep up in the list, so every grid will do.
DDPM_GRIDS = [("leading", 7), ("leading", 20), ("trailing", 7), ("trailing", 30), ("even", 25)]

every_schedule = pytest.mark.parametrize("name", SCHEDULES)
clipped_or_not = pytest.mark.parametrize("clip", [True, False], ids=["clip", "noclip"])


def network(x, t, condition):
    """Smooth, not linear, different at every timestep; x0 leaves [-1, 1] for many pixels."""
    return torch.tanh(0.8 * x + 0.3 * np.cos(t / 90)) + 0.2 * torch.sin(2 * x), None


class Recorded:
    """x_T and one noise tensor a timestep."""

    def __init__(self, plan: Plan, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(len(plan) + 1, *SHAPE, generator=generator, dtype=torch.float64)
        self.x_T, self.by_t = draws[0], dict(zip(plan.t.tolist(), draws[1:], strict=True))

    def start(self):
        return self.x_T

    def at(self, t, s=-1.0, visit=0):
        return self.by_t[t]


def in_float64(scheduler, schedule: Schedule):
    """The scheduler with its float32 table of alpha_bar replaced."""
    ours = torch.from_numpy(schedule.alpha_bar)
    # 1 - beta in float32 keeps few digits where beta is close to 1, as at the end of cosine.
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), ours, rtol=1e-3, atol=1e-6)
    scheduler.alphas_cumprod = ours
    return scheduler


def diffusers_name(name: str) -> dict:
    if name == "scaled_linear":
        return {"beta_schedule": name, "beta_start": 0.00085, "beta_end": 0.012}
    return {"beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[name]}


def ddim_steps(name: str, plan: Plan, noise: Recorded, spacing: str, eta: float, clip: bool):
    """x after every step of diffusers' DDIM."""
    scheduler = DDIMScheduler(
        **diffusers_name(name),
        clip_sample=clip,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
        steps_offset=0,
    )
    in_float64(scheduler, SCHEDULES[name]).set_timesteps(len(plan))
    assert scheduler.timesteps.tolist() == plan.t.tolist()
    x = noise.start()
    for t in scheduler.timesteps.tolist():
        # With clipping guided-diffusion derives eps again from the clipped x0, and so do we.
        x = scheduler.step(
            network(x, t, None)[0],
            t,
            x,
            eta=eta,
            use_clipped_model_output=clip,
            variance_noise=noise.at(t) if eta else None,
        ).prev_sample
        yield x


def ddpm_steps(name: str, plan: Plan, noise: Recorded, variance: str, clip: bool, monkeypatch):
    """x after every step of diffusers' DDPM, its random numbers replaced by `noise`."""
    scheduler = DDPMScheduler(**diffusers_name(name), variance_type=variance, clip_sample=clip)
    in_float64(scheduler, SCHEDULES[name]).set_timesteps(timesteps=plan.t.astype(int).tolist())
    x = noise.start()
    for t in scheduler.timesteps.tolist():
        z = noise.at(t)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, z=z, **kwargs: z)
        x = scheduler.step(network(x, t, None)[0], t, x).prev_sample
        yield x


def assert_close(x: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    assert x.dtype == theirs.dtype == torch.float64
    atol = tolerance * max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(x, theirs, rtol=0, atol=atol)


def assert_same_steps(name: str, plan: Plan, noise, clip: bool, theirs, tolerance) -> None:
    states = iterate(bound(network, SCHEDULES[name], clip), plan, noise)
    for state, x in zip(states, theirs, strict=True):
        assert_close(state.x, x, tolerance)


@every_schedule
@clipped_or_not
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, None])
@pytest.mark.parametrize(("spacing", "n"), DDIM_GRIDS)
def test_ddim_and_skipped_which_is_eta_1(spacing, n, eta, clip, name):
    grid = timesteps(1000, n, spacing)
    skips = eta is None
    plan = skipped(SCHEDULES[name], grid) if skips else ddim(SCHEDULES[name], grid, eta=eta)
    noise = Recorded(plan)
    theirs = ddim_steps(name, plan, noise, spacing, 1.0 if skips else eta, clip)
    assert_same_steps(name, plan, noise, clip, theirs, TOLERANCE[name])


@every_schedule
@clipped_or_not
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize(("spacing", "n"), DDPM_GRIDS)
def test_ddpm(spacing, n, variance, clip, name, monkeypatch):
    plan = ddpm(SCHEDULES[name], timesteps(1000, n, spacing), variance=variance)
    noise, tolerance = Recorded(plan), TOLERANCE[name]
    if plan.t[-1] > 0:
        # On grids that do not end at t = 0 diffusers adds noise in the last step as well.  The
        # small variance, 0 there, is raised to 1e-20; the large one is beta, and its samples
        # stay noisy.  Ours end in the mean, as guided-diffusion's.
        if variance == "fixed_small":
            tolerance = 1e-9
        else:
            noise.by_t[plan.t[-1]] = torch.zeros(SHAPE, dtype=torch.float64)
    theirs = ddpm_steps(name, plan, noise, variance, clip, monkeypatch)
    assert_same_steps(name, plan, noise, clip, theirs, tolerance)


@every_schedule
@clipped_or_not
def test_mix_is_eta_1_and_then_eta_0(clip, name):
    plan = mix(SCHEDULES[name], timesteps(1000, 20, "leading"), cutoff=300)
    noise = Recorded(plan)
    states = list(iterate(bound(network, SCHEDULES[name], clip), plan, noise))
    stochastic = ddim_steps(name, plan, noise, "leading", 1.0, clip)
    above = [x for x, row in zip(stochastic, plan.rows(), strict=True) if row.t >= 300]
    assert len(above) == 14
    for state, x in zip(states, above, strict=False):
        assert_close(state.x, x, TOLERANCE[name])
    # Below the cutoff: the deterministic scheduler, continued from there.
    scheduler = DDIMScheduler(
        **diffusers_name(name), clip_sample=clip, timestep_spacing="leading", steps_offset=0
    )
    in_float64(scheduler, SCHEDULES[name]).set_timesteps(20)
    x = above[-1]
    for state in states[14:]:
        t = int(state.row.t)
        eps = network(x, t, None)[0]
        x = scheduler.step(eps, t, x, use_clipped_model_output=clip).prev_sample
        assert_close(state.x, x, TOLERANCE[name])


def test_the_made_up_network_is_a_fair_test():
    # Clipping must matter, and so must the timestep.
    plan = ddim(SCHEDULES["linear"], timesteps(1000, 20, "leading"))
    noise = Recorded(plan)
    free = list(iterate(bound(network), plan, noise))
    assert all((state.x0.abs() > 1).any() for state in free)
    clipped = list(iterate(bound(network, clip=True), plan, noise))
    assert (free[-1].x - clipped[-1].x).abs().max() > 0.1
    x = noise.start()
    assert (network(x, 0, None)[0] - network(x, 300, None)[0]).abs().min() > 1e-3
