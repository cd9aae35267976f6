"""The mathematics of sampling; needs NumPy and torch alone, and is the wheel `skipped_step`.

schedule.py    alpha_bar of the network's timesteps
timesteps.py   which of them a sampler visits
plan.py        samplers as tables of numbers, one row a network call
denoise.py     what a network says -> the clean image x0
run.py         the loop that computes x_s (`advance`), and the tree of many plans
noise.py       the noise and label of sample i, functions of (seed, i) alone
gaussian.py    what a plan does to Gaussian data, in closed form
adapters.py    diffusers' schedulers that are no plans, run beside them
schedulers.py  Skipped-Step and Mix for diffusers pipelines
options.py     misspelt names and options
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
