"""Our schedulers on models of flow matching: the levels of diffusers' classes, the steps of our plans."""

from __future__ import annotations

import copy
import json
import re
import warnings

import diffusers.schedulers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)

from sampling import (
    BrownianNoise,
    SampleNoise,
    Schedule,
    ddim,
    flow_shift,
    mix,
    mixpp,
    run,
    skipped,
    stepping,
    tabulate,
)
from sampling.denoise import NetworkDenoiser, Reading
from sampling.inherit import FLOW_SOURCES
from sampling.schedulers import MixPlusPlusScheduler, MixScheduler, SkippedStepScheduler
from sampling.tabulate import double_precision

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of NumPy, in diffusers
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # 1 / 0 in diffusers' shift of sigma 0
]
ALL = pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler, MixPlusPlusScheduler])
SHAPE = (2, 3, 4, 4)
EULER = FlowMatchEulerDiscreteScheduler
WAN = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
MU = float(np.log(flow_shift(1024)))

# Of every class: options, and arguments of set_timesteps besides the number of steps.
FLUX = {"use_dynamic_shifting": True}
CASES = [
    (EULER, {}, {}),
    (EULER, {"shift": 3.0}, {}),
    (EULER, {"shift": 7.0, "num_train_timesteps": 500}, {}),
    (EULER, {"shift": 3.0}, {"mu": MU}),  # FLUX-schnell's pipeline passes it all the same
    (EULER, FLUX, {"mu": MU}),
    (EULER, {**FLUX, "time_shift_type": "linear"}, {"mu": 2.5}),
    (EULER, {**FLUX, "shift_terminal": 0.1, "max_shift": 2.05, "base_shift": 0.95}, {"mu": MU}),
    (EULER, {"shift": 3.0, "use_karras_sigmas": True}, {}),
    (EULER, {"shift": 3.0, "use_exponential_sigmas": True}, {}),
    (EULER, {"shift": 3.0, "use_beta_sigmas": True}, {}),
    (EULER, {"invert_sigmas": True}, {}),
    (EULER, {"invert_sigmas": True, "shift": 2.0}, {}),
    (FlowMatchHeunDiscreteScheduler, {"shift": 3.0}, {}),
    (UniPCMultistepScheduler, WAN, {}),
    (UniPCMultistepScheduler, {**WAN, "flow_shift": 5.0, "shift_terminal": 0.02}, {}),
    (UniPCMultistepScheduler, {**WAN, **FLUX}, {"mu": MU}),
    (UniPCMultistepScheduler, {**WAN, **FLUX, "time_shift_type": "linear"}, {"mu": 2.5}),
    (DPMSolverMultistepScheduler, WAN, {}),
    (DPMSolverMultistepScheduler, {**WAN, **FLUX}, {"mu": MU}),
    (DPMSolverMultistepScheduler, {**WAN, "timestep_spacing": "trailing"}, {}),
    (DPMSolverSinglestepScheduler, WAN, {}),
]
EVERY = pytest.mark.parametrize(("source", "options", "grid"), CASES)


def network(x, t):
    return torch.tanh(0.8 * x + 0.3 * np.cos(float(t) / 90)) + 0.2 * torch.sin(2 * x)


def random(seed: int, count: int, shape=SHAPE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=dtype)


def denoiser(schedule):
    return NetworkDenoiser(
        lambda x, t, condition: (network(x, t), None), schedule, Reading("flow_prediction")
    )


def made(cls, source=EULER, options=None, **more):
    return cls.from_config(
        {**source(**(options or {})).config, "_class_name": source.__name__}, **more
    )


def refusal(config, cls=MixScheduler, **more) -> str | None:
    """What from_config says if it refuses: one line."""
    try:
        cls.from_config(config, **more)
    except ValueError as error:
        says = str(error)
    else:
        return None
    assert "\n" not in says
    return says


# --- the levels -----------------------------------------------------------------------------------


@ALL
@EVERY
@pytest.mark.parametrize("n", [1, 2, 7, 28, 50])
def test_levels_and_timesteps_are_those_of_the_class(cls, source, options, grid, n):
    if n == 1 and (options.get("shift_terminal") or options.get("use_beta_sigmas")):
        return  # the class itself ends where it begins
    theirs, ours = source(**options), made(cls, source, options)
    theirs.set_timesteps(n, **grid)
    ours.set_timesteps(n, **grid)
    sigmas, timesteps = theirs.sigmas, theirs.timesteps
    if source is FlowMatchHeunDiscreteScheduler:  # visits all but the first twice
        sigmas, timesteps = (v.unique(sorted=True).flip(0) for v in (sigmas, timesteps))
    assert torch.equal(ours.timesteps, timesteps) and torch.equal(ours.sigmas, sigmas)
    assert ours.timesteps.dtype == timesteps.dtype
    assert ours.num_inference_steps == len(ours.timesteps) == n
    level = sigmas.double().numpy()
    level = 1 - level if options.get("invert_sigmas") else level
    T = options.get("num_train_timesteps", 1000)
    np.testing.assert_array_equal(ours.plan.sigma, level[:-1])
    np.testing.assert_allclose(ours.plan.t, T * level[:-1], rtol=1e-15)
    assert level[-1] == 0 and ours.plan.s[-1] == -1
    assert (ours.step_index, ours.begin_index) == (None, None)


