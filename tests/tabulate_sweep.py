"""diffusers' schedulers stepped in float64 beside their plans, for every number of steps.

    OMP_NUM_THREADS=1 python tests/tabulate_sweep.py                        # N = 2..100, all classes
    OMP_NUM_THREADS=1 python tests/tabulate_sweep.py --steps 5 50 --only UniPC

Each class, with the options that change its update, is stepped by a random network that sees the
scheduler's own states, and its plan is run with the same network and noise.  Printed are the worst
difference, relative to the largest number of the result, and the N at which the scheduler itself is
not finite or fails, which `tabulate` must refuse.  The exit status is 1 where a plan is another one.

`sampling/test_tabulate.py` does this for a few N.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sampling import Plan, Schedule, run, timesteps
from sampling.borrowed import BORROWED, num_nodes, placed, sampler_named
from sampling.denoise import implied_x0
from sampling.schedule import Level
from sampling.tabulate import OUTPUTS, double_precision, tabulate

TOLERANCE = 1e-10
SHAPE = (3, 5)


class Case(NamedTuple):
    """A class of diffusers, options of its constructor, of `set_timesteps` and of `step`."""

    scheduler: str
    options: Mapping[str, Any] = {}
    grid: Mapping[str, Any] = {}
    step: Mapping[str, Any] = {}
    ours: str = ""  # the name of a sampler: on our timesteps

    def __str__(self) -> str:
        more = {**self.options, **self.grid, **self.step}
        said = ", ".join(f"{k}={'...' if callable(v) else v}" for k, v in more.items())
        name = {"": self.scheduler, "diffusers": f"diffusers {self.scheduler}"}.get(self.ours)
        return f"{'sampler=' * bool(self.ours)}{name or self.ours}({said})"


FREE = {"clip_sample": False}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
KARRAS = {"use_karras_sigmas": True}
DPM = "DPMSolverMultistepScheduler"
CHURN = {"s_churn": 0.3, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
CASES = [
    Case("DDIMScheduler", FREE),
    Case("DDIMScheduler", {**FREE, "timestep_spacing": "trailing"}, step={"eta": 0.5}),
    Case("DDIMScheduler", {**FREE, "prediction_type": "v_prediction", "set_alpha_to_one": False}),
    Case("DDIMParallelScheduler", FREE),
    Case("DDPMScheduler", FREE),
    Case("DDPMScheduler", {**FREE, "variance_type": "fixed_large", "prediction_type": "sample"}),
    Case("DDPMParallelScheduler", FREE),
    Case("CogVideoXDDIMScheduler"),
    *(Case("DEISMultistepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    Case("DEISMultistepScheduler", KARRAS),
    Case("DEISMultistepScheduler", FLOW),
    *(Case(DPM, {"solver_order": k}) for k in (1, 2, 3)),
    *(Case(DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": k}) for k in (1, 2, 3)),
    Case(DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    Case(DPM, {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}),
    Case(DPM, {"solver_type": "heun", **KARRAS}),
    Case(DPM, {"use_lu_lambdas": True}),
    Case(DPM, FLOW),
    *(Case("DPMSolverSinglestepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    *(Case("EDMDPMSolverMultistepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    Case("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    Case("EDMEulerScheduler"),
    Case("EDMEulerScheduler", step=CHURN),
    Case("EulerAncestralDiscreteScheduler"),
    Case("EulerDiscreteScheduler", KARRAS),
    Case("EulerDiscreteScheduler", step=CHURN),
    Case("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    Case("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"mu": 1.15}),
    Case("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    Case("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    Case("FlowMatchLCMScheduler"),
    Case("HeunDiscreteScheduler"),
    Case("HeunDiscreteScheduler", KARRAS),
    Case("IPNDMScheduler"),
    Case("KDPM2DiscreteScheduler"),
    Case("KDPM2AncestralDiscreteScheduler"),
    Case("LMSDiscreteScheduler"),
    Case("PNDMScheduler"),
    Case("PNDMScheduler", {"skip_prk_steps": True}),
    Case("SASolverScheduler"),
    Case("SASolverScheduler", {"tau_func": lambda t: 0, "predictor_order": 3}),
    Case("SASolverScheduler", FLOW),
    Case("UnCLIPScheduler", FREE),
    *(Case("UniPCMultistepScheduler", {"solver_order": k}) for k in (1, 2, 3)),
    *(Case("UniPCMultistepScheduler", {"solver_order": k, "solver_type": "bh1"}) for k in (1, 2)),
    Case("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    Case("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    Case("UniPCMultistepScheduler", FLOW),
    *(Case(BORROWED[name].scheduler, BORROWED[name].fixed, ours=name) for name in BORROWED),
    *(
        Case(f"{name}Scheduler", ours="diffusers")
        for name in (
            *("DDIM", "DDPM", "DPMSolverMultistep", "DPMSolverSinglestep", "EulerDiscrete"),
            *("EulerAncestralDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
        )
    ),
    Case(DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, ours="diffusers"),
]
LINEAR = Schedule.linear()


# --- both sides -----------------------------------------------------------------------------


@contextlib.contextmanager
def double() -> Iterator[None]:
    """diffusers rounds to float32: here its float32 is float64, by another way than tabulate's."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch, "float32", torch.float64), patch.object(np, "float32", np.float64):
            yield
    finally:
        torch.set_default_dtype(default)


