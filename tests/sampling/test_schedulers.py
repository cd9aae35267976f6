"""Our schedulers for diffusers: equal to its own where these are right, and its whole contract."""

from __future__ import annotations

import copy
import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
from conftest import bound
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import KarrasDiffusionSchedulers

from sampling import SampleNoise, Schedule, mix, run, schedulers, skipped, timesteps
from sampling.schedulers import MixScheduler, SkippedStepScheduler, schedule_of

BOTH = pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler])
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SHAPE = (2, 3, 4, 4)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def network(x, t, condition=None):
    """Smooth, not linear, different at every timestep."""
    return torch.tanh(0.8 * x + 0.3 * np.cos(int(t) / 90)) + 0.2 * torch.sin(2 * x)


def in_float64(scheduler, ours):
    """The same alpha_bar for diffusers' scheduler as for ours, instead of a float32 product."""
    schedule = schedule_of(ours.config)
    table = torch.from_numpy(schedule.alpha_bar)
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), table, rtol=1e-4, atol=1e-6)
    scheduler.alphas_cumprod = table
    scheduler.final_alpha_cumprod = torch.tensor(schedule.final, dtype=torch.float64)
    return scheduler


def random(seed: int, count: int, shape=SHAPE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=dtype)


# --- numerics -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "offset", "one"),
    [("leading", 0, True), ("leading", 1, False), ("trailing", 0, True), ("linspace", 0, True)],
)
def test_every_step_count_equals_diffusers_where_diffusers_is_right(spacing, offset, one):
    """First, last and some other row of the plans of 1 to 1000 steps, prediction types in turn.

    diffusers' DDIM always jumps by T // N; where that is not the next timestep of its own grid
    it is wrong, and not compared.  Its DDPM looks the next timestep up, and is right everywhere.
    """
    options = {**SD, "timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": one}
    mixed, jump = MixScheduler(**options, cutoff=1001), SkippedStepScheduler(**options)
    ddim = in_float64(DDIMScheduler(**options, clip_sample=False), mixed)
    # DDPM ends at the clean image whatever the config says.
    options["set_alpha_to_one"] = True
    ours = SkippedStepScheduler(**options)
    ddpm = in_float64(
        DDPMScheduler(**SD, timestep_spacing=spacing, steps_offset=offset, clip_sample=False), ours
    )
    everything = (mixed, jump, ddim, ours, ddpm)
    x, output = random(0, 2)
    compared = 0
    for n in range(1, 1001):
        for scheduler in everything:
            scheduler.set_timesteps(n)
        grid = mixed.timesteps.tolist()
        # Theirs leave the schedule (leading + 1) or have one timestep too many (trailing).
        superfluous = len(ddim.timesteps) - n
        beyond = int(ddim.timesteps[0]) > 999
        assert ours.timesteps.tolist() == grid
        assert beyond or ddim.timesteps.tolist()[:n] == grid == ddpm.timesteps.tolist()[:n]
        assert beyond == (spacing == "leading" and offset == 1 and n == 1000)
        for i in {0, n - 1, (37 * n) // 101}:
            t, after = grid[i], grid[i + 1] if i + 1 < n else -1
            theirs = t - 1000 // n
            ddim_is_right = theirs == after or (theirs < 0 and after == -1)
            compared += ddim_is_right
            for scheduler in everything:
                scheduler.register_to_config(prediction_type=PREDICTIONS[(n + i) % 3])
            if ddim_is_right:
                assert_same_step(mixed, ddim, n, (output, t, x), 1e-9, eta=0.0)
                # DDIM(eta = 1) subtracts nearly equal numbers: see test_plan.py.
                assert_same_step(jump, ddim, n, (output, t, x), 1e-9, eta=1.0)
            # Its DDPM raises the last variance from 0 to 1e-20.
            if not (beyond or (superfluous and i == n - 1)):
                assert_same_step(ours, ddpm, n, (output, t, x), 2e-9)
    # The rows that were compared with DDIM: all, or those of the step counts that divide 1000.
    # (Offset 1 with more than 500 steps: its last jump, from 1 to 0, is not the last for us.)
    assert compared > {"leading": 2980 - 500 * offset, "trailing": 40, "linspace": 3}[spacing]


@pytest.mark.parametrize("spacing", ["even", "ddim"])
def test_every_step_count_of_guided_diffusions_grids_equals_diffusers_ddpm(spacing):
    """diffusers has no such spacings, but its DDPM takes a list of timesteps."""
    ours = SkippedStepScheduler(timestep_spacing=spacing)
    theirs = in_float64(DDPMScheduler(clip_sample=False), ours)
    x, output = random(0, 2)
    compared = 0
    for n in range(1, 1001):
        try:
            ours.set_timesteps(n)
        except ValueError:
            assert spacing == "ddim"  # most counts have no integer stride
            continue
        grid = ours.timesteps.tolist()
        assert grid == timesteps(1000, n, spacing).tolist()
        theirs.set_timesteps(timesteps=grid)
        for i in {0, n - 1, (37 * n) // 101}:
            assert_same_step(ours, theirs, n, (output, grid[i], x), 2e-9)
            compared += 1
    assert compared > {"even": 2980, "ddim": 150}[spacing]


def assert_same_step(ours, theirs, seed, args, tolerance, **more):
    a, b = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    got, want = ours.step(*args, generator=a), theirs.step(*args, generator=b, **more)
    torch.testing.assert_close(got.prev_sample, want.prev_sample, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        got.pred_original_sample, want.pred_original_sample, rtol=1e-10, atol=1e-10
    )


def ddims(options):
    """Our schedulers that are DDIM, and its eta."""
    return (MixScheduler(**options, cutoff=1001), 0.0), (SkippedStepScheduler(**options), 1.0)


def loop(scheduler, n, seed, dtype=torch.float64, **more):
    """The end of a whole loop of n steps."""
    scheduler.set_timesteps(n)
    x, generator = random(seed, 1, dtype=dtype)[0], torch.Generator().manual_seed(n)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, generator=generator, **more).prev_sample
    return x


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("n", [1, 2, 7, 20, 50])
def test_whole_loops_equal_diffusers_ddim(n, prediction):
    options = {**SD, "prediction_type": prediction, "timestep_spacing": "leading"}
    options |= {"steps_offset": 1, "set_alpha_to_one": False}
    for ours, eta in ddims(options):
        theirs = in_float64(DDIMScheduler(**options, clip_sample=False), ours)
        x, y = loop(ours, n, seed=1), loop(theirs, n, seed=1, eta=eta)
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9 * float(y.abs().max()))


