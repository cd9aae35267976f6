"""Options that only our schedulers have, and arguments as a user may misstate them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import bound
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from sampling import SampleNoise, Schedule, mix, mixpp, run, scale_eps, skipped, timesteps
from sampling.denoise import Clip, NetworkDenoiser, Reading
from sampling.schedulers import MixPlusPlusScheduler, MixScheduler, SkippedStepScheduler

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
ALL = pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler, MixPlusPlusScheduler])
SHAPE = (2, 3, 4, 4)
WAN = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SOURCES = [
    DDIMScheduler(),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    UniPCMultistepScheduler(**WAN),
]


def network(x, t, condition=None):
    return torch.tanh(0.8 * x + 0.3 * np.cos(float(t) / 90)) + 0.2 * torch.sin(2 * x)


def denoiser(schedule, reading):
    return NetworkDenoiser(lambda x, t, c: (network(x, t), None), schedule, reading)


def sampled(scheduler, steps=12):
    noise = scheduler.noise = SampleNoise(7, [3, 5], SHAPE[1:])
    scheduler.set_timesteps(steps)
    x = noise.start()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


# --- eps_scale ------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("scale", [1.01, (2e-5, 1.004)])
def test_eps_scale_is_that_of_the_loop(cls, clip, scale, tmp_path):
    schedule, grid = Schedule.linear(), timesteps(1000, 12, "even")
    plan = {
        SkippedStepScheduler: skipped(schedule, grid),
        MixScheduler: mix(schedule, grid, cutoff=291),
        MixPlusPlusScheduler: mixpp(schedule, grid, lo=291),
    }[cls]
    k, b = scale if isinstance(scale, tuple) else (0, scale)
    reading, noise = Reading(limit=Clip() if clip else None), SampleNoise(7, [3, 5], SHAPE[1:])
    want = run(denoiser(schedule, reading), scale_eps(plan, k, b, limited=True), noise)
    ours = cls(clip_sample=clip, eps_scale=scale)
    assert torch.equal(sampled(ours), want)
    assert not torch.equal(sampled(cls(clip_sample=clip)), want)
    if not clip:  # as a rewrite of the coefficients
        again = run(bound(denoiser_output, schedule), scale_eps(plan, k, b), noise)
        torch.testing.assert_close(want, again, rtol=1e-4, atol=1e-4)
    assert "eps_scale" in str(ours.plan)
    ours.save_pretrained(tmp_path)
    for other in (cls.from_pretrained(tmp_path), cls.from_config(ours.config)):
        assert torch.equal(sampled(other), want)
    # Over another scheduler's config and back; stated over it; and taken away again.
    back = cls.from_config(DDIMScheduler.from_config(ours.config).config)
    assert back.config.eps_scale == ours.config.eps_scale
    stated = cls.from_config(DDIMScheduler().config, eps_scale=scale)
    assert stated.config.eps_scale == ours.config.eps_scale
    assert cls.from_config(ours.config, eps_scale=None).config.eps_scale is None


def denoiser_output(x, t, condition):
    return network(x, t), None


@ALL
def test_an_eps_scale_of_one_is_none(cls):
    want = sampled(cls())
    for none in (None, 1, 1.0, (0, 1), [0.0, 1.0]):
        assert torch.equal(sampled(cls(eps_scale=none)), want)


@ALL
def test_eps_scale_is_in_the_posterior(cls):
    ours = cls(eps_scale=1.05)
    x = sampled(ours)
    t = ours.timesteps[0]
    mean, std = ours.posterior(network(x, t), t, x)
    z = torch.zeros_like(x)
    torch.testing.assert_close(
        mean, ours.step(network(x, t), t, x, variance_noise=z).prev_sample, rtol=1e-5, atol=1e-5
    )
    assert std == ours.plan.noise[0]


@ALL
@pytest.mark.parametrize("bad", ["x", True, [1], [1, 2, 3], 0, -1, float("nan"), [-0.01, 1], "ab"])
def test_what_is_no_eps_scale_is_refused_early(cls, bad):
    with pytest.raises(ValueError, match=r"eps_scale must be") as error:
        cls(eps_scale=bad)
    assert "\n" not in str(error.value)


@ALL
def test_eps_scale_needs_an_eps(cls):
    """Flow matching and zero terminal SNR begin without a signal: eps says nothing there."""
    for source in SOURCES[1:]:
        with pytest.raises(ValueError, match="flow matching has not: leave it out"):
            cls.from_config(source.config, eps_scale=1.01)
    options = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    with pytest.raises(ValueError, match="eps_scale needs a schedule that keeps some signal"):
        cls.from_config(DDIMScheduler(**options).config, eps_scale=1.01)


# --- arguments ------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_a_grid_that_is_no_list_of_numbers_is_one_line(cls, source):
    ours = cls.from_config(source.config)
    ours.set_timesteps(5)
    for bad in ([], [[1.0, 0.5]], ["a", 0.5], [None, 0.5], "1", 0.5, torch.ones(2, 2), [[1], 2]):
        with pytest.raises(ValueError, match="sigmas must be a list of at least one num") as error:
            ours.set_timesteps(sigmas=bad)
        assert "\n" not in str(error.value)
    for bad in (2.5, "5", 0, -1, [5], np.array([1.5])):
        with pytest.raises(ValueError, match="must be") as error:
            ours.set_timesteps(bad)
        assert "\n" not in str(error.value)
    assert len(ours.plan) == 5


@ALL
@pytest.mark.parametrize("source", SOURCES[:2], ids=lambda s: type(s).__name__)
def test_sigmas_in_any_form(cls, source):
    """bfloat16 has no NumPy: the numbers that it holds are meant."""
    ours = cls.from_config(source.config)
    values = [1.0, 0.75, 0.5, 0.25]  # the same in every precision
    seen = []
    for form in (values, tuple(values), np.array(values), np.float16(values)):
        ours.set_timesteps(sigmas=form)
        seen.append(ours.timesteps.tolist())
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        ours.set_timesteps(sigmas=torch.tensor(values, dtype=dtype))
        seen.append(ours.timesteps.tolist())
    assert all(one == seen[0] for one in seen)


@ALL
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_one_timestep_is_for_the_whole_batch(cls, source):
    ours, x = cls.from_config(source.config), torch.ones(2, 3, 4, 4)
    ours.set_timesteps(5)
    with pytest.raises(ValueError, match="one timestep for the whole batch, got 2"):
        ours.step(x, ours.timesteps[0].repeat(2), x)


@ALL
def test_a_shift_is_set_where_there_is_one(cls):
    for source in (SOURCES[0], SOURCES[2]):
        ours = cls.from_config(source.config)
        assert not hasattr(ours, "shift")
        with pytest.raises(ValueError, match="only FlowMatchEuler's levels have a static shift"):
            ours.set_shift(5.0)


@ALL
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_generators_are_one_or_one_each(cls, source):
    ours, x = cls.from_config(source.config), torch.ones(3, 3, 4, 4)

    def stepped(x, *seeds):
        ours.set_timesteps(5)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return ours.step(x, ours.timesteps[0], x, generator=generators).prev_sample

    # A sample's noise is its own generator's, whatever the batch.
    assert torch.equal(stepped(x, 1, 2, 3)[1:2], stepped(x[:1], 2))
    one = stepped(x, 1)
    assert not torch.equal(one[0], one[1])
    for seeds in ((1, 2), (1, 2, 3, 4)):
        with pytest.raises(ValueError, match=f"{len(seeds)} generators for 3 samples: give one,"):
            stepped(x, *seeds)
