"""Every state and every network call of 145 recorded runs of the samplers' own public codes.

diff-sampler, ER-SDE-Solver, Restart, k-diffusion and diffusers, in float64, on a mixture of three
Gaussians whose exact denoiser is known.  The file holds one array a field, the runs one after another.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import GOLDEN, golden_json

from sampling import (
    Plan,
    Schedule,
    churn,
    ddim,
    ddpm,
    deis,
    dpmpp,
    er_sde,
    ipndm,
    iterate,
    karras_sigmas,
    multistep,
    restart,
    sde_dpmpp,
    skipped,
)

RECORDED = golden_json("samplers_plans")
CASES = {case["id"]: case for case in RECORDED["cases"]}
MIXTURE = {name: np.array(values) for name, values in RECORDED["denoiser"].items()}
SCALES = dict(enumerate(("ode", "sde", *(f"er_sde_{k}" for k in range(1, 6))), 1))


@pytest.fixture(scope="module")
def fields() -> dict[str, dict[str, np.ndarray]]:
    """Case -> field -> array."""
    with np.load(GOLDEN / "samplers_plans.npz") as file:
        arrays = {name: file[name] for name in file.files}
    cases, at = {}, dict.fromkeys(arrays, 0)
    for id, case in CASES.items():
        cases[id] = {}
        for name, length in case["lengths"].items():
            cases[id][name] = arrays[name][at[name] : at[name] + length]
            at[name] += length
    return cases


def denoise(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """E[x_0 | x_t] of the mixture."""
    variances = alpha**2 * MIXTURE["variances"] + sigma**2
    d = x[:, None] - alpha * MIXTURE["means"]
    log = np.log(MIXTURE["weights"]) - (d**2 / variances + np.log(variances)).sum(-1) / 2
    r = np.exp(log - log.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    x0 = MIXTURE["means"] + alpha * MIXTURE["variances"] * d / variances
    return (r[..., None] * x0).sum(1)


def riemann(g, low: float, high: float) -> tuple[float, float]:
    """ER-SDE's own integrals: sums of 100 terms, the lower end in, the upper one out."""
    u = low + (high - low) / 100 * np.arange(100)
    f = u * g(u)
    return float((1 / f).sum()) * (high - low) / 100, float(((u - high) / f).sum()) * (
        high - low
    ) / 100


def schedule_of(case: dict, alpha: np.ndarray, sigma: np.ndarray) -> Schedule:
    if case["space"] == "VE":
        return Schedule.edm(sigma[:-1], end=sigma[-1])
    if case["space"] == "flow":
        return Schedule.flow(sigma[:-1], end=sigma[-1])
    return Schedule((alpha[-2::-1] ** 2).copy(), "levels", float(alpha[-1] ** 2))


def plan_of(case: dict, schedule: Schedule) -> Plan:
    """Our plan of a recorded run, under the names of its source."""
    o, sampler, grid = case["options"], case["sampler"], range(schedule.T - 1, -1, -1)
    n, order = case["n_steps"], case["options"].get("solver_order", 2)
    few = bool(o.get("lower_order_final", True) and n < 15)
    if sampler.startswith("er_sde"):
        plan = er_sde(schedule, grid, o["order"], SCALES[o["func_type"]])
        after = np.append(plan.alpha[1:], schedule.end.alpha)  # small variances are 0 there
        return dataclasses.replace(plan, noise=plan.noise * ((plan.noise / after) ** 2 >= 1e-6))
    if sampler == "dpmpp_2m_sde":
        builder = sde_dpmpp if o["eta"] else dpmpp
        return builder(schedule, grid, 2, False, o["solver_type"])
    if sampler == "dpmpp_3m_sde":
        return (sde_dpmpp if o["eta"] else dpmpp)(schedule, grid, 3, False, "heun")
    if sampler == "DPMSolverMultistep":
        builder = sde_dpmpp if o["algorithm_type"].startswith("sde") else dpmpp
        return builder(schedule, grid, order, few, o.get("solver_type", "midpoint"))
    if sampler in ("euler", "heun"):
        between = (float(o.get("s_tmin", 0)), float(o.get("s_tmax", "inf")))
        return churn(schedule, grid, o.get("s_churn", 0), between, o.get("s_noise", 1), sampler)
    others = {
        "ipndm": lambda: ipndm(schedule, grid, o["max_order"]),
        "deis": lambda: deis(schedule, grid, o["max_order"]),
        "dpm_pp": lambda: dpmpp(schedule, grid, o["max_order"], o["lower_order_final"]),
        "lms": lambda: deis(schedule, grid, o["order"]),
        "euler_ancestral": lambda: skipped(schedule, grid),
        "dpmpp_2m": lambda: dpmpp(schedule, grid, 2, False),
        "DEISMultistep": lambda: deis(schedule, grid, order, "log_rho", few),
        "FlowMatchEulerDiscrete": lambda: ddim(schedule, grid),
        "DDIM": lambda: ddim(schedule, grid, o.get("step_eta", 0.0)),
        "DDPM": lambda: ddpm(schedule, grid, o.get("variance_type", "fixed_small")),
    }
    return others[sampler]()


def restart_of(case: dict) -> Plan:
    restarts = list(json.loads(case["options"]["restart_info"] or "{}").values())
    schedule = Schedule.edm(karras_sigmas(case["n_steps"]))
    grid = range(schedule.T - 1, -1, -1)
    return restart(schedule, grid, restarts, case["options"].get("S_noise", 0.0))


class RecordedNoise:
    """The recorded normal numbers; one was drawn for every state, whether it was used or not."""

    def __init__(self, plan: Plan, start: np.ndarray, noise: np.ndarray):
        self.x_T, self.z, k = start / plan.start, {}, 0
        for row in plan.rows():
            if row.noise:
                self.z[row.t, row.visit] = noise[k]
            k += row.s < row.t or (plan.name.startswith("restart") and row.s > row.t)

    def start(self):
        return torch.from_numpy(self.x_T)

    def at(self, t, s, visit=0):
        return torch.from_numpy(self.z[t, visit])


@pytest.mark.parametrize("id", CASES)
def test_every_state_and_every_call(id, fields, monkeypatch):
    case, golden = CASES[id], fields[id]
    monkeypatch.setattr(multistep, "_integrals", riemann)
    if case["sampler"] == "restart":
        plan = restart_of(case)
    else:
        plan = plan_of(case, schedule_of(case, golden["nodes_alpha"], golden["nodes_sigma"]))
    levels = {row.t: (row.alpha, row.sigma) for row in plan.rows()}
    calls = []

    def denoiser(x, t):
        calls.append(levels[t])
        return torch.from_numpy(denoise(x.numpy(), *levels[t])), None

    noise = RecordedNoise(plan, golden["xs"][0], golden["noise"])
    states = list(iterate(denoiser, plan, noise))
    # The originals record no state before Heun's correction, nor k-diffusion's between churn and
    # its jump.
    corrected = [len(after.row.eps) > 1 for after in states[1:]] + [False]
    one_call = not plan.name.startswith(("churn", "restart"))
    ours = [
        state.x.numpy()
        for state, unfinished in zip(states, corrected, strict=True)
        if one_call or not (unfinished or (plan.name[0] == "c" and state.row.s > state.row.t))
    ]
    np.testing.assert_allclose(ours, golden["xs"][1:], rtol=1e-10, atol=1e-10)
    assert len(calls) == len(plan) == case["nfe"]
    np.testing.assert_allclose([a for a, _ in calls], golden["calls_alpha"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose([s for _, s in calls], golden["calls_sigma"], rtol=1e-10)