@ALL
def test_sigmas_and_timesteps_of_the_callers_own(cls):
    """As pipelines pass them: FLUX, SD3, CogView4 (both), HunyuanVideo."""
    flux, cogview = np.linspace(1.0, 1 / 8, 8), np.linspace(1000, 1.0, 8)
    forms = [flux, flux.tolist(), torch.from_numpy(flux)]
    for options, more in (({"shift": 3.0}, {}), (FLUX, {"mu": MU})):
        theirs, ours = EULER(**options), made(cls, EULER, options)
        for form in forms:
            theirs.set_timesteps(sigmas=flux.tolist(), **more)
            ours.set_timesteps(sigmas=form, **more)
            assert torch.equal(ours.sigmas, theirs.sigmas)
            assert torch.equal(ours.timesteps, theirs.timesteps)
        both = {"timesteps": cogview.tolist(), "sigmas": (cogview / 1000).tolist(), **more}
        theirs.set_timesteps(8, **both)
        ours.set_timesteps(8, **both)
        assert torch.equal(ours.sigmas, theirs.sigmas)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        # The network is told the timesteps, the plan is of the levels.
        np.testing.assert_array_equal(ours.plan.sigma, theirs.sigmas[:-1].double())
    theirs, ours = EULER(), made(cls)
    for one in (theirs, ours):
        one.set_timesteps(timesteps=[900.0, 400.0, 70.0])
    assert torch.equal(ours.timesteps, theirs.timesteps)
    theirs = UniPCMultistepScheduler(**WAN)
    ours = made(cls, UniPCMultistepScheduler, WAN)
    theirs.set_timesteps(sigmas=flux.copy())
    ours.set_timesteps(sigmas=flux.tolist())
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert flux[0] == 1.0  # theirs changes it in place


@pytest.mark.parametrize(
    ("source", "options", "grid", "message"),
    [
        (EULER, {}, {}, "give num_inference_steps, or sigmas"),
        (EULER, {}, {"num_inference_steps": 0}, "must be at least 1"),
        (EULER, FLUX, {"num_inference_steps": 5}, "`mu` must be passed"),
        (EULER, {}, {"sigmas": [1.0, 0.5, 0.0]}, "without a 0 at the end, which it adds"),
        (EULER, {}, {"sigmas": [0.2, 0.5]}, "do not fall strictly"),
        (EULER, {}, {"sigmas": [80.0, 0.5]}, "at most 1"),
        (EULER, {}, {"sigmas": [float("nan"), 0.5]}, "do not fall strictly"),
        (EULER, {}, {"sigmas": [0.5, 0.2], "timesteps": [1.0]}, "same length"),
        (DPMSolverMultistepScheduler, WAN, {"sigmas": [1.0, 0.5]}, "takes no sigmas"),
        (UniPCMultistepScheduler, WAN, {"timesteps": [9, 5]}, "takes no timesteps"),
        (DPMSolverMultistepScheduler, WAN, {"num_inference_steps": 4, "mu": 1.0}, "for a mu"),
    ],
)
def test_what_set_timesteps_does_not_take(source, options, grid, message):
    ours = made(MixScheduler, source, options)
    with pytest.raises(ValueError, match=message) as error:
        ours.set_timesteps(**grid)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="mu shifts the noise levels of flow matching"):
        MixScheduler().set_timesteps(5, mu=1.0)


def test_which_shift_flow_match_euler_does():
    """A static shift without sigmas moves its low end twice; ours is the pipeline's grid, as it is."""
    ours = made(SkippedStepScheduler, EULER, {"shift": 3.0})
    ours.set_timesteps(25)
    once = 3 * 0.001 / (1 + 2 * 0.001)
    assert ours.plan.sigma[-1] == pytest.approx(3 * once / (1 + 2 * once), rel=1e-6)
    # With sigmas of the pipeline's it is done once.
    ours.set_timesteps(sigmas=np.linspace(1, 0.001, 25))
    assert ours.plan.sigma[-1] == pytest.approx(once, rel=1e-6)
    np.testing.assert_allclose(
        ours.plan.sigma, Schedule.flow(np.linspace(1, 0.001, 25), shift=3.0).sigma[::-1], rtol=1e-6
    )


# --- the steps: equal to diffusers where it does the same --------------------------------------------


def in_float64(theirs, n, **grid):
    """Its own levels, rounded to float32 as it rounds them, and all else in float64."""
    theirs.set_timesteps(n, **grid)
    theirs.sigmas = theirs.sigmas.double()
    return theirs


