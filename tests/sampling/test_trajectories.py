"""Every step of guided-diffusion's 78 recorded sampling runs, at the stated tolerances."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import bound, golden_json

from models.backbone import ImageNetwork
from sampling import Schedule, ddim, ddpm, iterate, timesteps

RUNS = {run["id"]: run for run in golden_json("trajectories")["runs"]}
VARIANCE = {"LEARNED_RANGE": "learned", "FIXED_SMALL": "fixed_small", "FIXED_LARGE": "fixed_large"}


class Recorded:
    """The recorded x_T and noise, handed out by row."""

    def __init__(self, x_T, noise, plan, dtype):
        self.x_T, self.dtype = x_T, dtype
        self.by_t = {row.t: z for row, z in zip(plan.rows(), noise, strict=False)}

    def start(self):
        return self.x_T.to(self.dtype)

    def at(self, t):
        return self.by_t[t].to(self.dtype)


def analytic(name: str, schedule: Schedule):
    """The two closed-form networks that the golden runs used instead of a network."""

    def network(x, t, condition):
        a = schedule.abar(int(t))
        v = 0.5 * math.sin(t / 100) + 0.25 * x
        if name == "analytic_std":
            return math.sqrt(1 - a) * x, v
        mu, s = 0.3, 0.5
        return (x - math.sqrt(a) * mu) * (math.sqrt(1 - a) / (a * s**2 + 1 - a)), v

    return network


def plan_of(run: dict, schedule: Schedule):
    spec = run["respacing"]
    spacing = "ddim" if spec.startswith("ddim") else "even"
    grid = timesteps(1000, int(spec.removeprefix("ddim")), spacing)
    if run["sampler"] == "ddim":
        return ddim(schedule, grid, eta=run["eta"])
    return ddpm(schedule, grid, variance=VARIANCE[run["model_var_type"]])


def replay(run, trajectories, golden_t64, dtype):
    schedule = Schedule.named(run["noise_schedule"])
    plan = plan_of(run, schedule)
    family = "unet" if run["model"] == "unet" else "analytic"
    noise = Recorded(trajectories[f"{family}/x_T"], trajectories[f"{family}/noise"], plan, dtype)
    is_unet = family == "unet"
    network = ImageNetwork(golden_t64) if is_unet else analytic(run["model"], schedule)
    gradient = (lambda x, t: 0.4 * (0.25 - x) * (1 + t / 999)) if run["cond_fn"] else None
    y = trajectories["unet/y"] if is_unet else None
    denoiser = bound(network, schedule, run["clip_denoised"], gradient, y)
    with torch.no_grad():
        states = iterate(denoiser, plan, noise)
        return torch.stack([noise.start()] + [state.x for state in states])


@pytest.mark.parametrize("id", RUNS)
def test_every_step_in_float32(id, trajectories, golden_t64):
    run, golden = RUNS[id], trajectories[f"{id}/x"]
    ours = replay(run, trajectories, golden_t64, torch.float32)
    error = (ours - golden).abs().flatten(1).amax(1)
    if run["model"] != "unet":
        tolerance = torch.tensor(1e-5 if run["noise_schedule"] == "linear" else 1e-3)
    elif run["clip_denoised"]:
        tolerance = torch.tensor(1e-3)
    else:
        tolerance = 2e-5 * golden.abs().flatten(1).amax(1).clamp(min=1)
    assert ours.shape == golden.shape
    assert (error <= tolerance).all(), error


@pytest.mark.parametrize("id", [id for id in RUNS if not id.startswith("unet")])
def test_every_step_in_float64(id, trajectories, golden_t64):
    run = RUNS[id]
    ours = replay(run, trajectories, golden_t64, torch.float64)
    tolerance = 1e-10 if run["noise_schedule"] == "linear" else 1e-8
    torch.testing.assert_close(ours, trajectories[f"{id}/x_float64"], rtol=0, atol=tolerance)


def test_all_78_runs_are_replayed():
    assert len(RUNS) == 78
