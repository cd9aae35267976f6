"""Runs of the samplers' own public codes, recorded step by step, and our plans beside them.

    OMP_NUM_THREADS=1 python tests/golden_samplers.py ../shared/golden/samplers

reads every <source>.json and <source>.npz of a folder and prints, for each sampler, how many of its
runs our builders make, how many `tabulate` makes of diffusers' scheduler, the worst difference, and
what is no sampler of ours.  The exit status is 1 where a run of ours is another one.

`test_golden_samplers.py` and `test_tabulate.py` hold a part of these runs, in tests/golden.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import numpy as np
import torch

from sampling import (
    Plan,
    Schedule,
    State,
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
    tabulate,
)
from sampling.borrowed import borrowed
from sampling.denoise import DynamicThreshold

SCALES = dict(enumerate(("ode", "sde", *(f"er_sde_{k}" for k in range(1, 6))), 1))
TAU = {"zero": 0, "half": 0.5, "one": 1}
TOLERANCE = 1e-10


class Run(NamedTuple):
    """A recorded run: what it was, and its arrays; the mixture of Gaussians that is its data."""

    case: dict[str, Any]
    fields: dict[str, np.ndarray]
    mixture: dict[str, np.ndarray]

    def x0(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """E[x_0 | x_t]."""
        variances = alpha**2 * self.mixture["variances"] + sigma**2
        d = x[:, None] - alpha * self.mixture["means"]
        log = np.log(self.mixture["weights"]) - (d**2 / variances + np.log(variances)).sum(-1) / 2
        r = np.exp(log - log.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        x0 = self.mixture["means"] + alpha * self.mixture["variances"] * d / variances
        return (r[..., None] * x0).sum(1)


def read(folder: Path) -> Iterator[Run]:
    """The runs of a folder of <source>.json and <source>.npz, and denoiser.json."""
    mixtures = {
        name: {key: np.array(value) for key, value in mixture.items() if key != "name"}
        for name, mixture in json.loads((folder / "denoiser.json").read_text()).items()
    }
    for path in sorted(folder.glob("*.json")):
        if path.stem == "denoiser":
            continue
        with np.load(path.with_suffix(".npz")) as file:
            arrays: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
            for name in file.files:
                id, field = name.split("/")
                arrays[id][field] = file[name]
        for case in json.loads(path.read_text())["cases"]:
            yield Run(case, arrays[case["id"]], mixtures[case["dist"]])


# --- our plan of a run ----------------------------------------------------------------------


def riemann(g, low: float, high: float) -> tuple[float, float]:
    """ER-SDE's own integrals: sums of 100 terms, the lower end in, the upper one out."""
    u = low + (high - low) / 100 * np.arange(100)
    f = u * g(u)
    return float((1 / f).sum()) * (high - low) / 100, float(((u - high) / f).sum()) * (
        high - low
    ) / 100


def schedule_of(run: Run) -> Schedule:
    alpha, sigma = run.fields["nodes_alpha"], run.fields["nodes_sigma"]
    if run.case["sampler"] == "HeunDiscrete":  # every state is recorded, two at a node
        sigma = np.unique(sigma)[::-1]
    if run.case["space"] == "VE":
        return Schedule.edm(sigma[:-1], end=sigma[-1])
    if run.case["space"] == "flow":
        return Schedule.flow(sigma[:-1], end=sigma[-1])
    return Schedule((alpha[-2::-1] ** 2).copy(), "levels", float(alpha[-1] ** 2))


def why_no_builder(run: Run) -> str:
    """Why no builder of ours makes a run; empty where one does."""
    o, sampler = run.case["options"], run.case["sampler"]
    algorithm = o.get("algorithm_type", "dpmsolver++")
    nodes, calls = run.fields["nodes_sigma"], run.fields["calls_sigma"]
    one_way = sampler not in ("restart", "HeunDiscrete") and run.case["space"] != "VP"
    reasons = {
        "its first slope is no network call (afs)": o.get("afs"),
        "a call between two nodes": sampler in BETWEEN_NODES,
        "ipndm_v is wrong above order 2": sampler == "ipndm_v",
        "polynomials in time, by sums (tab)": o.get("deis_mode") == "tab",
        "DPM-Solver, not ++": not o.get("predict_x0", True)
        or algorithm in ("dpmsolver", "sde-dpmsolver"),
        "eta between the ODE and the SDE": sampler.endswith("m_sde") and o["eta"] not in (0, 1),
        "sde-dpmsolver++ of order 3 has a wrong sign": algorithm == "sde-dpmsolver++"
        and o["solver_order"] == 3,
        "churn after the network's call": o.get("step_s_churn"),
        "stochastic_sampling renoises fully": o.get("stochastic_sampling"),
        "Restart with churn": o.get("S_churn") or o.get("restart_gamma"),
        "a jump of no length": one_way and (np.diff(nodes) >= 0).any(),
        "calls elsewhere than at its nodes": len(calls) == len(nodes) - 1
        and not (o.get("s_churn") or np.allclose(calls, nodes[:-1], rtol=1e-12)),
    }
    found = [reason for reason, is_so in reasons.items() if is_so]
    return found[0] if found else "" if sampler in BUILDERS else "no builder"


