"""Every sampler that is a plan, by the name that configs and records give it."""

import inspect
from collections.abc import Callable
from typing import Any

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
from .multistep import deis, er_sde, ipndm
from .options import check_choice, check_options
from .plan import Plan
from .schedule import Schedule

SAMPLERS: dict[str, Callable[..., Plan]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "skipped": skipped,
    "mix": mix,
    "dpmpp": dpmpp,
    "sde_dpmpp": sde_dpmpp,
    "mixpp": mixpp,
    "ipndm": ipndm,
    "deis_ab": deis,  # `deis` is diffusers'
    "er_sde": er_sde,
    "churn": churn,
    "restart": restart,
    "naive_stride": naive_stride,
}


def named(name: str, schedule: Schedule, timesteps: Timesteps, **options: Any) -> Plan:
    """The plan of that name with the builder's options, as configs and records store them.

    Raises ValueError for an unknown name or option, listing the known ones.
    """
    check_choice("sampler", name, SAMPLERS)
    builder = SAMPLERS[name]
    check_options(f"sampler {name}", options, list(inspect.signature(builder).parameters)[2:])
    return builder(schedule, timesteps, **options)
