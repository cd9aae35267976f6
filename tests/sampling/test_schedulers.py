"""Our schedulers for diffusers: equal to its own where these are right, and its whole contract."""

from __future__ import annotations

import copy
import inspect
import json
import re

import numpy as np
import pytest
import torch
from conftest import bound
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch._subclasses.fake_tensor import FakeTensorMode

from sampling import (
    SPACINGS,
    SampleNoise,
    Schedule,
    mix,
    mixpp,
    run,
    skipped,
    stepping,
    timesteps,
)
from sampling.inherit import schedule_of
from sampling.schedulers import MixPlusPlusScheduler, MixScheduler, SkippedStepScheduler
from sampling.timesteps import NOISE_SPACINGS

ALL = pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler, MixPlusPlusScheduler])
# All up to 100, all that divide 1000, every third of the others; test_pairs.py has the coefficients of all.
COUNTS = sorted({*range(1, 101), *range(101, 1001, 3), 200, 250, 500, 999, 1000})
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
def test_step_counts_equal_diffusers_where_diffusers_is_right(spacing, offset, one):
    """First, last and some other row of plans of 1 to 1000 steps, prediction types in turn.

    diffusers' DDIM always jumps by T // N; where that is not the next timestep of its own grid
    it is wrong, and not compared.  Its DDPM looks the next timestep up, and is right everywhere.
    """
    options = {**SD, "timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": one}
    mixed, jump = MixScheduler(**options, cutoff=1000), SkippedStepScheduler(**options)
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
    for n in COUNTS:
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
    few = {"trailing": 40, "linspace": 3}
    assert compared > few.get(spacing, 3 * len(COUNTS) * (1 - offset / 3) - 20)


@pytest.mark.parametrize("spacing", ["even", "ddim"])
def test_step_counts_of_guided_diffusions_grids_equals_diffusers_ddpm(spacing):
    """diffusers has no such spacings, but its DDPM takes a list of timesteps."""
    ours = SkippedStepScheduler(timestep_spacing=spacing)
    theirs = in_float64(DDPMScheduler(clip_sample=False), ours)
    x, output = random(0, 2)
    compared = 0
    for n in COUNTS:
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
    assert compared > {"even": 3 * len(COUNTS) - 20, "ddim": 120}[spacing]


def assert_same_step(ours, theirs, seed, args, tolerance, **more):
    a, b = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    got, want = ours.step(*args, generator=a), theirs.step(*args, generator=b, **more)
    torch.testing.assert_close(got.prev_sample, want.prev_sample, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        got.pred_original_sample, want.pred_original_sample, rtol=1e-10, atol=1e-10
    )


def ddims(options):
    """Our schedulers that are DDIM, and its eta."""
    return (MixScheduler(**options, cutoff=1000), 0.0), (SkippedStepScheduler(**options), 1.0)


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
    ours = MixScheduler(**options, cutoff=1000)
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
    ours = MixScheduler(**options, cutoff=1000)
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


@ALL
def test_the_same_numbers_as_the_loop_of_this_repository(cls):
    """With per-sample noise a scheduler gives bit for bit what `run` gives."""
    schedule = Schedule.scaled_linear()
    grid = timesteps(1000, 25, "even")
    plan = {
        SkippedStepScheduler: skipped(schedule, grid),
        MixScheduler: mix(schedule, grid, cutoff=291),
        MixPlusPlusScheduler: mixpp(schedule, grid, lo=291),
    }[cls]
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
    sigma, log_snr = schedule.noise_level[291], schedule.log_snr[291]
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


@ALL
def test_pipelines_cannot_pass_eta(cls):
    step = inspect.signature(cls.step).parameters
    assert "eta" not in step and {"generator", "variance_noise", "return_dict"} <= set(step)
    assert {"timesteps", "sigmas", "device"} <= {*inspect.signature(cls.set_timesteps).parameters}


@ALL
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


