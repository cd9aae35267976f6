"""diffusers' samplers on our schedules and grids, as plans.

A scheduler is made for a schedule that has the timesteps of our grid and no others.  "Every
timestep, one after the other" is then our grid, for every class alike, those too that compute
their previous timestep as t - T // n.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .builders import Timesteps
from .options import check_choice, kinds_of
from .plan import Plan
from .samplers import SAMPLERS, Unfit, builder_kinds, check_sampler, named
from .schedule import Schedule
from .tabulate import FAILURES, as_plan, double_precision, first_line, set_steps
from .timesteps import timesteps as timesteps_of

# These work with log sigma and cannot step to 0: they end a quarter of a grey level before.
END_SIGMA = {"DEISMultistepScheduler": 1e-3, "SASolverScheduler": 1e-3}

# What our schedule, grid, network and denoiser say in the place of a scheduler's options.
OURS = {
    *("num_train_timesteps", "trained_betas", "beta_schedule", "beta_start", "beta_end"),
    *("rescale_betas_zero_snr", "timestep_spacing", "steps_offset", "prediction_type"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"),
    *("use_flow_sigmas", "use_dynamic_shifting", "flow_shift", "time_shift_type"),
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio"),
    *("sample_max_value", "set_alpha_to_one", "snr_shift_scale"),
}
TWO_CALLS_A_JUMP = (
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)


def borrowed(
    schedule: Schedule,
    timesteps: Timesteps,
    scheduler: str,
    step: Mapping[str, Any] | None = None,
    **options: Any,
) -> Plan:
    """The plan of diffusers' class `scheduler` at our timesteps, with options of its constructor.

    `step` are further arguments of its `step`.  Raises ValueError for an unknown class or option,
    for a class that is made for another path than diffusion, and as `tabulate` does.
    """
    cls = _class(scheduler)
    grid = np.asarray(timesteps, dtype=np.int64)
    with double_precision(cls):
        theirs = placed(schedule, grid, cls, options)
        plan = as_plan(theirs, step or {})
    if hasattr(theirs, "sigmas") and not hasattr(theirs, "_sigma_to_alpha_sigma_t"):
        plan = _ending_in_our_units(plan, schedule.end.alpha)
    t = [schedule.time_at(level) for level in (plan.sigma / plan.alpha).tolist()]
    return replace(plan, t=np.array(t, dtype=np.float64), s=np.append(t[1:], -1.0))


def placed(
    schedule: Schedule, grid: NDArray[np.int64], cls: Any, options: Mapping[str, Any]
) -> Any:
    """A scheduler of diffusers' `cls` that is set to our timesteps, with options of its constructor.

    To be called within `double_precision`; raises ValueError as `borrowed`.
    """
    name, known = cls.__name__, kinds_of(cls)
    if "trained_betas" not in known or schedule.straight is not None:
        ways = (
            "ddim, skipped, mix, mixpp, dpmpp or sde_dpmpp"
            if schedule.straight
            else "a class of betas, as DPMSolverMultistepScheduler, or a sampler of our own"
        )
        raise Unfit(f"{name} cannot be put on the noise levels of {schedule.name}: choose {ways}")
    theirs_alone = {option: kind for option, kind in known.items() if option not in OURS}
    check_sampler(name, options, theirs_alone)
    if not np.isfinite(schedule.noise_level[grid]).all():
        raise Unfit(
            f"{name} needs a schedule that keeps some signal everywhere: choose a sampler of our own"
        )
    a = schedule.alpha_bar[grid[::-1]]
    ours = {
        "num_train_timesteps": len(grid),
        "trained_betas": (1 - a / np.append(1.0, a[:-1])).tolist(),
        "timestep_spacing": "trailing",
        "prediction_type": "epsilon",
        "clip_sample": False,
        "snr_shift_scale": 1.0,
    }
    try:
        theirs = cls(**{k: v for k, v in ours.items() if k in known}, **options)
    except FAILURES as error:
        raise ValueError(
            f"{name} does not take {dict(options)} at {len(grid)} timesteps ({first_line(error)}): "
            "take others, more steps, or another scheduler"
        ) from error
    set_steps(theirs, len(grid))
    _end_at(theirs, schedule.final)
    _name_timesteps(theirs, grid)
    return theirs


def _class(name: str) -> Any:
    import diffusers

    check_choice("scheduler", name, [n for n in dir(diffusers) if n.endswith("Scheduler")])
    cls = getattr(diffusers, name)
    if packages := getattr(cls, "_backends", None):  # a stand-in for a class that lacks one of them
        raise ValueError(
            f"{name} needs a package that is missing: pip install {' '.join(packages)}"
        )
    return cls


def _end_at(scheduler: Any, final: float) -> None:
    """Let the last step end at alpha_bar = `final`, as our schedule does."""
    if hasattr(scheduler, "sigmas"):
        end = max(((1 - final) / final) ** 0.5, END_SIGMA.get(type(scheduler).__name__, 0.0))
        scheduler.sigmas = torch.cat([scheduler.sigmas[:-1], torch.tensor([end])])
    for name in ("final_alpha_cumprod", "one"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, torch.tensor(final))


def _name_timesteps(scheduler: Any, grid: NDArray[np.int64]) -> None:
    """Call timesteps by our numbers where the scheduler has noise levels besides.

    SA-Solver is stochastic at some timesteps.
    """
    index = scheduler.timesteps.numpy()
    node = index.astype(np.int64)
    if hasattr(scheduler, "sigmas") and (index == node).all():
        scheduler.timesteps = torch.from_numpy(grid[::-1][node].astype(index.dtype))


def _ending_in_our_units(plan: Plan, alpha: float) -> Plan:
    """A plan whose last state is x0 + sigma eps, with alpha times that instead."""
    factor = np.append(np.ones(len(plan.t) - 1), alpha)
    return replace(
        plan,
        x=plan.x * factor,
        x0=plan.x0 * factor[:, None],
        eps=plan.eps * factor[:, None],
        noise=plan.noise * factor,
    )


@dataclass(frozen=True)
class Borrowed:
    """A sampler by its own name: diffusers' class, the options that a config may set, and more.

    `fixed` are options of the constructor; `step` names the options that go to `step`.
    """

    scheduler: str
    options: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    step: tuple[str, ...] = ()


BORROWED = {
    "unipc": Borrowed(
        "UniPCMultistepScheduler", ("solver_order", "solver_type", "lower_order_final")
    ),
    "deis": Borrowed("DEISMultistepScheduler", ("solver_order", "lower_order_final")),
    "sa_solver": Borrowed(
        "SASolverScheduler", ("predictor_order", "corrector_order", "lower_order_final")
    ),
    "heun": Borrowed("HeunDiscreteScheduler"),
    "pndm": Borrowed("PNDMScheduler", fixed={"skip_prk_steps": True}),
    "lms": Borrowed("LMSDiscreteScheduler", step=("order",)),
}


def sampler_named(name: str, schedule: Schedule, timesteps: Timesteps, **options: Any) -> Plan:
    """The plan of that name, ours or diffusers', as configs and records store it.

    `diffusers` takes the class as `scheduler`, and the options of that class.  Raises ValueError
    for an unknown name or option, listing the known ones.
    """
    check_sampler(name, options, sampler_kinds(name, options.get("scheduler")))
    if name == "diffusers":
        return borrowed(schedule, timesteps, **options)
    if name not in BORROWED:
        return named(name, schedule, timesteps, **options)
    theirs = BORROWED[name]
    for key, value in options.items():
        # Some classes take an order of 0, and then do nothing.
        if key.endswith("order") and value < (key != "corrector_order"):
            raise ValueError(f"sampler.{key} must be at least 1, got {value}")
    step = {key: value for key, value in options.items() if key in theirs.step}
    rest = {key: value for key, value in options.items() if key not in theirs.step}
    plan = borrowed(schedule, timesteps, theirs.scheduler, step, **theirs.fixed, **rest)
    given = ", ".join(f"{key}={value}" for key, value in options.items())
    return replace(plan, name=f"{name}({given})")


def sampler_kinds(name: str, scheduler: Any = None) -> dict[str, Any]:
    """Every option that `sampler_named` takes for a sampler, and what it may be.

    Those of `diffusers` are of the class `scheduler`.  Raises ValueError for an unknown name.
    """
    check_choice("sampler", name, [*SAMPLERS, *BORROWED, "diffusers"])
    if name in SAMPLERS:
        return builder_kinds(name)
    if name == "diffusers":
        if scheduler is None:
            raise ValueError("name a class: sampler.scheduler=DPMSolverSinglestepScheduler")
        kinds = kinds_of(_class(scheduler))
        known = {k: kind for k, kind in kinds.items() if k not in OURS}
        return {"scheduler": str, "step": Mapping[str, Any], **known}
    theirs = BORROWED[name]
    cls = _class(theirs.scheduler)
    kinds = kinds_of(cls) | kinds_of(cls.step)
    return {option: kinds[option] for option in (*theirs.options, *theirs.step)}


def sampler_at(
    name: str, schedule: Schedule, steps: int | None, spacing: Any = "even", **options: Any
) -> Plan:
    """`sampler_named` at as many timesteps of a spacing as at most `steps` network calls visit.

    Raises ValueError as that does, and for fewer calls than it takes.
    """

    def at(nodes: int | None) -> Plan:
        grid = timesteps_of(schedule, nodes, spacing)
        return sampler_named(name, schedule, grid, **options)

    nodes = num_nodes({"name": name, **options}, steps)
    plan = at(nodes)
    # Restart's detours take calls, PNDM's Runge-Kutta rows do, and Heun's method has one more where
    # the end is not clean.
    while steps is not None and len(plan) > steps:
        if nodes is None or nodes == 1:
            raise ValueError(
                f"{plan.name} takes {len(plan)} network calls at least: set steps={len(plan)} or more"
            )
        nodes -= 1
        plan = at(nodes)
    return plan


def num_nodes(sampler: Mapping[str, Any], steps: int | None) -> int | None:
    """How many timesteps a sampler (`name` and options) visits in at most so many network calls.

    Of Restart without its detours.
    """
    if type(steps) is not int or steps < 1:
        return steps  # which `timesteps` refuses, unless it is None
    name = sampler["name"]
    scheduler = BORROWED[name].scheduler if name in BORROWED else sampler.get("scheduler")
    heun = name in ("churn", "restart") and sampler.get("method", "heun") == "heun"
    if heun or scheduler in TWO_CALLS_A_JUMP:  # but the last
        return (steps + 1) // 2
    if scheduler == "PNDMScheduler":  # two calls in the first jump
        return max(1, steps - 1)
    return steps