@pytest.mark.parametrize("cls", [DDIMScheduler, DDPMScheduler])
def test_as_it_comes_in_float32(cls):
    """Nothing replaced, created by from_config, as a pipeline would."""
    theirs = cls(**SD, clip_sample=True)
    ours = SkippedStepScheduler.from_config(theirs.config)
    more = {"eta": 1.0, "use_clipped_model_output": True} if cls is DDIMScheduler else {}
    x, y = loop(ours, 20, 1, torch.float32), loop(theirs, 20, 1, torch.float32, **more)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    torch.testing.assert_close(x, y, rtol=0, atol=2e-4)


@pytest.mark.parametrize("n", [10, 25, 30, 50])
def test_diffusers_ddim_is_wrong_on_linspace_grids_and_ours_is_right(n):
    """Gaussian data of variance 4, the exact network: DDIM is a linear map, exact as N grows.

    Where DDIM jumps to another timestep than the network is asked at next, its images come out
    with another spread.
    """
    variance = 4.0
    options = {"timestep_spacing": "linspace", "beta_schedule": "linear"}
    ours = MixScheduler(**options, cutoff=1001)
    theirs = in_float64(DDIMScheduler(**options, clip_sample=False), ours)
    abar = schedule_of(ours.config).alpha_bar
    spread = {}
    for name, scheduler in (("ours", ours), ("theirs", theirs)):
        scheduler.set_timesteps(n)
        x = torch.ones(1, 1, dtype=torch.float64)
        for t in scheduler.timesteps.tolist():
            a = float(abar[t])
            eps = (1 - a) ** 0.5 * x / (a * variance + 1 - a)
            x = scheduler.step(eps, t, x).prev_sample
        spread[name] = float(x)
    error = {name: abs(s / variance**0.5 - 1) for name, s in spread.items()}
    jumps = -np.diff(ours.timesteps.numpy())
    assert (jumps != 1000 // n).any()
    assert error["ours"] < error["theirs"]
    # Ours is the DDIM of the definition (Song et al. 2021, eq. 12) on the same grid.
    x = 1.0
    grid = ours.timesteps.tolist()
    for t, s in zip(grid, [*grid[1:], -1], strict=True):
        a, b = abar[t], 1.0 if s < 0 else abar[s]
        eps = (1 - a) ** 0.5 * x / (a * variance + 1 - a)
        x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    assert spread["ours"] == pytest.approx(x, rel=1e-10)


@pytest.mark.parametrize(
    "limits",
    [
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.4},
    ],
    ids=["clip", "dynamic"],
)
def test_clipping_and_dynamic_thresholding_are_diffusers(limits):
    options = {**SD, **limits, "timestep_spacing": "leading"}
    ours = MixScheduler(**options, cutoff=1001)
    theirs = in_float64(DDIMScheduler(**{"clip_sample": False, **options}), ours)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    x = 3 * random(2, 1)[0]
    for t in theirs.timesteps[3:].tolist():
        got = ours.step(network(x, t), t, x)
        want = theirs.step(network(x, t), t, x, use_clipped_model_output=True)
        torch.testing.assert_close(got.pred_original_sample, want.pred_original_sample)
        torch.testing.assert_close(got.prev_sample, want.prev_sample, rtol=1e-9, atol=1e-9)
    assert (theirs.step(network(x, 0), 0, x).pred_original_sample.abs() <= 1).any()