@EVERY
@pytest.mark.parametrize("n", [2, 7, 28])
def test_mix_of_ddim_alone_is_euler_step_by_step(source, options, grid, n):
    """On the levels of every class; lambda = 0, in float64."""
    T = options.get("num_train_timesteps", 1000)
    ours = made(MixScheduler, source, options, cutoff=T)
    ours.set_timesteps(n, **grid)
    theirs = EULER(invert_sigmas=options.get("invert_sigmas", False), num_train_timesteps=T)
    theirs.set_timesteps(n)
    theirs.sigmas, theirs.timesteps = ours.sigmas.double(), ours.timesteps.float()
    (x,), y = random(0, 1), None
    y = x
    with double_precision(EULER):
        for t, told in zip(ours.timesteps, theirs.timesteps, strict=True):
            x = ours.step(network(x, t), t, x).prev_sample
            y = theirs.step(network(y, t), told, y).prev_sample
            assert x.dtype == y.dtype == torch.float64
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [2, 10, 40])
def test_skipped_step_is_the_first_order_sde_of_diffusers(n):
    """DPMSolverMultistepScheduler with sde-dpmsolver++, order 1: step by step in float64."""
    options = {**WAN, "algorithm_type": "sde-dpmsolver++", "solver_order": 1}
    theirs = in_float64(DPMSolverMultistepScheduler(**options), n)
    ours = made(SkippedStepScheduler, DPMSolverMultistepScheduler, options)
    ours.set_timesteps(n)
    x, *z = random(1, n + 1)
    y = x
    with double_precision(DPMSolverMultistepScheduler):
        for t, noise in zip(ours.timesteps, z, strict=True):
            x = ours.step(network(x, t), t, x, variance_noise=noise).prev_sample
            y = theirs.step(network(y, t), t, y, variance_noise=noise).prev_sample
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)
    # And the whole table, on levels in float64.
    plan = tabulate(DPMSolverMultistepScheduler(**options), n)
    want = skipped(Schedule.flow(plan.sigma), range(n - 1, -1, -1))
    for column in ("x", "noise"):
        np.testing.assert_allclose(getattr(want, column), getattr(plan, column), atol=1e-10)
    np.testing.assert_allclose(want.x0[:, 0], plan.x0[:, 0], atol=1e-10)


@pytest.mark.parametrize("n", [5, 20])
def test_mix_plus_plus_is_the_second_order_of_diffusers(n):
    for kind, lo in (("sde-dpmsolver++", 0), ("dpmsolver++", 1000)):
        options = {**WAN, "algorithm_type": kind}
        theirs = in_float64(DPMSolverMultistepScheduler(**options), n)
        ours = made(MixPlusPlusScheduler, DPMSolverMultistepScheduler, options, lo=lo)
        ours.set_timesteps(n)
        x, *z = random(1, n + 1)
        y = x
        with double_precision(DPMSolverMultistepScheduler):
            for t, noise in zip(ours.timesteps, z, strict=True):
                x = ours.step(network(x, t), t, x, variance_noise=noise).prev_sample
                y = theirs.step(network(y, t), t, y, variance_noise=noise).prev_sample
                torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@EVERY
def test_as_it_comes_in_float32(source, options, grid):
    """Nothing replaced: Euler's own loop, as a pipeline runs it."""
    if source is not EULER:
        return
    theirs = source(**options)
    T = options.get("num_train_timesteps", 1000)
    ours = made(MixScheduler, source, options, cutoff=T)
    for one in (theirs, ours):
        one.set_timesteps(20, **grid)
    x = y = random(2, 1, dtype=torch.float32)[0]
    for t in theirs.timesteps:
        x = ours.step(network(x, t), t, x, return_dict=False)[0]
        y = theirs.step(network(y, t), t, y, return_dict=False)[0]
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@ALL
def test_the_same_numbers_as_the_loop_of_this_repository(cls):
    ours = made(cls, EULER, {"shift": 3.0})
    ours.set_timesteps(12)
    schedule, grid = Schedule.flow(ours.sigmas[:-1].double().numpy()), range(11, -1, -1)
    plan = {
        SkippedStepScheduler: skipped(schedule, grid),
        MixScheduler: mix(schedule, grid, cutoff=291),
        MixPlusPlusScheduler: mixpp(schedule, grid, lo=291),
    }[cls]
    for noise in (SampleNoise(7, [3, 5], SHAPE[1:]), BrownianNoise(7, [3, 5], SHAPE[1:], schedule)):
        ours.noise, x = noise, noise.start()
        for t, told in zip(ours.timesteps, plan.t, strict=True):
            x = ours.step(network(x, told), t, x).prev_sample
        assert torch.equal(x, run(denoiser(schedule), plan, noise))


# --- marginals -----------------------------------------------------------------------------------


PLANS = {
    "skipped": (SkippedStepScheduler, {}),
    "mix": (MixScheduler, {}),
    "mix, etas": (MixScheduler, {"cutoff": 600, "eta_head": 0.7, "eta_tail": 0.3}),
    "mix++ of order 1": (MixPlusPlusScheduler, {"lo": 200, "hi": 800, "orders": (1, 1)}),
}