@ALL
def test_options_are_refused_early(cls):
    with pytest.raises(ValueError, match="unknown prediction_type 'flow'"):
        cls(prediction_type="flow")
    with pytest.raises(ValueError, match="unknown beta_schedule 'exp'"):
        cls(beta_schedule="exp")
    with pytest.raises(ValueError, match=f"{cls.__name__} has no option 'cutof': it takes"):
        cls.from_config(DDIMScheduler().config, cutof=291)
    for bad in ("exponential", "leading+1.5", "", "sgm_uniform"):
        with pytest.raises(ValueError, match=f"unknown spacing '{re.escape(bad)}'"):
            cls(timestep_spacing=bad)
        with pytest.raises(ValueError, match=f"unknown spacing '{re.escape(bad)}'"):
            cls.from_config(DDIMScheduler().config, timestep_spacing=bad)
    with pytest.raises(ValueError, match="sections must be integers"):
        cls(timestep_spacing="90,many")
    with pytest.raises(ValueError, match="is published for T = 1000"):
        cls(timestep_spacing="ays_sd", num_train_timesteps=500)
    zero = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    with pytest.raises(ValueError, match="keeps some signal everywhere"):
        cls(timestep_spacing="karras", **zero)
    for known in (*SPACINGS, *NOISE_SPACINGS, "leading+1", "90,60,60,20,20"):
        cls(timestep_spacing=known)


def test_mix_refuses_bad_options_early():
    with pytest.raises(ValueError, match="needs prediction_type v_prediction or sample"):
        MixScheduler(rescale_betas_zero_snr=True)
    for bad in ({"cutoff": -1}, {"cutoff": 291, "cutoff_sigma": 1.0}, {"eta_head": 1.5}):
        with pytest.raises(ValueError, match=r"negative|exactly one|between 0 and 1"):
            MixScheduler(**bad)


@ALL
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


@ALL
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
    monkeypatch.setattr(stepping, "_same_memory", lambda a, b: False)
    scheduler.set_timesteps(8, device="meta")
    scheduler.set_begin_index(begin)
    assert (scheduler.begin_index, scheduler.step_index) == (begin, None)
    for i in range(begin, 8):
        scheduler.step(torch.empty_like(x), torch.empty((), dtype=torch.int64, device="meta"), x)
        assert scheduler.step_index == i + 1
    with pytest.raises(ValueError, match="all steps are done"):
        scheduler.step(torch.empty_like(x), torch.empty((), dtype=torch.int64, device="meta"), x)


@ALL
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


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [25, 100, 1000])
def test_a_timestep_in_half_precision_is_the_row_that_was_meant(cls, dtype, n):
    """bfloat16 knows 8 bits: 999 becomes 1000, and 1000 timesteps are 600 numbers."""
    ours, rounded = cls(**SD), cls(**SD)
    for one in (ours, rounded):
        one.set_timesteps(n)
    x, output, z = random(0, 3, dtype=torch.float32)
    for i, t in enumerate(ours.timesteps):
        if i > 30:
            break
        want = ours.step(output, t, x, variance_noise=z).prev_sample
        got = rounded.step(output, t.to(dtype), x, variance_noise=z).prev_sample
        assert torch.equal(got, want) and rounded.step_index == i + 1
    # From the middle, where the pipeline says so.
    rounded.set_timesteps(n)
    rounded.set_begin_index(n // 2)
    rounded.step(output, rounded.timesteps[n // 2].to(dtype), x)
    assert rounded.step_index == n // 2 + 1
    with pytest.raises(ValueError, match="is not on the grid"):
        rounded.step(output, torch.tensor(10000, dtype=dtype), x)


@ALL
def test_a_timestep_between_those_of_the_grid_is_refused(cls):
    scheduler = cls(**SD)
    scheduler.set_timesteps(10)
    x, output = random(0, 2)
    t = float(scheduler.timesteps[4])
    for between in (t + 0.42, torch.tensor(t + 0.42), torch.tensor(t - 1)):
        with pytest.raises(ValueError, match="is not on the grid"):
            scheduler.step(output, between, x)


@ALL
@pytest.mark.parametrize("what", ["noise", "variance_noise"])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 4, 4), (4, 3, 2, 4), (3, 4, 4)])
def test_noise_must_be_of_every_sample(cls, what, shape):
    """Never one sample's noise for several: by broadcasting all would get the same."""
    scheduler = cls(**SD)
    scheduler.set_timesteps(10)
    x, z = torch.zeros(4, 3, 4, 4), torch.zeros(shape)
    more = {"variance_noise": z} if what == "variance_noise" else {}
    if what == "noise":
        scheduler.noise = OnTheCPU(z)
    with pytest.raises(ValueError, match=f"{what} has shape") as error:
        scheduler.step(x, scheduler.timesteps[0], x, **more)
    assert str([*shape]) in str(error.value) and "[4, 3, 4, 4]" in str(error.value)
    # An id for each, twice the same in a batch that is doubled for guidance.
    scheduler.noise = SampleNoise(0, [5, 6, 5, 6], (3, 4, 4))
    out = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    assert torch.equal(out[:2], out[2:]) and not torch.equal(out[0], out[1])