def test_zero_terminal_snr_is_diffusers():
    options = {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    options |= {"timestep_spacing": "trailing"}
    for ours, eta in ddims(options):
        theirs = DDIMScheduler(**options, clip_sample=False)
        x, y = loop(ours, 20, 3, torch.float32), loop(theirs, 20, 3, torch.float32, eta=eta)
        assert schedule_of(ours.config).alpha_bar[-1] == 0
        assert x.isfinite().all()
        torch.testing.assert_close(x, y, rtol=0, atol=1e-3)


@BOTH
def test_the_same_numbers_as_the_loop_of_this_repository(cls):
    """With per-sample noise a scheduler gives bit for bit what `run` gives."""
    schedule = Schedule.scaled_linear()
    grid = timesteps(1000, 25, "even")
    plan = mix(schedule, grid, cutoff=291) if cls is MixScheduler else skipped(schedule, grid)
    noise = SampleNoise(7, [3, 5], SHAPE[1:])
    want = run(bound(lambda x, t, condition: (network(x, t), None), schedule), plan, noise)
    scheduler = cls(**SD)
    scheduler.noise = noise
    scheduler.set_timesteps(25)
    x = noise.start()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    assert torch.equal(x, want)


def test_mix_switches_at_the_cutoff_in_every_unit():
    schedule = Schedule.scaled_linear()
    grid = timesteps(1000, 25, "even")
    reference = MixScheduler(**SD, cutoff=291)
    sigma, log_snr = schedule.sigma[291], schedule.log_snr[291]
    for cutoff in ({"cutoff_sigma": sigma - 1e-9}, {"cutoff_log_snr": log_snr + 1e-9}, {}):
        scheduler = MixScheduler(**SD, **cutoff)
        for one in (scheduler, reference):
            one.set_timesteps(25)
        x, output, z = random(0, 3)
        for t in grid.tolist():
            a = scheduler.step(output, t, x, variance_noise=z).prev_sample
            assert torch.equal(a, reference.step(output, t, x, variance_noise=z).prev_sample)
            again = scheduler.step(output, t, x, variance_noise=z + 1).prev_sample
            assert (a == again).all() == (t < 291)


def test_the_etas_of_head_and_tail():
    options = {**SD, "timestep_spacing": "leading", "set_alpha_to_one": True}
    ours = MixScheduler(**options, cutoff=500, eta_head=0.6, eta_tail=0.3)
    theirs = in_float64(DDIMScheduler(**options, clip_sample=False), ours)
    ours.set_timesteps(20)
    theirs.set_timesteps(20)
    x, output, z = random(4, 3)
    for t in theirs.timesteps.tolist():
        want = theirs.step(output, t, x, eta=0.6 if t >= 500 else 0.3, variance_noise=z)
        got = ours.step(output, t, x, variance_noise=z)
        torch.testing.assert_close(got.prev_sample, want.prev_sample, rtol=1e-9, atol=1e-9)


# --- the contract of a scheduler ----------------------------------------------------------------


@BOTH
def test_pipelines_cannot_pass_eta(cls):
    step = inspect.signature(cls.step).parameters
    assert "eta" not in step and {"generator", "variance_noise", "return_dict"} <= set(step)
    assert {"timesteps", "sigmas", "device"} <= {*inspect.signature(cls.set_timesteps).parameters}


@BOTH
def test_config_is_json_and_comes_back(cls, tmp_path):
    more = {"cutoff": 400, "eta_tail": 0.25} if cls is MixScheduler else {}
    more |= {"steps_offset": 1, "timestep_spacing": "leading", "prediction_type": "v_prediction"}
    scheduler = cls(**SD, trained_betas=np.linspace(1e-4, 0.01, 1000).tolist(), **more)
    scheduler.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["_class_name"] == cls.__name__
    for back in (cls.from_pretrained(tmp_path), cls.from_config(scheduler.config)):
        assert {k: v for k, v in back.config.items() if k[0] != "_"} == {
            k: v for k, v in scheduler.config.items() if k[0] != "_"
        }
        for one in (scheduler, back):
            one.set_timesteps(12)
        x, output, z = random(0, 3)
        for t in scheduler.timesteps:
            a, b = (
                one.step(output, t, x, variance_noise=z).prev_sample for one in (scheduler, back)
            )
            assert torch.equal(a, b)


@BOTH
def test_options_are_refused_early(cls):
    with pytest.raises(ValueError, match="unknown prediction_type 'flow'"):
        cls(prediction_type="flow")
    with pytest.raises(ValueError, match="unknown beta_schedule 'exp'"):
        cls(beta_schedule="exp")
    with pytest.raises(ValueError, match=f"{cls.__name__} has no option 'cutof': it takes"):
        cls.from_config(DDIMScheduler().config, cutof=291)
    with pytest.raises(ValueError, match="model is of another kind"):
        cls.from_config(FlowMatchEulerDiscreteScheduler().config)
    scheduler = cls(timestep_spacing="exponential")
    with pytest.raises(ValueError, match="unknown spacing 'exponential'"):
        scheduler.set_timesteps(10)


def test_mix_refuses_bad_options_early():
    with pytest.raises(ValueError, match="needs prediction_type v_prediction or sample"):
        MixScheduler(rescale_betas_zero_snr=True)
    for bad in ({"cutoff": -1}, {"cutoff": 291, "cutoff_sigma": 1.0}, {"eta_head": 1.5}):
        with pytest.raises(ValueError, match=r"negative|exactly one|between 0 and 1"):
            MixScheduler(**bad)


@BOTH
def test_device_dtype_and_output_types(cls):
    scheduler = cls(**SD)
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[2]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x, output, z = (v.to(dtype) for v in random(0, 3))
        out = scheduler.step(output, t, x, variance_noise=z)
        pair = scheduler.step(output, t, x, variance_noise=z, return_dict=False)
        assert type(pair) is tuple
        assert torch.equal(out[0], pair[0]) and torch.equal(out[1], pair[1])
        assert out.prev_sample.dtype == out.pred_original_sample.dtype == dtype
        assert out.prev_sample.shape == x.shape
        # In half precision only inputs and outputs are rounded.
        exact = scheduler.step(output.double(), t, x.double(), variance_noise=z.double())
        rtol = 0.01 if dtype == torch.bfloat16 else 1e-3
        assert torch.allclose(out.prev_sample.double(), exact.prev_sample, rtol=rtol, atol=1e-3)
    scheduler.set_timesteps(5, device="meta")
    assert scheduler.timesteps.device.type == "meta"


@BOTH
@pytest.mark.parametrize("begin", [0, 3])
def test_no_step_looks_at_the_device(cls, begin, monkeypatch):
    """On the meta device every look at a value raises."""
    scheduler = cls(**SD)
    scheduler.set_timesteps(8, device="meta")
    x = torch.empty(SHAPE, device="meta")
    rows = []
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(torch.empty_like(x), t, x).prev_sample
        rows.append(scheduler.step_index)
    assert rows == list(range(begin + 1, 9))
    # Timesteps that are copies are counted, from where the pipeline says that it begins.
    monkeypatch.setattr(schedulers, "_same_memory", lambda a, b: False)
    scheduler.set_timesteps(8, device="meta")
    scheduler.set_begin_index(begin)
    assert (scheduler.begin_index, scheduler.step_index) == (begin, None)
    for i in range(begin, 8):
        scheduler.step(torch.empty_like(x), torch.empty((), dtype=torch.int64, device="meta"), x)
        assert scheduler.step_index == i + 1
    with pytest.raises(ValueError, match="all steps are done"):
        scheduler.step(torch.empty_like(x), torch.empty((), dtype=torch.int64, device="meta"), x)


@BOTH
def test_a_timestep_in_any_form_is_the_same_row(cls):
    scheduler = cls(**SD)
    scheduler.set_timesteps(10)
    x, output, z = random(0, 3)
    t = scheduler.timesteps[4]
    forms = [t, int(t), float(t), t.clone(), t.to(torch.float32), np.int64(int(t)), copy.copy(t)]
    steps = [scheduler.step(output, form, x, variance_noise=z).prev_sample for form in forms]
    assert all(torch.equal(steps[0], other) for other in steps[1:])
    assert torch.equal(copy.deepcopy(scheduler).step(output, t, x, variance_noise=z)[0], steps[0])
    with pytest.raises(ValueError, match="timestep 500 is not on the grid"):
        scheduler.step(output, 500, x)
    with pytest.raises(ValueError, match="generator or variance_noise"):
        scheduler.step(output, t, x, generator=torch.Generator(), variance_noise=z)
    with pytest.raises(ValueError, match="run set_timesteps before step"):
        cls().step(output, 999, x)


@BOTH
def test_explicit_timesteps_and_sigmas(cls):
    scheduler = cls(**SD)
    ays = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    for form in (ays, torch.tensor(ays), np.array(ays)):
        scheduler.set_timesteps(timesteps=form)
        assert scheduler.timesteps.tolist() == ays
        assert scheduler.num_inference_steps == 10
    # The published sigmas of that list are those of its timesteps.
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]
    scheduler.set_timesteps(sigmas=sigmas)
    assert np.abs(np.array(scheduler.timesteps.tolist()) - ays).max() <= 8
    own = schedule_of(scheduler.config).sigma
    scheduler.set_timesteps(sigmas=[float(own[t]) for t in (900, 500, 3)])
    assert scheduler.timesteps.tolist() == [900, 500, 3]
    for bad, message in (
        ({}, "exactly one"),
        ({"num_inference_steps": 3, "timesteps": [3, 2, 1]}, "exactly one"),
        ({"timesteps": [1, 2, 3]}, "decrease strictly"),
        ({"timesteps": [1000, 2]}, "within 0..999"),
        ({"timesteps": [10.5, 2]}, "integers"),
        ({"sigmas": [3.0, -1.0]}, "positive"),
        ({"sigmas": [3.0, 2.9999]}, "nearest to one timestep"),
        ({"num_inference_steps": 0}, "between 1 and T"),
        ({"num_inference_steps": 1001}, "between 1 and T"),
    ):
        with pytest.raises(ValueError, match=message):
            scheduler.set_timesteps(**bad)


