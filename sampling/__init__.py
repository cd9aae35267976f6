"""The mathematics of sampling: schedules, grids, plans, and the loop that runs them.

Depends on numpy and torch alone.
"""

from .denoise import Denoised, Denoiser, Gradient
from .noise import SampleNoise, sample_labels
from .plan import (
    SAMPLERS,
    Plan,
    Row,
    ddim,
    ddpm,
    dpmpp,
    mix,
    mixpp,
    naive_stride,
    named,
    sde_dpmpp,
    skipped,
    splice,
)
from .run import Noise, State, Tree, count_calls, iterate, run, run_tree
from .schedule import Schedule
from .timesteps import SPACINGS, timesteps

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "Denoised",
    "Denoiser",
    "Gradient",
    "Noise",
    "Plan",
    "Row",
    "SampleNoise",
    "Schedule",
    "State",
    "Tree",
    "count_calls",
    "ddim",
    "ddpm",
    "dpmpp",
    "iterate",
    "mix",
    "mixpp",
    "naive_stride",
    "named",
    "run",
    "run_tree",
    "sample_labels",
    "sde_dpmpp",
    "skipped",
    "splice",
    "timesteps",
]