@pytest.mark.parametrize("name", PLANS)
@EVERY
def test_marginals_are_exact_at_every_node(name, source, options, grid):
    """x_t = alpha_t x0 + sigma_t eps goes to alpha_s x0 + sigma_s eps': in distribution, exactly."""
    cls, more = PLANS[name]
    if options.get("num_train_timesteps"):
        return
    ours = made(cls, source, options, **more)
    ours.set_timesteps(15, **grid)
    plan = ours.plan
    alpha, sigma = np.append(plan.alpha, 1.0), np.append(plan.sigma, 0.0)
    np.testing.assert_allclose(plan.x * alpha[:-1] + plan.x0[:, 0], alpha[1:], atol=1e-14)
    np.testing.assert_allclose(
        (plan.x * sigma[:-1]) ** 2 + plan.noise**2, sigma[1:] ** 2, atol=1e-14
    )


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("std", [0.3, 2.0])
def test_sampled_marginals_of_gaussian_data(name, std):
    """With x0 drawn from its posterior given x_t, which for Gaussian data is known."""
    cls, more = PLANS[name]
    ours = made(cls, EULER, {"shift": 3.0}, **more)
    ours.set_timesteps(6)
    mean, many = 0.7, 40_000
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(1, 1, many, generator=generator, dtype=torch.float64)

    x = draw()
    sigmas = ours.sigmas.tolist()
    for t, sigma, after in zip(ours.timesteps, sigmas[:-1], sigmas[1:], strict=True):
        alpha = 1 - sigma
        variance = alpha**2 * std**2 + sigma**2
        gain = alpha * std**2 / variance
        x0 = mean + gain * (x - alpha * mean) + std * sigma / variance**0.5 * draw()
        x = ours.step((x - x0) / sigma, t, x, generator=generator).prev_sample
        want = ((1 - after) ** 2 * std**2 + after**2) ** 0.5
        assert float(x.std()) == pytest.approx(want, abs=4 * want / (2 * many) ** 0.5)
        assert float(x.mean()) == pytest.approx((1 - after) * mean, abs=4 * want / many**0.5)


# --- what a row draws from ---------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("inverted", [False, True])
def test_the_posterior_is_what_step_draws_from(cls, inverted):
    ours = made(cls, EULER, {"shift": 3.0, "invert_sigmas": inverted})
    ours.set_timesteps(8)
    x, z = random(0, 2)
    level = ours.sigmas.double()
    level = 1 - level if inverted else level
    for i, t in enumerate(ours.timesteps):
        output = network(x, t).requires_grad_()
        mean, std = ours.posterior(output, t, x)
        assert torch.autograd.grad(mean.sum(), output)[0].isfinite().all()
        out = ours.step(output.detach(), t, x, variance_noise=z)
        torch.testing.assert_close(out.prev_sample, mean + std * z, rtol=1e-12, atol=1e-12)
        now, after = float(level[i]), float(level[i + 1])
        x0 = x - now * output * (-1 if inverted else 1)
        torch.testing.assert_close(out.pred_original_sample, x0.detach(), rtol=1e-12, atol=1e-12)
        if cls is SkippedStepScheduler:
            r = (1 - now) * after / ((1 - after) * now)
            assert std == pytest.approx(after * (1 - r**2) ** 0.5, rel=1e-10)
            want = (1 - after) * x0 + after * r * (x - (1 - now) * x0) / now
            torch.testing.assert_close(mean, want, rtol=1e-10, atol=1e-10)
        x = out.prev_sample


@ALL
def test_the_plan_shows_where_it_switches(cls):
    """Cutoffs are in T * sigma: 0.291 T is sigma 0.291, which is less noise than timestep 291's."""
    ours = made(cls, EULER, {"shift": 3.0})
    ours.set_timesteps(25)
    noisy = ours.plan.t[ours.plan.noise > 0]
    assert noisy.max() == ours.plan.t[0] == 1000
    if cls is not SkippedStepScheduler:
        assert noisy.min() == min(t for t in ours.plan.t if t >= 291)
        assert "291" in str(ours.plan).splitlines()[0]
    wan = made(cls, UniPCMultistepScheduler, WAN)
    wan.set_timesteps(25)
    assert wan.plan.t[0] == pytest.approx(999.999, rel=1e-6)


def test_cutoffs_at_both_ends_and_in_other_units():
    """T is DDIM throughout, also in the first row, whose t is T."""
    for option, cls in (("cutoff", MixScheduler), ("lo", MixPlusPlusScheduler)):
        for value, all_noisy in ((0, True), (1000, False)):
            ours = made(cls, **{option: value})
            ours.set_timesteps(9)
            assert ((ours.plan.noise[:-1] > 0) == all_noisy).all()
    window = made(MixPlusPlusScheduler, lo=0, hi=1000)
    window.set_timesteps(9)
    assert (window.plan.noise[:-1] > 0).all()
    level = 0.4
    a = made(MixScheduler, cutoff=1000 * level)
    b = made(MixScheduler, cutoff_sigma=level / (1 - level))
    c = made(MixScheduler, cutoff_log_snr=2 * np.log((1 - level) / level))
    for one in (a, b, c):
        one.set_timesteps(20)
        assert np.array_equal(one.plan.noise, a.plan.noise)
    for bad in (-1, 1001, "291"):
        with pytest.raises(ValueError, match=r"cutoff must be in 0\.\.1000"):
            made(MixScheduler, cutoff=bad)


# --- the contract ------------------------------------------------------------------------------------