@BOTH
def test_small_things_that_pipelines_use(cls):
    scheduler = cls(num_train_timesteps=500)
    assert len(scheduler) == 500
    assert (scheduler.order, scheduler.init_noise_sigma) == (1, 1.0)
    assert scheduler.timesteps.tolist() == list(range(499, -1, -1))
    x = random(0, 1)[0]
    assert scheduler.scale_model_input(x, 3) is x
    assert scheduler.alphas_cumprod.shape == (500,)


@BOTH
def test_add_noise_and_velocity_are_diffusers(cls):
    ours, theirs = cls(**SD), DDIMScheduler(**SD)
    x, z = random(0, 2, dtype=torch.float32)
    for t in (torch.tensor([0, 999]), torch.tensor([500]), torch.tensor(500)):
        for method in ("add_noise", "get_velocity"):
            got, want = (getattr(one, method)(x, z, t) for one in (ours, theirs))
            torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)
    half = ours.add_noise(x.half(), z.half(), torch.tensor([3, 4]))
    assert half.dtype == torch.float16


@BOTH
def test_a_learned_variance_is_left_out(cls):
    scheduler = cls()
    scheduler.set_timesteps(4)
    x, output, z = random(0, 3)
    both = torch.cat([output, 7 * z], dim=1)
    for t in scheduler.timesteps:
        a, b = (scheduler.step(o, t, x, variance_noise=z).prev_sample for o in (output, both))
        assert torch.equal(a, b)