BETWEEN_NODES = ("dpm_2", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde")


def few(run: Run) -> bool:
    """diffusers' `lower_order_final`, which is for few steps alone."""
    return bool(run.case["options"].get("lower_order_final", True) and run.case["n_steps"] < 15)


def ours_er_sde(run: Run, schedule: Schedule, grid: range) -> Plan:
    o = run.case["options"]
    with patch.object(multistep, "_integrals", riemann):
        plan = er_sde(schedule, grid, o["order"], SCALES[o["func_type"]])
    after = np.append(plan.alpha[1:], schedule.end.alpha)  # small variances are 0 there
    return dataclasses.replace(plan, noise=plan.noise * ((plan.noise / after) ** 2 >= 1e-6))


def ours_churn(run: Run, schedule: Schedule, grid: range) -> Plan:
    o, method = run.case["options"], "heun" if "eun" in run.case["sampler"] else "euler"
    between = (float(o.get("s_tmin", 0)), float(o.get("s_tmax", "inf")))
    return churn(schedule, grid, o.get("s_churn", 0), between, o.get("s_noise", 1), method)


def ours_restart(run: Run, schedule: Schedule, grid: range) -> Plan:
    """The nodes repeat: the schedule is EDM's grid, whatever was recorded."""
    o, schedule = run.case["options"], Schedule.edm(karras_sigmas(run.case["n_steps"]))
    restarts = list(json.loads(o["restart_info"] or "{}").values())
    return restart(schedule, range(schedule.T - 1, -1, -1), restarts, o.get("S_noise", 0.0))


def ours_dpmpp(run: Run, schedule: Schedule, grid: range) -> Plan:
    """DPM-Solver++ and its SDE, of k-diffusion and of diffusers."""
    o, sampler = run.case["options"], run.case["sampler"]
    if sampler.startswith("dpmpp"):
        builder = sde_dpmpp if o.get("eta", 0) else dpmpp
        order = 3 if "3m" in sampler else 2
        kind = "heun" if order == 3 else o.get("solver_type", "midpoint")
        return builder(schedule, grid, order, False, kind)
    builder = sde_dpmpp if o.get("algorithm_type", "").startswith("sde") else dpmpp
    kind = o.get("solver_type", "midpoint")
    plan = builder(schedule, grid, o.get("solver_order", 2), few(run), kind)
    if o.get("euler_at_final"):
        first = builder(schedule, grid, 1)
        x0 = np.array(plan.x0)
        x0[-1] = np.append(first.x0[-1], np.zeros(x0.shape[1] - 1))
        plan = dataclasses.replace(plan, x0=x0)
    return plan


# Sampler -> (run, schedule, grid) -> our plan, by its own builder.
BUILDERS = {
    "er_sde_ve": ours_er_sde,
    "er_sde_vp": ours_er_sde,
    "restart": ours_restart,
    "euler": ours_churn,
    "heun": ours_churn,
    "HeunDiscrete": ours_churn,
    **dict.fromkeys(("dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"), ours_dpmpp),
    **dict.fromkeys(("DPMSolverMultistep", "EDMDPMSolverMultistep"), ours_dpmpp),
    "ipndm": lambda r, s, g: ipndm(s, g, r.case["options"]["max_order"]),
    "deis": lambda r, s, g: deis(s, g, r.case["options"]["max_order"]),
    "dpm_pp": lambda r, s, g: dpmpp(
        s, g, r.case["options"]["max_order"], r.case["options"]["lower_order_final"]
    ),
    "lms": lambda r, s, g: deis(s, g, r.case["options"]["order"]),
    "LMSDiscrete": lambda r, s, g: deis(s, g, r.case["options"].get("step_order", 4)),
    "euler_ancestral": lambda r, s, g: ddim(s, g, r.case["options"]["eta"]),
    "EulerAncestralDiscrete": lambda r, s, g: skipped(s, g),
    "EulerDiscrete": lambda r, s, g: ddim(s, g),
    "EDMEuler": lambda r, s, g: ddim(s, g),
    "FlowMatchEulerDiscrete": lambda r, s, g: ddim(s, g),
    "DEISMultistep": lambda r, s, g: deis(
        s, g, r.case["options"].get("solver_order", 2), "log_rho", few(r)
    ),
    "DDIM": lambda r, s, g: ddim(s, g, r.case["options"].get("step_eta", 0.0)),
    "DDPM": lambda r, s, g: ddpm(s, g, r.case["options"].get("variance_type", "fixed_small")),
}


def built(run: Run) -> Plan:
    """The plan of our builder; see `why_no_builder`."""
    if run.case["sampler"] == "restart":
        return ours_restart(run, None, None)
    schedule = schedule_of(run)
    return BUILDERS[run.case["sampler"]](run, schedule, range(schedule.T - 1, -1, -1))


def tabulated(case: dict[str, Any]) -> Plan:
    """The plan of diffusers' scheduler."""
    n, options = case["n_steps"], dict(case["options"])
    grid = {k[4:]: options.pop(k) for k in ("set_mu", "set_sigmas") if k in options}
    step = {k[5:]: options.pop(k) for k in [*options] if k.startswith("step_")}
    if "sigmas" in grid:
        grid["sigmas"] = np.linspace(1, 1 / n, n).tolist()
    if (tau := options.pop("tau", "window200_800")) in TAU:
        options["tau_func"] = lambda t: TAU[tau]
    name = case["sampler"].removesuffix("Scheduler") + "Scheduler"
    return tabulate(getattr(diffusers, name)(**options), n, grid=grid, step=step)


def on_these_nodes(run: Run) -> Plan | None:
    """The plan of diffusers' class for a method of diff-sampler, which diffusers has on VP paths.

    Its DPM-Solver lowers the last orders with fewer than 15 steps alone, diff-sampler's always.
    """
    o, name = run.case["options"], "DPMSolverMultistepScheduler"
    options = {"solver_order": o["max_order"], "lower_order_final": o["lower_order_final"]}
    if run.case["sampler"] == "unipc":
        options |= {"solver_type": o["variant"], "predict_x0": o["predict_x0"]}
        name = "UniPCMultistepScheduler"
    elif o["predict_x0"] or (run.case["n_steps"] >= 15 and o["max_order"] > 1):
        return None
    else:
        options |= {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    a = 1 / (1 + run.fields["nodes_sigma"] ** 2)
    schedule = Schedule(a[-2::-1].copy(), "levels", float(a[-1]))
    return borrowed(schedule, range(schedule.T - 1, -1, -1), name, **options)


# --- the comparison -------------------------------------------------------------------------


class Replay:
    """Denoiser and noise of a recorded run, in the order in which a plan asks for them."""

    def __init__(self, run: Run, plan: Plan, units: np.ndarray):
        self.run, self.plan, self.calls = run, plan, []
        self.levels = list(zip(plan.alpha[plan.calls], plan.sigma[plan.calls], strict=True))
        self.x_T = run.fields["xs"][0] * units[0] / plan.start
        self.limit = None
        if run.case["options"].get("dynamic_thresholding"):
            self.limit = DynamicThreshold(largest=np.inf)
        # The originals draw a z where they use it, or at every step, restarts included.
        noise, k, self.z = run.fields.get("noise", ()), 0, {}
        always, ups = len(noise) != np.count_nonzero(plan.noise), plan.name.startswith("restart")
        for row in plan.rows():
            if row.noise:
                self.z[row.t, row.visit] = noise[k]
            k += (row.s < row.t or (ups and row.s > row.t)) if always else bool(row.noise)

    def start(self):
        return torch.from_numpy(self.x_T)

    def at(self, t, s, visit=0):
        return torch.from_numpy(self.z[t, visit])

    def denoiser(self, x, t):
        level = self.levels[len(self.calls)]
        self.calls.append(x.numpy())
        x0 = torch.from_numpy(self.run.x0(x.numpy(), *level))
        return x0 if self.limit is None else self.limit(x0), None


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The worst difference, relative to the largest number (at least 1)."""
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


def difference(run: Run, plan: Plan) -> float:
    """The worst `relative` difference of all states and of all that the network sees.

    Raises AssertionError where the calls are others in number or level.
    """
    f = run.fields
    alpha, sigma = plan.alpha[plan.calls], plan.sigma[plan.calls]
    assert len(alpha) == len(f["calls_alpha"]), "another number of calls"
    np.testing.assert_allclose(
        sigma * f["calls_alpha"], alpha * f["calls_sigma"], rtol=1e-10, atol=1e-12
    )
    # A plan's x is what the network sees.
    units = np.divide(alpha, f["calls_alpha"], out=np.ones(len(alpha)), where=alpha != 0)
    replay = Replay(run, plan, units)
    states = recorded_states(run, plan, list(iterate(replay.denoiser, plan, replay)))
    pairs = [(states[-1] / end_unit(run), f["xs"][-1])]
    if run.case["sampler"] != "unipc":  # whose states are corrected by a call: the calls tell
        between = units[1:] if len(units) == len(states) else np.ones(len(states) - 1)
        pairs += zip(
            [x / u for x, u in zip(states, between, strict=False)], f["xs"][1:-1], strict=True
        )
    if "calls_x" in f:
        seen = zip(replay.calls, units, strict=True)
        pairs += zip([x / u for x, u in seen], f["calls_x"], strict=True)
    return max(relative(a, b) for a, b in pairs)


def recorded_states(run: Run, plan: Plan, states: list[State]) -> list[np.ndarray]:
    """Those x that the original has recorded, too."""
    if run.case["source"] == "diffusers" or not plan.name.startswith(("churn", "restart")):
        return [state.x.numpy() for state in states]
    # No state before Heun's correction, nor k-diffusion's between churn and its jump.
    corrected = [len(after.row.eps) > 1 for after in states[1:]] + [False]
    churned = plan.name.startswith("churn")
    return [
        state.x.numpy()
        for state, unfinished in zip(states, corrected, strict=True)
        if not (unfinished or (churned and state.row.s > state.row.t))
    ]


def end_unit(run: Run) -> float:
    """Of the last state: only what diffusers has on VP paths has other units than the original."""
    if run.case["sampler"] in ("unipc", "dpm_pp") and why_no_builder(run):
        return (1 + run.fields["nodes_sigma"][-1] ** 2) ** -0.5
    return 1.0


# --- the command ----------------------------------------------------------------------------


class Counts:
    """Of the runs of one sampler."""

    def __init__(self) -> None:
        self.runs = 0
        self.equal: dict[str, int] = defaultdict(int)
        self.worst: dict[str, float] = defaultdict(float)
        self.others: list[str] = []
        self.not_ours: dict[str, int] = defaultdict(int)

    def add(self, run: Run) -> None:
        self.runs += 1
        found = 0
        reason = why_no_builder(run)
        if not reason:
            found += self._compare("builder", run, lambda: built(run))
        if run.case["source"] == "diffusers":
            found += self._compare("tabulate", run, lambda: tabulated(run.case))
        elif run.case["sampler"] in ("unipc", "dpm_pp") and (plan := on_these_nodes(run)):
            found += self._compare("borrowed", run, lambda: plan)
        if not found:
            self.not_ours[reason] += 1

    def _compare(self, how: str, run: Run, plan: Any) -> bool:
        try:
            error = difference(run, plan())
        except (AssertionError, ValueError) as wrong:
            self.others.append(f"{how} {run.case['id']}: {str(wrong).strip().splitlines()[0]}")
            return True
        self.worst[how] = max(self.worst[how], error)
        if error <= TOLERANCE:
            self.equal[how] += 1
        else:
            self.others.append(f"{how} {run.case['id']}: {error:.1e}")
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / "denoiser.json").is_file():
        print(
            f"error: no recorded runs in {folder}: give the folder that holds them", file=sys.stderr
        )
        sys.exit(2)
    table: dict[tuple[str, str], Counts] = defaultdict(Counts)
    for run in read(folder):
        table[run.case["source"], run.case["sampler"]].add(run)
    for (source, sampler), counts in table.items():
        parts = [f"{how} {n} ({counts.worst[how]:.0e})" for how, n in counts.equal.items()]
        parts += [f"not ours {n}: {why}" for why, n in counts.not_ours.items()]
        print(f"{source} {sampler}, {counts.runs} runs: {'; '.join(parts)}")
        for line in counts.others:
            print(f"    DIFFERS {line}")
    total = sum(counts.runs for counts in table.values())
    ours = total - sum(sum(counts.not_ours.values()) for counts in table.values())
    differ = sum(len(counts.others) for counts in table.values())
    print(f"{total} runs, {ours} of samplers that we have; {differ} comparisons differ")
    sys.exit(int(differ > 0))


if __name__ == "__main__":
    main()