class OnTheCPU:
    """Noise of the user's own, which knows the timestep alone."""

    def __init__(self, z):
        self.z = z

    def at(self, t):
        return self.z


@ALL
@pytest.mark.parametrize("how", ["noise", "variance_noise"])
def test_noise_comes_to_the_device_of_the_sample(cls, how):
    """An offloaded pipeline's .device is the CPU while it steps on the GPU."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        scheduler = cls(**SD)
        scheduler.set_timesteps(10)
        z = torch.empty(1, 4, 8, 8)
        scheduler.noise = OnTheCPU(z)
        more = {"variance_noise": z} if how == "variance_noise" else {}
        x = torch.empty(1, 4, 8, 8, device="cuda", dtype=torch.float16)
        out = scheduler.step(torch.empty_like(x), 999, x, **more).prev_sample
        assert (out.device.type, out.dtype) == ("cuda", torch.float16)


def test_numbers_of_numpy_and_torch_are_stored_as_json(tmp_path):
    t = timesteps(1000, 25, "even")[17]
    kinds = [t, np.float32(t), np.array(t), torch.tensor(int(t)), torch.tensor(float(t))]
    for i, cutoff in enumerate(kinds):
        for scheduler in (MixScheduler(cutoff=cutoff), MixPlusPlusScheduler(lo=cutoff, hi=cutoff)):
            scheduler.save_pretrained(tmp_path / str(i))
            back = type(scheduler).from_pretrained(tmp_path / str(i))
            assert "291" in str(scheduler)
            assert {k: back.config[k] for k in ("cutoff", "lo", "hi") if k in back.config} == {
                k: scheduler.config[k] for k in ("cutoff", "lo", "hi") if k in back.config
            }
            again = type(scheduler).from_config(scheduler.config, steps_offset=np.int64(1))
            again.to_json_string()
    betas = np.linspace(1e-4, 0.01, 1000)
    for form in (betas, torch.from_numpy(betas)):
        scheduler = MixScheduler(trained_betas=form, rescale_betas_zero_snr=np.bool_(False))
        assert json.loads(scheduler.to_json_string())["trained_betas"] == betas.tolist()


@pytest.mark.parametrize("T", [50, 100, 250, 500, 1000, 2000])
def test_the_default_cutoff_is_the_papers_share_of_the_timesteps(T):
    """291 of 1000: at T = 100 an unscaled one would silently be DDIM."""
    options = {"num_train_timesteps": T, "beta_schedule": "squaredcos_cap_v2"}
    for one in (
        MixScheduler.from_config(DDIMScheduler(**options).config),
        MixPlusPlusScheduler(**options),
    ):
        one.set_timesteps(50)
        rows = list(one.plan.rows())
        assert all((row.noise > 0) == (row.t >= 0.291 * T) for row in rows[:-1])
        assert 30 < sum(row.noise > 0 for row in rows) < 40
    if T < 291:
        with pytest.raises(ValueError, match=f"cutoff must be in 0..{T}"):
            MixScheduler(**options, cutoff=291)


def test_switches_beyond_the_schedule_are_refused_as_by_the_command():
    for bad in (2000, 1001, -1, float("nan"), float("inf"), "291"):
        with pytest.raises(ValueError, match=r"cutoff must be in 0\.\.1000"):
            MixScheduler(cutoff=bad)
        for option in ("lo", "hi"):
            with pytest.raises(ValueError, match=f"{option} must be in 0..1000"):
                MixPlusPlusScheduler(**{option: bad})
    for orders in ((2,), (1, 2, 3), 2, None, "22"):
        with pytest.raises(ValueError, match="orders"):
            MixPlusPlusScheduler(orders=orders)
    with pytest.raises(ValueError, match="lo = 500 > hi = 400"):
        MixPlusPlusScheduler(lo=500, hi=400)
    with pytest.raises(ValueError, match="there are 10 trained_betas for num_train_timesteps=1000"):
        MixScheduler(trained_betas=[0.01] * 10)


# --- the plan, and what a row draws from ------------------------------------------------------------


@ALL
def test_the_plan_is_public_and_shows_where_it_switches(cls):
    scheduler = cls(**SD)
    with pytest.raises(ValueError, match="run set_timesteps first"):
        _ = scheduler.plan
    scheduler.set_timesteps(25)
    schedule, grid = Schedule.scaled_linear(), timesteps(1000, 25, "even")
    assert scheduler.plan.t.tolist() == scheduler.timesteps.tolist()
    noisy = scheduler.plan.t[scheduler.plan.noise > 0]
    assert noisy.min() == {SkippedStepScheduler: grid[-2]}.get(cls, 291)
    lines = str(scheduler.plan).splitlines()
    assert len(lines) == 27 and ("291" in lines[0]) == (cls is not SkippedStepScheduler)
    want = skipped(schedule, grid)
    if cls is not MixPlusPlusScheduler:
        rows = scheduler.plan.t >= 291
        assert np.array_equal(scheduler.plan.x0[rows], want.x0[rows])


@pytest.mark.parametrize("begin", [0, 7])
@pytest.mark.parametrize("orders", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_mixpp_from_any_row_on_is_the_plan_of_the_rest(orders, begin):
    """A window with two sides; the first row of a run has nothing to look back at."""
    options = {**SD, "lo": 200, "hi": 800, "orders": orders}
    scheduler = MixPlusPlusScheduler(**options)
    scheduler.set_timesteps(25)
    grid = timesteps(1000, 25, "even")[begin:]
    plan = mixpp(
        Schedule.scaled_linear(),
        grid,
        lo=200,
        hi=800,
        stochastic_order=orders[0],
        deterministic_order=orders[1],
    )
    noise = SampleNoise(7, [3, 5], SHAPE[1:])
    want = run(
        bound(lambda x, t, condition: (network(x, t), None), Schedule.scaled_linear()), plan, noise
    )
    scheduler.noise = noise
    for how in ("said", "found", "again"):  # set_begin_index; older pipelines do not call it
        scheduler.set_timesteps(25)
        if how == "said":
            scheduler.set_begin_index(begin)
        if how == "again":  # after a whole run
            loop(scheduler, 25, seed=0, dtype=torch.float32)
        x = noise.start()
        scheduler.noise = noise
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        torch.testing.assert_close(x, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))
    assert scheduler.plan.t.tolist() == scheduler.timesteps.tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
def test_mixpp_of_order_one_is_mix_and_of_two_is_diffusers():
    options = {**SD, "timestep_spacing": "trailing"}
    mixed = MixScheduler(**options, cutoff=400)
    first = MixPlusPlusScheduler(**options, lo=400, orders=(1, 1))
    x, y = (loop(one, 20, seed=1) for one in (mixed, first))
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)
    for kind, lo in (("dpmsolver++", 1000), ("sde-dpmsolver++", 0)):
        theirs = DPMSolverMultistepScheduler(**options, algorithm_type=kind)
        ours = MixPlusPlusScheduler(**options, lo=lo)
        x, y = (loop(one, 20, seed=1, dtype=torch.float32) for one in (ours, theirs))
        torch.testing.assert_close(x, y, rtol=1e-3, atol=2e-3 * float(y.abs().max()))


@ALL
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_posterior_is_what_step_draws_from(cls, prediction):
    """Its mean without noise and its standard deviation with; Theorem 2's in the paper's rows."""
    scheduler = cls(**SD, prediction_type=prediction, clip_sample=True, clip_sample_range=2.0)
    scheduler.set_timesteps(12)
    x, z = random(0, 2)
    schedule = Schedule.scaled_linear()
    for i, t in enumerate(scheduler.timesteps):
        output = network(x, t).requires_grad_()
        mean, std = scheduler.posterior(output, t, x)
        assert scheduler.step_index == (i or None)
        assert torch.autograd.grad(mean.sum(), output)[0].isfinite().all()
        out = scheduler.step(output.detach(), t, x, variance_noise=z)
        torch.testing.assert_close(out.prev_sample, mean + std * z, rtol=1e-12, atol=1e-12)
        if cls is SkippedStepScheduler and i < 11:
            s = int(scheduler.timesteps[i + 1])
            a_t, a_s = schedule.abar(int(t)), schedule.abar(s)
            assert std**2 == pytest.approx((1 - a_s) / (1 - a_t) * (1 - a_t / a_s), rel=1e-10)
            want = a_t**0.5 * (1 - a_s) / (a_s**0.5 * (1 - a_t)) * x
            want += (a_s - a_t) / (a_s**0.5 * (1 - a_t)) * out.pred_original_sample
            torch.testing.assert_close(mean.detach(), want)
            log_prob = torch.distributions.Normal(mean, std).log_prob(out.prev_sample)
            want = -(z**2) / 2 - np.log(std) - np.log(2 * np.pi) / 2
            torch.testing.assert_close(log_prob.detach(), want)
        x = out.prev_sample
    half, _ = scheduler.posterior(output.half(), t, x.half()) if i else (None, None)
    assert cls is MixPlusPlusScheduler or half.dtype == torch.float32


def test_a_posterior_that_looks_back_needs_the_step_before():
    scheduler = MixPlusPlusScheduler(**SD)
    scheduler.set_timesteps(12)
    x, output = random(0, 2)
    with pytest.raises(ValueError, match="call posterior right before the step"):
        scheduler.posterior(output, scheduler.timesteps[3], x)
    scheduler.set_begin_index(3)
    mean, std = scheduler.posterior(output, scheduler.timesteps[3], x)
    assert std > 0 and mean.shape == x.shape


@ALL
def test_what_ddim_pipeline_passes_unasked(cls):
    """It passes eta = 0 without looking whether step takes it."""
    scheduler = cls(**SD)
    scheduler.set_timesteps(5)
    x, output, z = random(0, 3)
    t = scheduler.timesteps[0]
    want = scheduler.step(output, t, x, variance_noise=z).prev_sample
    for eta in (0, 0.0, None):
        words = {"eta": eta, "use_clipped_model_output": None, "variance_noise": z}
        assert torch.equal(scheduler.step(output, t, x, **words).prev_sample, want)
    with pytest.raises(ValueError, match=r"does not follow eta=0\.5"):
        scheduler.step(output, t, x, eta=0.5)
    if cls is SkippedStepScheduler:  # it is DDIM with eta = 1
        assert torch.equal(scheduler.step(output, t, x, eta=1.0, variance_noise=z)[0], want)
    with pytest.raises(ValueError, match="step has no option 'prev_timestep'"):
        scheduler.step(output, t, x, prev_timestep=3)


@ALL
def test_a_changed_prediction_type_is_followed(cls):
    """diffusers' idiom: scheduler.register_to_config(prediction_type=...)."""
    scheduler, other = cls(**SD), cls(**SD, prediction_type="v_prediction")
    scheduler.register_to_config(prediction_type="v_prediction")
    x, y = (loop(one, 5, seed=0) for one in (scheduler, other))
    assert torch.equal(x, y)