@ALL
def test_a_timestep_in_any_form_is_the_same_row(cls):
    ours = made(cls, EULER, {"shift": 3.0})
    ours.set_timesteps(10)
    x, output, z = random(0, 3)
    t = ours.timesteps[4]
    exact = 1000 * float(ours.sigmas[4])
    forms = [t, float(t), t.clone(), t.double(), np.float32(t), np.float64(exact), copy.copy(t)]
    forms += [exact, torch.tensor(exact, dtype=torch.float64), round(exact, 4), t.reshape(1)]
    steps = [ours.step(output, form, x, variance_noise=z).prev_sample for form in forms]
    assert all(torch.equal(steps[0], other) for other in steps[1:])
    again = copy.deepcopy(ours)
    assert torch.equal(again.step(output, again.timesteps[4], x, variance_noise=z)[0], steps[0])
    for wrong in (float(t) + 0.4, 5000.0):
        with pytest.raises(ValueError, match="is not on the grid"):
            ours.step(output, wrong, x)
    with pytest.raises(ValueError, match="run set_timesteps before step"):
        made(cls).step(output, 999.0, x)


@ALL
@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounded_timesteps_are_the_rows_that_were_meant(cls, source, options, grid, dtype):
    """60 steps: bfloat16 knows 8 bits, and UniPC's whole numbers come twice where they are dense."""
    ours = made(cls, source, options)
    ours.set_timesteps(60, **grid)
    x, output, z = random(0, 3, dtype=torch.float32)
    for i, t in enumerate(ours.timesteps):
        ours.step(output, t.to(dtype), x, variance_noise=z)
        assert ours.step_index == i + 1
    ours.set_timesteps(60, **grid)
    ours.set_begin_index(30)
    ours.step(output, ours.timesteps[30].to(dtype), x)
    assert ours.step_index == 31


@ALL
def test_whole_timesteps_that_come_twice(cls):
    options = {**WAN, "flow_shift": 12.0}
    ours = made(cls, UniPCMultistepScheduler, options)
    ours.set_timesteps(100)
    assert len({*ours.timesteps.tolist()}) < 100
    x, output = random(0, 2)
    for i, t in enumerate(ours.timesteps.tolist()):
        ours.step(output, t, x)
        assert ours.step_index == i + 1


@ALL
@pytest.mark.parametrize("begin", [0, 3])
def test_no_step_looks_at_the_device(cls, begin, monkeypatch):
    """On the meta device every look at a value raises."""
    ours = made(cls, EULER, {"shift": 3.0})
    ours.set_timesteps(8, device="meta")
    assert ours.timesteps.device.type == ours.sigmas.device.type == "meta"
    x = torch.empty(SHAPE, device="meta")
    for i, t in enumerate(ours.timesteps[begin:], begin):
        x = ours.step(torch.empty_like(x), t, x).prev_sample
        assert ours.step_index == i + 1
    monkeypatch.setattr(stepping, "_same_memory", lambda a, b: False)
    ours.set_timesteps(8, device="meta")
    ours.set_begin_index(begin)
    x = ours.scale_noise(x, ours.timesteps[begin : begin + 1].repeat(2), x)
    for i in range(begin, 8):
        ours.step(torch.empty_like(x), torch.empty((), device="meta"), x)
        assert ours.step_index == i + 1


@ALL
@pytest.mark.parametrize("options", [{"shift": 3.0}, FLUX])
def test_scale_noise_is_diffusers(cls, options):
    """Before set_timesteps, after it, from where the pipeline begins, and between steps."""
    theirs, ours = EULER(**options), made(cls, EULER, options)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    x, z = random(0, 2, dtype=torch.float32)

    def same(t):
        want = theirs.scale_noise(x, t, z)
        torch.testing.assert_close(ours.scale_noise(x, t, z), want)
        torch.testing.assert_close(ours.add_noise(x, z, t), want)

    same(theirs.timesteps[[3, 700]])
    for one in (theirs, ours):
        one.set_timesteps(10, mu=MU)
    same(theirs.timesteps[[2, 7]])
    same(theirs.timesteps[4:5])
    for one in (theirs, ours):
        one.set_begin_index(4)
    same(theirs.timesteps[4:5].repeat(2))
    t = theirs.timesteps[4]
    for one in (theirs, ours):
        one.step(x, t, x)
    same(theirs.timesteps[5:6])
    for t in theirs.timesteps[5:]:
        for one in (theirs, ours):
            one.step(x, t, x)
    same(theirs.timesteps[9:])  # after the last step: nothing is left to add
    half = ours.scale_noise(x.half(), theirs.timesteps[5:6], z.half())
    assert half.dtype == torch.float16
    assert torch.equal(ours.get_velocity(x, z, t), z - x)


@ALL
def test_half_precision_and_outputs(cls):
    ours = made(cls, EULER, {"shift": 3.0})
    ours.set_timesteps(5)
    t = ours.timesteps[2]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x, output, z = (v.to(dtype) for v in random(0, 3))
        out = ours.step(output, t, x, variance_noise=z)
        pair = ours.step(output, t, x, variance_noise=z, return_dict=False)
        assert type(pair) is tuple and torch.equal(out[0], pair[0])
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
        exact = ours.step(output.double(), t, x.double(), variance_noise=z.double())
        rtol = 0.01 if dtype == torch.bfloat16 else 1e-3
        assert torch.allclose(out.prev_sample.double(), exact.prev_sample, rtol=rtol, atol=1e-3)