@BOTH
def test_lists_of_generators_make_samples_independent_of_the_batch(cls):
    scheduler = cls(**SD)
    scheduler.set_timesteps(6)
    t, (x, output) = scheduler.timesteps[0], random(0, 2)

    def seeds():
        return [torch.Generator().manual_seed(i) for i in range(2)]

    both = scheduler.step(output, t, x, generator=seeds()).prev_sample
    one = scheduler.step(output[1:], t, x[1:], generator=seeds()[1:]).prev_sample
    assert torch.equal(both[1:], one)


# --- from other classes' configs ----------------------------------------------------------------

SOURCES = {
    # What a source with nothing stated means: (spacing, offset, to one, clipped).
    DDIMScheduler: ("leading", 0, True, True),
    DDPMScheduler: ("leading", 0, True, True),
    PNDMScheduler: ("leading", 0, False, False),
    EulerDiscreteScheduler: ("linspace", 0, True, False),
    DPMSolverMultistepScheduler: ("linspace", 0, True, False),
    UniPCMultistepScheduler: ("linspace", 0, True, False),
}


def meaning(scheduler):
    c = scheduler.config
    return c.timestep_spacing, c.steps_offset, c.set_alpha_to_one, c.clip_sample


@BOTH
@pytest.mark.parametrize("source", SOURCES)
def test_from_config_of_another_class_keeps_its_meaning(cls, source, tmp_path, caplog):
    # All defaults; and from its file, which does not say which values were defaults.
    bare = source()
    bare.save_pretrained(tmp_path)
    for ours in (cls.from_config(bare.config), cls.from_pretrained(tmp_path)):
        assert meaning(ours) == SOURCES[source]
        assert ours.config.beta_schedule == "linear"
    # A file that states little, as old ones on the hub do.
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": source.__name__}))
    assert meaning(cls.from_pretrained(tmp_path)) == SOURCES[source]
    # What is stated stays, and is overridden by the caller alone.
    stated = {**SD, "prediction_type": "v_prediction", "steps_offset": 1}
    stated |= {"timestep_spacing": "trailing"}
    ours = cls.from_config(source(**stated).config, timestep_spacing="even")
    assert {key: ours.config[key] for key in stated} == {**stated, "timestep_spacing": "even"}
    # final_sigmas_type is the other name of set_alpha_to_one.
    to_sigma_min = DPMSolverMultistepScheduler(final_sigmas_type="sigma_min").config
    assert cls.from_config(to_sigma_min).config.set_alpha_to_one is False
    # And back: the other class gets its own options again.
    back = source.from_config(ours.config)
    for key, value in source(**stated).config.items():
        if key[0] != "_" and key != "timestep_spacing":
            assert back.config[key] == value, key
    assert cls in ours.compatibles or source in ours.compatibles