@ALL
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
    own = schedule_of(scheduler.config).noise_level
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


@ALL
def test_small_things_that_pipelines_use(cls):
    scheduler = cls(num_train_timesteps=500)
    assert len(scheduler) == 500
    assert (scheduler.order, scheduler.init_noise_sigma) == (1, 1.0)
    assert scheduler.timesteps.tolist() == list(range(499, -1, -1))
    x = random(0, 1)[0]
    assert scheduler.scale_model_input(x, 3) is x
    assert scheduler.alphas_cumprod.shape == (500,)


@ALL
def test_add_noise_and_velocity_are_diffusers(cls):
    ours, theirs = cls(**SD), DDIMScheduler(**SD)
    x, z = random(0, 2, dtype=torch.float32)
    for t in (torch.tensor([0, 999]), torch.tensor([500]), torch.tensor(500)):
        for method in ("add_noise", "get_velocity"):
            got, want = (getattr(one, method)(x, z, t) for one in (ours, theirs))
            torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-5)
    half = ours.add_noise(x.half(), z.half(), torch.tensor([3, 4]))
    assert half.dtype == torch.float16


@ALL
def test_a_learned_variance_is_left_out(cls):
    x, output, z = random(0, 3)
    both, ends = torch.cat([output, 7 * z], dim=1), []
    for given in (output, both):
        scheduler = cls()
        scheduler.set_timesteps(4)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(given, t, y, variance_noise=z).prev_sample
        ends.append(y)
    assert torch.equal(*ends)


@ALL
def test_lists_of_generators_make_samples_independent_of_the_batch(cls):
    scheduler = cls(**SD)
    scheduler.set_timesteps(6)
    t, (x, output) = scheduler.timesteps[0], random(0, 2)

    def seeds():
        return [torch.Generator().manual_seed(i) for i in range(2)]

    both = scheduler.step(output, t, x, generator=seeds()).prev_sample
    one = scheduler.step(output[1:], t, x[1:], generator=seeds()[1:]).prev_sample
    assert torch.equal(both[1:], one)


@ALL
def test_leading_with_an_offset_never_leaves_the_schedule(cls):
    scheduler = cls(timestep_spacing="leading", steps_offset=1)
    for n in COUNTS[::5]:
        scheduler.set_timesteps(n)
        assert int(scheduler.timesteps[-1]) >= 0 and int(scheduler.timesteps[0]) <= 999


@ALL
def test_every_option_is_documented(cls):
    text = (SkippedStepScheduler.__doc__ or "") + (cls.__doc__ or "")
    for name in set(inspect.signature(cls.__init__).parameters) - {"self"}:
        assert f"`{name}`" in text, name
