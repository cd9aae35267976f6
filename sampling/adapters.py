"""Rivals that are no tables: diffusers' own schedulers, run as they are on our grids and noise.

UniPC, DEIS, SA-Solver and Heun's method keep more of their past than a row of a `Plan` can say.
An `Adapted` drives the scheduler of diffusers with the network, clipping, guidance and per-sample
noise that plans get, and stands beside them in `run_tree`.
"""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .denoise import Denoised, Denoiser
from .options import check_choice, check_options
from .plan import SAMPLERS, Plan, Timesteps, named
from .run import Noise
from .schedule import Schedule

# diffusers' class, and the options of its constructor that a config may set.
ADAPTED: dict[str, tuple[str, tuple[str, ...]]] = {
    "unipc": ("UniPCMultistepScheduler", ("solver_order", "solver_type", "lower_order_final")),
    "deis": ("DEISMultistepScheduler", ("solver_order", "lower_order_final")),
    "sa_solver": ("SASolverScheduler", ("predictor_order", "corrector_order", "lower_order_final")),
    "heun": ("HeunDiscreteScheduler", ()),
}
# These two work with log sigma and cannot step to 0: they end a quarter of a grey level before.
END_SIGMA = {"deis": 1e-3, "sa_solver": 1e-3}


@dataclass(frozen=True, eq=False)
class Adapted:
    """A diffusers scheduler on a grid `t` int64 [nodes] of a schedule; `len` is its NFE."""

    sampler: str
    schedule: Schedule
    t: NDArray[np.int64]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.sampler}({options})"

    def __len__(self) -> int:
        """Network calls: Heun's method makes two a jump but the last, which ends at no noise."""
        return 2 * len(self.t) - 1 if self.sampler == "heun" else len(self.t)

    def __str__(self) -> str:
        nodes = " ".join(map(str, self.t.tolist()))
        return f"{self.name}, {len(self)} network calls, diffusers' {ADAPTED[self.sampler][0]}\n{nodes}"

    def run(self, denoiser: Denoiser, noise: Noise) -> Tensor:
        """Samples [B, ...]; the scheduler is given the noise that goes with the denoiser's x0."""
        scheduler = self._scheduler()
        x = noise.start()
        x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            a = self.schedule.abar(int(t))
            x0, _, gradient = Denoised(*denoiser(scaled, float(t)))
            if gradient is not None:  # as in DDIM: it shifts eps
                x0 = x0 + (1 - a) / a**0.5 * gradient
            eps = (scaled - a**0.5 * x0) / (1 - a) ** 0.5
            with patch(
                "diffusers.schedulers.scheduling_sasolver.randn_tensor",
                lambda *_, t=t, **__: noise.at(float(t)),
            ):
                x = scheduler.step(eps, t, x, return_dict=False)[0]
        return x

    def _scheduler(self) -> Any:
        """The scheduler with our grid and float64 noise levels in the place of its own."""
        import diffusers

        a = self.schedule.alpha_bar
        betas = 1 - a / np.append(1.0, a[:-1])
        scheduler = getattr(diffusers, ADAPTED[self.sampler][0])(
            num_train_timesteps=self.schedule.T, trained_betas=betas.tolist(), **self.options
        )
        end = np.sqrt((1 - self.schedule.final) / self.schedule.final)
        end = max(end, END_SIGMA.get(self.sampler, 0.0))
        sigmas = np.append(self.schedule.sigma[self.t], end)
        nodes = self.t
        scheduler.set_timesteps(len(nodes))
        if self.sampler == "heun":
            sigmas = np.concatenate([sigmas[:1], np.repeat(sigmas[1:-1], 2), sigmas[-1:]])
            nodes = np.concatenate([nodes[:1], np.repeat(nodes[1:], 2)])
        scheduler.sigmas = torch.from_numpy(sigmas)
        scheduler.timesteps = torch.from_numpy(nodes)
        scheduler.num_inference_steps = len(self.t)
        scheduler.set_begin_index(0)
        return scheduler


Sampler = Plan | Adapted


def sampler_named(
    name: str, schedule: Schedule, timesteps: Timesteps, **options: Any
) -> Plan | Adapted:
    """The plan, or the rival, of that name, as configs and records store it.

    Raises ValueError for an unknown name or option, listing the known ones.
    """
    if name not in ADAPTED:
        check_choice("sampler", name, [*SAMPLERS, *ADAPTED])
        return named(name, schedule, timesteps, **options)
    check_options(f"sampler {name}", options, ADAPTED[name][1])
    if not np.isfinite(schedule.sigma).all():
        raise ValueError(f"sampler {name} needs a schedule that keeps some signal everywhere")
    return Adapted(name, schedule, np.asarray(timesteps, dtype=np.int64), options)


def num_nodes(name: str, steps: int | None) -> int | None:
    """How many timesteps a sampler visits with so many network calls: Heun about half as many."""
    return (steps + 1) // 2 if name == "heun" and steps is not None else steps
