"""The mathematics of sampling; needs NumPy and torch alone, and is the wheel `skipped_step`.

schedule.py    the path x_t = alpha x0 + sigma eps: diffusion, EDM's, flow matching
timesteps.py   which of them a sampler visits
plan.py        samplers as tables of numbers; splices; to JSON and back
builders.py    Skipped-Step, DDIM, DDPM, DPM-Solver++, Mix and Mix++ as plans
mixstar.py     Mix*: a share of noise for every noise level
multistep.py   iPNDM, DEIS, ER-SDE
detours.py     Restart and EDM's churn, with Heun's method
samplers.py    plans by name
denoise.py     what a network says -> the clean image x0
run.py         the loop that computes x_s (`advance`), and the tree of many plans
noise.py       the noise and label of sample i, functions of (seed, i) alone
brownian.py    noise that is coupled over step counts
gaussian.py    what a plan does to Gaussian data, in closed form
tabulate.py    any linear scheduler of diffusers as a plan
borrowed.py    UniPC, DEIS, SA-Solver, Heun, ... as diffusers has them, at our timesteps
inherit.py     what another scheduler's config says: honoured, or refused
levels.py      the timesteps of betas that a scheduler of ours visits
flow.py        the noise levels of flow matching, as diffusers' own classes place them
output.py      what a scheduler's step returns
schedulers.py  Skipped-Step, Mix, Mix++ and any plan for diffusers pipelines: `plan_scheduler.py` is the
               last of them, `stepping.py` what they share
options.py     misspelt names and options
"""

from .brownian import BrownianNoise
from .builders import ddim, ddpm, dpmpp, mix, mixpp, naive_stride, sde_dpmpp, skipped
from .denoise import Denoised, Denoiser, Gradient
from .detours import churn, restart
from .mixstar import mixstar
from .multistep import deis, er_sde, ipndm
from .noise import SampleNoise, sample_labels
from .plan import Plan, Row, scale_eps, splice
from .run import Noise, State, Tree, count_calls, iterate, run, run_tree
from .samplers import SAMPLERS, named
from .schedule import Schedule, flow_shift, karras_sigmas
from .tabulate import tabulate
from .timesteps import SPACINGS, timesteps

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "BrownianNoise",
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
    "churn",
    "count_calls",
    "ddim",
    "ddpm",
    "deis",
    "dpmpp",
    "er_sde",
    "flow_shift",
    "ipndm",
    "iterate",
    "karras_sigmas",
    "mix",
    "mixpp",
    "mixstar",
    "naive_stride",
    "named",
    "restart",
    "run",
    "run_tree",
    "sample_labels",
    "scale_eps",
    "sde_dpmpp",
    "skipped",
    "splice",
    "tabulate",
    "timesteps",
]
