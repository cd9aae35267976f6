"""Every sampler that has a name, ours and diffusers', on Gaussian data, where all is known exactly."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
from conftest import bound

from sampling import SAMPLERS, Schedule, run, scale_eps
from sampling.borrowed import BORROWED, sampler_at
from sampling.gaussian import gaussian_frechet, gaussian_output

# diffusers hands torch's tensors to NumPy in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

LINEAR = Schedule.linear()
MEAN, STD = np.array([0.3, -0.8, 0.5, 1.0]), np.array([0.2, 0.5, 1.0, 2.0])  # of a coordinate
SAMPLES = 40_000
OPTIONS = {  # where the builder's defaults are no sampler, or another's
    "mix": {"cutoff": 291},
    "ddim": {"eta": 0.5},
    "churn": {"s_churn": 80, "s_range": (0.05, 50), "s_noise": 1.003},
    "restart": {"restarts": [(3, 2, 0.06, 0.3)]},
}
WORKING = {  # classes of diffusers on our schedule and grids, by what they are called
    f"{name}Scheduler"
    for name in (
        *("CogVideoXDDIM", "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep"),
        *("DPMSolverMultistep", "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete"),
        *("HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete", "LMSDiscrete", "PNDM"),
        *("SASolver", "UniPCMultistep"),
    )
}
every_sampler = pytest.mark.parametrize("name", [*SAMPLERS, *BORROWED, "diffusers"])


def plan_of(name, steps):
    more = {"scheduler": "DPMSolverSinglestepScheduler"} if name == "diffusers" else {}
    return sampler_at(name, LINEAR, steps, **OPTIONS.get(name, more))


def exact(x, t, condition=None):
    """The network that a perfect training would find; a learned variance at its lower bound."""
    a = LINEAR.abar(t)
    mean, variance = torch.from_numpy(MEAN), torch.from_numpy(STD) ** 2
    eps = (1 - a) ** 0.5 * (x - a**0.5 * mean) / (a * variance + 1 - a)
    return eps, torch.full_like(x, -1.0)


@pytest.mark.parametrize(
    "scheduler", sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
)
def test_every_class_of_diffusers_is_a_plan_of_as_many_calls_or_refused_by_name(scheduler):
    steps, spacing = 30, "log_snr"
    if scheduler not in WORKING:
        with pytest.raises(ValueError, match=scheduler) as refusal:
            sampler_at("diffusers", LINEAR, steps, spacing, scheduler=scheduler)
        assert "\n" not in str(refusal.value)
        return
    plan = sampler_at("diffusers", LINEAR, steps, spacing, scheduler=scheduler)
    assert len(plan) in (steps, steps - 1)
    output = gaussian_output(plan, STD**2)
    assert np.allclose(np.sqrt(output.variance), STD, rtol=0.17)
    assert np.allclose(output.gain, 1, atol=0.02)


class Gaussian:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def start(self):
        return torch.randn(SAMPLES, 4, generator=self.generator, dtype=torch.float64)

    def at(self, t, s, visit=0):
        return self.start()


@every_sampler
@pytest.mark.parametrize("b", [1.0, 1.02])
def test_samples_have_the_moments_of_the_closed_form(name, b):
    """Within five standard errors; with eps scaled in the denoiser, too."""
    plan = plan_of(name, 12)
    plan = scale_eps(plan, 0.0, b, limited=True)
    output = gaussian_output(plan, STD**2)
    x = run(bound(exact), plan, Gaussian()).numpy()
    spread = np.sqrt(output.variance)
    assert (np.abs(x.mean(0) - output.gain * MEAN) <= 5 * spread / SAMPLES**0.5).all()
    assert (np.abs(x.std(0) / spread - 1) <= 5 / (2 * SAMPLES) ** 0.5).all()


@every_sampler
def test_samples_tend_to_the_data(name):
    """All but naive_stride (Remark 3)."""
    few, many = (gaussian_frechet(plan_of(name, n), STD**2, MEAN) for n in (20, 80))
    if name == "naive_stride":
        assert many > 2
    else:
        assert many < few / 1.8 and many < 0.02