@ALL
def test_steps_that_are_of_no_row(cls):
    ours = made(cls)
    ours.set_timesteps(5)
    x, output = random(0, 2)
    t = ours.timesteps[0]
    ours.step(output, t, x, per_token_timesteps=None)
    with pytest.raises(ValueError, match="keep the scheduler that the pipeline came with"):
        ours.step(output, t, x, per_token_timesteps=torch.ones(2, 3))
    with pytest.raises(ValueError, match="step has no option 's_churn'"):
        ours.step(output, t, x, s_churn=1.0)


def test_mixpp_from_any_row_on_is_the_plan_of_the_rest():
    ours = made(MixPlusPlusScheduler, EULER, {"shift": 3.0}, lo=200, hi=900)
    ours.set_timesteps(12)
    level = ours.sigmas[5:-1].double().numpy()
    plan = mixpp(Schedule.flow(level), range(6, -1, -1), lo=200, hi=900)
    noise = SampleNoise(7, [3, 5], SHAPE[1:])
    ours.set_begin_index(5)
    ours.noise, x = noise, noise.start()
    for t, told in zip(ours.timesteps[5:], plan.t, strict=True):
        x = ours.step(network(x, told), t, x).prev_sample
    torch.testing.assert_close(
        x, run(denoiser(Schedule.flow(level)), plan, noise), rtol=1e-5, atol=1e-5
    )


def test_shift_as_pipelines_change_it():
    theirs, ours = EULER(shift=3.0), made(MixScheduler, EULER, {"shift": 3.0})
    assert ours.shift == 3.0
    for one in (theirs, ours):
        one.set_shift(5.0)
        one.set_timesteps(10)
    assert torch.equal(ours.sigmas, theirs.sigmas) and ours.shift == 5.0
    (x,), t = random(0, 1), ours.timesteps[3:4]
    ours.step(x, t, x)
    before = ours.scale_noise(x, t, x + 1)
    ours.register_to_config(shift=7.0)  # of effect from the next run on
    ours.step(x, ours.timesteps[3], x)
    assert torch.equal(ours.scale_noise(x, t, x + 1), before)
    ours.set_timesteps(10)
    theirs = EULER(shift=7.0)
    theirs.set_timesteps(10)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert not hasattr(MixScheduler(), "shift") and not hasattr(MixScheduler(), "sigmas")


# --- configs -----------------------------------------------------------------------------------------