class Network:
    """Two random layers in float64, other ones for each seed; t turns the phase between them."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        size = SHAPE[-1]
        self.first = torch.from_numpy(rng.normal(0, 0.8 / size**0.5, (size, 16)))
        self.second = torch.from_numpy(rng.normal(0, 0.25, (16, size)))
        self.phase = torch.from_numpy(rng.uniform(0, 6.3, 16))

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return torch.sin(x @ self.first + self.phase + t / 400) @ self.second


class Draws:
    """Noise in float64 by its number; -1 is the start."""

    def __init__(self, seed: int):
        self.seed, self.k = seed, -1

    def z(self, k: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng([self.seed, k + 1]).normal(size=SHAPE))

    def start(self) -> Tensor:
        return self.z(-1)

    def at(self, t: float, s: float, visit: int = 0) -> Tensor:
        return self.z(self.k)


class Drawn(TorchFunctionMode):
    """What a scheduler draws itself is the noise of the call that it is at."""

    def __init__(self, draws: Draws):
        super().__init__()
        self.draws = draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.randn, torch.randn_like):
            return self.draws.z(self.draws.k)
        return func(*args, **(kwargs or {}))


def stepped(
    scheduler: Any, step: Mapping[str, Any], network: Network, times: list[float]
) -> Tensor:
    """Where the scheduler goes by itself; the network is told `times`."""
    draws = Draws(7)
    x = draws.start() * float(getattr(scheduler, "init_noise_sigma", 1.0))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for draws.k, (t, told) in enumerate(zip(scheduler.timesteps, times, strict=True)):
        edm = hasattr(scheduler, "precondition_outputs")  # whose network scales its input itself
        scales = hasattr(scheduler, "scale_model_input") and not edm
        seen = scheduler.scale_model_input(x, t) if scales else x
        with Drawn(draws):
            x = scheduler.step(network(seen, told), t, x, return_dict=False, **step)[0]
    return x


def of_plan(plan: Plan, scheduler: Any, network: Network) -> Tensor:
    """Where its plan goes."""
    draws, levels = Draws(7), [*zip(plan.alpha, plan.sigma, strict=True)]
    kind = OUTPUTS.get(type(scheduler).__name__) or scheduler.config.get("prediction_type")

    def denoiser(x: Tensor, t: float) -> tuple[Tensor, None]:
        draws.k += 1
        level, output = Level(*levels[draws.k]), network(x, t)
        if hasattr(scheduler, "precondition_outputs"):
            sigma = torch.tensor(level.sigma, dtype=torch.float64)
            return scheduler.precondition_outputs(x, output, sigma), None
        return implied_x0(output, x, level, kind), None

    return run(denoiser, plan, draws)


def both(case: Case, n: int) -> tuple[Plan | str, Any, Tensor | str]:
    """The plan for `n` steps, a scheduler and its result; in words where one of them fails."""
    cls, network = getattr(diffusers, case.scheduler), Network(n)
    plan: Plan | str
    if case.ours:
        given = {} if case.ours in BORROWED else {"scheduler": case.scheduler, **case.options}
        nodes = num_nodes({"name": case.ours, **given}, n)
        grid = timesteps(LINEAR, nodes, "even")
        try:
            plan = sampler_named(case.ours, LINEAR, grid, **given)
        except ValueError as error:
            plan = str(error)
        with double_precision(cls):
            scheduler = placed(LINEAR, grid, cls, case.options)
            times = plan.t.tolist() if isinstance(plan, Plan) else [0.0] * len(scheduler.timesteps)
            return plan, scheduler, stepped(scheduler, case.step, network, times)
    try:
        plan = tabulate(cls(**case.options), n, grid=case.grid, step=case.step)
    except ValueError as error:
        plan = str(error)
    with double():
        try:
            scheduler = cls(**case.options)
            scheduler.set_timesteps(n, **case.grid)
            times = scheduler.timesteps.tolist()
            if isinstance(plan, Plan):
                times = plan.t.tolist()
            return plan, scheduler, stepped(scheduler, case.step, network, times)
        except (ValueError, IndexError, RuntimeError) as error:
            return plan, None, str(error) or type(error).__name__


def difference(case: Case, n: int) -> float | str:
    """Of the two results, relative to the largest number; in words where the scheduler fails.

    Raises AssertionError where it does and `tabulate` does not refuse it, or the other way round.
    """
    plan, scheduler, theirs = both(case, n)
    if isinstance(theirs, str) or not torch.isfinite(theirs).all():
        assert isinstance(plan, str), f"{case} fails at {n} steps, but has a plan"
        return "not finite" if not isinstance(theirs, str) else theirs.splitlines()[0]
    if scheduler.timesteps[-1] < 0 and not hasattr(scheduler, "precondition_outputs"):
        assert isinstance(plan, str), (
            f"{case} goes on below timestep 0 at {n} steps, but has a plan"
        )
        return "goes on to timestep -1"
    assert isinstance(plan, Plan), f"{case} at {n} steps: {plan}"
    ours = of_plan(plan, scheduler, Network(n))
    return float((ours - theirs).abs().max() / theirs.abs().max())


# --- the command ----------------------------------------------------------------------------


def ranges(numbers: list[int]) -> str:
    """2-5, 9 for 2, 3, 4, 5, 9."""
    runs = [
        [k for _, k in group] for _, group in groupby(enumerate(numbers), lambda p: p[1] - p[0])
    ]
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def main() -> None:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command.add_argument("--steps", nargs="*", type=int, default=range(2, 101))
    command.add_argument("--only", default="", help="cases that contain this")
    args = command.parse_args()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    wrong = 0
    for case in [case for case in CASES if args.only in str(case) + case.scheduler]:
        begin, failures, errors = time.perf_counter(), {}, {}
        for n in args.steps:
            try:
                outcome = difference(case, n)
            except AssertionError as error:
                print(f"DIFFERS {error}", flush=True)
                wrong += 1
                continue
            (failures if isinstance(outcome, str) else errors)[n] = outcome
        wrong += sum(error > TOLERANCE for error in errors.values())
        line = f"{case}: {len(errors)} step counts equal"
        if errors:
            worst = max(errors, key=errors.get)
            line += f", worst {errors[worst]:.0e} at {worst}"
        for why in dict.fromkeys(failures.values()):
            line += f"; {why}: {ranges([n for n, w in failures.items() if w == why])}"
        print(f"{line} ({time.perf_counter() - begin:.0f} s)", flush=True)
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    main()