@BOTH
def test_the_config_that_stable_diffusion_ships(cls):
    """PNDM's class in Stable Diffusion 2.1-base's scheduler_config.json, DDIM's keys in it."""
    shipped = {**SD, "_class_name": "PNDMScheduler", "_diffusers_version": "0.8.0"}
    shipped |= {"clip_sample": False, "num_train_timesteps": 1000, "prediction_type": "epsilon"}
    shipped |= {"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
    shipped |= {"trained_betas": None}
    others = (PNDMScheduler.from_config(shipped), EulerDiscreteScheduler.from_config(shipped))
    for config in (shipped, *(other.config for other in others)):
        assert meaning(cls.from_config(config))[1:] == (1, False, False)
    ours = cls.from_config(shipped)
    ours.set_timesteps(50)
    theirs = DDIMScheduler.from_config(shipped)
    theirs.set_timesteps(50)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist() == list(range(981, 0, -20))
    assert schedule_of(ours.config).final == pytest.approx(float(theirs.final_alpha_cumprod))


@BOTH
def test_leading_with_an_offset_never_leaves_the_schedule(cls):
    scheduler = cls(timestep_spacing="leading", steps_offset=1)
    for n in range(1, 1001):
        scheduler.set_timesteps(n)
        assert int(scheduler.timesteps[-1]) >= 0 and int(scheduler.timesteps[0]) <= 999


@BOTH
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
def test_compatibles_go_both_ways_in_silence(cls, caplog):
    names = {c.__name__ for c in cls().compatibles}
    assert names == {s.name for s in KarrasDiffusionSchedulers if s.name != "EDMEulerScheduler"}
    for name in names - {"DPMSolverSDEScheduler"}:  # that one needs torchsde
        cls.from_config(getattr(diffusers, name)().config)
    assert "not expected" not in caplog.text


@BOTH
def test_every_option_is_documented(cls):
    text = (SkippedStepScheduler.__doc__ or "") + (cls.__doc__ or "")
    for name in set(inspect.signature(cls.__init__).parameters) - {"self"}:
        assert f"`{name}`" in text, name