# Another value of every option of the classes, and those that are refused.
VARIANTS = {
    "num_train_timesteps": 500,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.3,
    "max_shift": 2.0,
    "base_image_seq_len": 100,
    "max_image_seq_len": 9000,
    "invert_sigmas": True,
    "shift_terminal": 0.02,
    "use_karras_sigmas": True,
    "use_exponential_sigmas": True,
    "use_beta_sigmas": True,
    "time_shift_type": "linear",
    "stochastic_sampling": True,
    "flow_shift": 5.0,
    "beta_start": 0.001,
    "beta_end": 0.03,
    "beta_schedule": "scaled_linear",
    "trained_betas": np.linspace(1e-4, 0.01, 1000).tolist(),
    "solver_order": 3,
    "prediction_type": "epsilon",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.9,
    "sample_max_value": 2.0,
    "algorithm_type": "sde-dpmsolver++",
    "solver_type": "heun",
    "lower_order_final": False,
    "euler_at_final": True,
    "use_lu_lambdas": True,
    "use_flow_sigmas": True,
    "final_sigmas_type": "sigma_min",
    "lambda_min_clipped": -5.0,
    "variance_type": "learned_range",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "rescale_betas_zero_snr": True,
    "predict_x0": False,
    "disable_corrector": [0],
    "solver_p": None,
    "sigma_min": 0.1,
    "sigma_max": 5.0,
}
GRIDS = {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
SOLVERS = GRIDS | {"prediction_type", "final_sigmas_type"}
REFUSED = {
    "FlowMatchEulerDiscreteScheduler": {"stochastic_sampling"},
    "FlowMatchHeunDiscreteScheduler": set(),
    "UniPCMultistepScheduler": SOLVERS,
    "DPMSolverMultistepScheduler": SOLVERS | {"use_lu_lambdas"},
    "DPMSolverSinglestepScheduler": SOLVERS,
}


@pytest.mark.parametrize("name", FLOW_SOURCES)
def test_every_option_is_honoured_or_refused(name):
    """What it does is seen by running the class itself."""
    source = getattr(diffusers.schedulers, name)
    base = WAN if "use_flow_sigmas" in source().config else {}
    keys = [key for key in source(**base).config if key[0] != "_"]
    assert {*keys} <= {*VARIANTS}
    refused = set()
    for key in keys:
        theirs = source(**{**base, key: VARIANTS[key]})
        config = {**theirs.config, "_class_name": name}
        if says := refusal(config):
            refused.add(key)
            assert name in says and key in says
            assert_the_remedy_works(says, config)
            continue
        assert refusal(theirs.config) is None or name == "FlowMatchHeunDiscreteScheduler"
        ours = MixScheduler.from_config(config)
        mu = {"mu": 0.8} if theirs.config.get("use_dynamic_shifting") else {}
        for one in (ours, theirs):
            one.set_timesteps(10, **mu)
        assert torch.equal(ours.sigmas.unique(), theirs.sigmas.unique()), key
        assert torch.equal(ours.timesteps.unique(), theirs.timesteps.unique()), key
        assert ours.config[key] == config[key]
    assert refused == REFUSED[name]


def assert_the_remedy_works(says, config):
    (pair,) = re.findall(r"pass (\w+='?\w+'?)", says) or [None]
    if pair is None:
        (word,) = re.findall(r"(prediction_type='flow_prediction')", says)
        pair = word
    key, value = pair.split("=")
    value = {"True": True, "False": False}.get(value, value.strip("'"))
    ours = MixScheduler.from_config(config, **{key: value})
    ours.set_timesteps(5)
    assert ours.plan.sigma[0] > 0.9


def test_thresholding_is_that_of_the_class():
    options = {**WAN, "thresholding": True, "sample_max_value": 1.5}
    theirs = DPMSolverMultistepScheduler(**options, solver_order=1)
    ours = made(MixScheduler, DPMSolverMultistepScheduler, options, cutoff=1000)
    for one in (theirs, ours):
        one.set_timesteps(6)
    x = y = 3 * random(2, 1, dtype=torch.float32)[0]
    for t in theirs.timesteps:
        x, y = (one.step(network(v, t), t, v)[0] for one, v in ((ours, x), (theirs, y)))
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


def test_configs_that_are_of_no_use():
    for source in (DEISMultistepScheduler, SASolverScheduler):
        config = source(**WAN).config
        says = refusal(config)
        assert source.__name__ in says and "stops before the clean image" in says
        MixScheduler.from_config({**config, "_class_name": "DPMSolverMultistepScheduler"})
    for source in (UniPCMultistepScheduler, DPMSolverMultistepScheduler):
        assert "goes with prediction_type" in refusal(source(use_flow_sigmas=True).config)
        lone = source(prediction_type="flow_prediction").config
        assert "goes with use_flow_sigmas=True" in refusal(lone)
        MixScheduler.from_config(lone, use_flow_sigmas=True)
    # Cosmos puts EDM's noise levels into FlowMatchEuler, which has no such options.
    config = {**EULER(use_karras_sigmas=True).config, "sigma_max": 80.0, "sigma_min": 0.002}
    says = refusal({**config, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert "places noise levels at 80" in says and "keep the scheduler" in says
    # Two classes with the same options, of which one is distilled.
    says = refusal(FlowMatchHeunDiscreteScheduler().config)
    assert "FlowMapEulerDiscreteScheduler" in says and "FlowMatchHeunDiscreteScheduler'}" in says
    says = refusal({"_class_name": "LTXEulerAncestralRFScheduler", "num_train_timesteps": 1000})
    assert "{**config, '_class_name': 'FlowMatchEulerDiscreteScheduler'}" in says


@ALL
def test_options_of_betas_are_refused_for_flows(cls):
    config = EULER(shift=3.0).config
    for option, value in (
        ("timestep_spacing", "even"),
        ("beta_start", 0.1),
        ("set_alpha_to_one", False),
        ("rescale_betas_zero_snr", True),
    ):
        says = refusal(config, cls, **{option: value})
        assert f"{option} is of noise schedules of betas" in says
        ours = cls.from_config(config)
        assert option in refusal(ours.config, cls, **{option: value})
    assert "no option 'shft': it takes" in refusal(config, cls, shft=3.0)
    assert "needs prediction_type='flow_prediction'" in refusal(
        config, cls, prediction_type="sample"
    )
    with pytest.raises(ValueError, match="unknown flow_matching 'Euler': choose one of FlowMatch"):
        cls(flow_matching="Euler", prediction_type="flow_prediction")


@ALL
def test_a_leftover_of_another_class_is_of_no_effect(cls):
    plain = made(cls, EULER, {"shift": 3.0})
    leftovers = {"clip_sample": True, "thresholding": True, "timestep_spacing": "leading"}
    leftovers |= {"beta_start": 0.1, "prediction_type": "epsilon", "flow_shift": 9.0}
    leftovers |= {"rescale_betas_zero_snr": True, "use_flow_sigmas": False, "steps_offset": 3}
    config = {**EULER(shift=3.0).config, **leftovers}
    ours = cls.from_config({**config, "_class_name": "FlowMatchEulerDiscreteScheduler"})
    for one in (plain, ours):
        one.set_timesteps(8)
    assert torch.equal(ours.sigmas, plain.sigmas)
    x = 5 * random(0, 1)[0]
    assert ours.step(x, ours.timesteps[0], x).pred_original_sample.abs().max() < 1e-9
    x0 = [one.step(x.cos(), one.timesteps[1], x).pred_original_sample for one in (ours, plain)]
    assert torch.equal(*x0)
    # And of flow matching in a config of betas.
    mixed = {**ours.config, **DDIMScheduler().config, "_class_name": "DDIMScheduler"}
    again = cls.from_config(mixed)
    assert again.config.flow_matching is None
    again.set_timesteps(5)
    assert again.timesteps.dtype == torch.int64


@pytest.mark.parametrize("name", FLOW_SOURCES)
def test_options_of_one_class_in_the_config_of_another(name):
    """As diffusers carries them along when a pipeline changes its scheduler."""
    source = getattr(diffusers.schedulers, name)
    base = {**WAN, "flow_shift": 5.0} if "use_flow_sigmas" in source().config else {"shift": 5.0}
    others = {"invert_sigmas": True, "shift_terminal": 0.1, "stochastic_sampling": True}
    others |= {"shift": 9.0, "flow_shift": 9.0, "use_dynamic_shifting": True, "shift_type": "log"}
    others |= {"use_karras_sigmas": True, "use_lu_lambdas": True, "final_sigmas_type": "sigma_min"}
    leftovers = {key: value for key, value in others.items() if key not in source().config}
    theirs = source(**base)
    ours = MixScheduler.from_config({**theirs.config, **leftovers, "_class_name": name})
    for one in (theirs, ours):
        one.set_timesteps(9)
    assert len(leftovers) > 2
    assert torch.equal(ours.sigmas.unique(), theirs.sigmas.unique())
    assert ours.plan.t[0] > ours.plan.t[-1]


def test_overrides_are_checked_as_the_config_is():
    for source in (UniPCMultistepScheduler, DPMSolverMultistepScheduler):
        karras = source(use_karras_sigmas=True).config
        assert "places noise levels elsewhere" in refusal(karras)
        assert refusal(karras, use_karras_sigmas=False) is None
        plain = source().config
        assert "places noise levels elsewhere" in refusal(plain, use_karras_sigmas=True)
        assert "use_flow_sigmas goes with" in refusal(plain, use_flow_sigmas=True)
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
        ours = MixScheduler.from_config(plain, **flow)
        assert ours.config.flow_shift == 2.0 and ours.config.flow_matching == source.__name__
        assert "no option 'solver_order'" in refusal(plain, solver_order=3)
    assert "stochastic_sampling=True" in refusal(EULER().config, stochastic_sampling=True)
    for other in (None, "UniPCMultistepScheduler"):
        assert "flow_matching cannot be another" in refusal(EULER().config, flow_matching=other)


@ALL
@EVERY
def test_config_is_json_and_comes_back(cls, source, options, grid, tmp_path, caplog):
    more = {"cutoff": 400} if cls is MixScheduler and "num_train_timesteps" not in options else {}
    ours = made(cls, source, options, **more)
    ours.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["_class_name"] == cls.__name__
    assert stored["flow_matching"] == source.__name__
    for back in (cls.from_pretrained(tmp_path), cls.from_config(ours.config)):
        for one in (ours, back):
            one.set_timesteps(6, **grid)
        assert torch.equal(back.sigmas, ours.sigmas)
        assert np.array_equal(back.plan.noise, ours.plan.noise)
    assert "not expected" not in caplog.text
    # To the class itself again, with all of its options; and to ours from there.
    theirs = source.from_config(ours.config)
    for key, value in source(**options).config.items():
        assert key[0] == "_" or theirs.config[key] == value, key
    again = made(cls, source, {k: v for k, v in theirs.config.items() if k in options})
    again.set_timesteps(6, **grid)
    assert torch.equal(again.sigmas, ours.sigmas)


@ALL
def test_overrides_of_the_source_as_with_its_own_class(cls):
    """Wan's model card: UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=...)."""
    ours = cls.from_config(UniPCMultistepScheduler(**WAN).config, flow_shift=5.0)
    theirs = UniPCMultistepScheduler(**{**WAN, "flow_shift": 5.0})
    for one in (ours, theirs):
        one.set_timesteps(9)
    assert torch.equal(ours.sigmas, theirs.sigmas) and ours.config.flow_shift == 5.0
    later = cls.from_config(ours.config, flow_shift=8.0)
    assert later.config.flow_shift == 8.0
    ours = cls.from_config(
        EULER(shift=3.0, stochastic_sampling=True).config, stochastic_sampling=False
    )
    assert ours.config.stochastic_sampling is False and ours.config.shift == 3.0


@ALL
def test_what_pipelines_read_of_the_config(cls):
    """FLUX: calculate_shift of base and max; absent in the file, they are the class's defaults."""
    ours = cls.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", **FLUX})
    assert ours.config.get("base_image_seq_len", None) == 256
    assert ours.config.max_shift == 1.15 and ours.config.use_dynamic_shifting
    assert (ours.order, ours.init_noise_sigma, len(ours)) == (1, 1.0, 1000)
    x = torch.ones(3)
    assert ours.scale_model_input(x, 3) is x
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.set_timesteps(4, mu=1.0)
    assert issubclass(type(ours), cls) and type(ours) is cls


def test_eta_of_the_flow_path_between_both():
    """lambda in general: DDIM's eta; 0 is Euler, 1 Skipped-Step."""
    schedule, grid = Schedule.flow(np.linspace(1, 0.05, 12), shift=3.0), range(11, -1, -1)
    ours = MixScheduler.from_config(EULER(shift=3.0).config, cutoff=0, eta_head=0.6)
    ours.set_timesteps(sigmas=np.linspace(1, 0.05, 12))
    want = ddim(schedule, grid, eta=0.6)
    np.testing.assert_allclose(ours.plan.noise, want.noise, rtol=1e-5)
