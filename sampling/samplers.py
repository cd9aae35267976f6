"""Every sampler that is a plan, by the name that configs and records give it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .builders import (
    Timesteps,
    ddim,
    ddpm,
    dpmpp,
    mix,
    mixpp,
    naive_stride,
    sde_dpmpp,
    skipped,
)
from .detours import churn, restart
from .mixstar import mixstar
from .multistep import deis, er_sde, ipndm
from .options import check_choice, check_options, check_types, kinds_of
from .plan import Plan
from .schedule import Schedule


class Unfit(ValueError):
    """A sampler that is not for this model, whatever its options."""


SAMPLERS: dict[str, Callable[..., Plan]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "skipped": skipped,
    "mix": mix,
    "dpmpp": dpmpp,
    "sde_dpmpp": sde_dpmpp,
    "mixpp": mixpp,
    "mixstar": mixstar,
    "ipndm": ipndm,
    "deis_ab": deis,  # `deis` is diffusers'
    "er_sde": er_sde,
    "churn": churn,
    "restart": restart,
    "naive_stride": naive_stride,
}


def named(name: str, schedule: Schedule, timesteps: Timesteps, **options: Any) -> Plan:
    """The plan of that name with the builder's options, as configs and records store them.

    Raises ValueError for an unknown name or option, listing the known ones, and for an option of
    another type than the builder's signature says.
    """
    check_sampler(name, options, builder_kinds(name))
    return SAMPLERS[name](schedule, timesteps, **options)


def builder_kinds(name: str) -> dict[str, Any]:
    """The options of a sampler that is a builder, and what each may be."""
    check_choice("sampler", name, SAMPLERS)
    return dict(list(kinds_of(SAMPLERS[name]).items())[2:])


def check_sampler(name: str, options: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise ValueError for options that a sampler does not have, or of another type than its own."""
    check_options(f"sampler {name}", options, kinds)
    check_types("sampler.", options, kinds)


def check_schedule(plan: Plan, schedule: Schedule) -> None:
    """Raise ValueError unless the noise levels of a plan, perhaps from a file, are those of a schedule."""
    last = np.inf if schedule.straight else schedule.T - 1
    for t, alpha, sigma in zip(plan.t.tolist(), plan.alpha, plan.sigma, strict=True):
        if t > last:
            raise ValueError(f"the plan begins at t = {t:g}, and the last timestep here is {last}")
        level = schedule.level(t)
        if not np.allclose(level, (alpha, sigma), rtol=1e-6, atol=1e-12):
            raise ValueError(
                f"the plan is of another noise schedule: at t = {t:g} alpha and sigma are "
                f"{alpha:.6g} and {sigma:.6g} there, {level.alpha:.6g} and {level.sigma:.6g} here"
            )
