"""`PlanScheduler`: the numbers of the loop for any plan, its file, its config, and what it refuses."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from conftest import bound
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from sampling import (
    Plan,
    SampleNoise,
    Schedule,
    churn,
    ddim,
    ddpm,
    deis,
    dpmpp,
    er_sde,
    ipndm,
    mix,
    mixpp,
    mixstar,
    restart,
    run,
    scale_eps,
    sde_dpmpp,
    skipped,
    splice,
    timesteps,
)
from sampling.denoise import Clip, NetworkDenoiser, Reading
from sampling.schedulers import MixScheduler, PlanScheduler, SkippedStepScheduler

SHAPE = (2, 3, 4, 4)
LINEAR, SCALED = Schedule.linear(), Schedule.scaled_linear()
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
RESTARTS = [[3, 2, 0.5, 3.0]]
KNOTS = [[-5, 0.4], [-1, 1], [3, 0]]


def network(x, t, condition=None):
    """Smooth, not linear, different at every timestep; with a learned variance."""
    t = float(np.float32(t))  # as networks embed it, and pipelines tell it
    output = torch.tanh(0.8 * x + 0.3 * np.cos(t / 90)) + 0.2 * torch.sin(2 * x)
    return output, torch.sin(x + t)


def grid(schedule, n=10, spacing="even"):
    return timesteps(schedule, n, spacing)


def plans(schedule) -> dict[str, Plan]:
    nodes = grid(schedule)
    return {
        "ddim": ddim(schedule, nodes),
        "skipped": skipped(schedule, nodes),
        "mix": mix(schedule, nodes, cutoff=291),
        "mixpp": mixpp(schedule, nodes, lo=291),
        "mixstar": mixstar(schedule, grid(schedule, 10, "karras+5+2"), knots=KNOTS, orders=[3]),
        "ddpm": ddpm(schedule, nodes, variance="learned"),
        "dpmpp": dpmpp(schedule, nodes, order=3),
        "sde_dpmpp": sde_dpmpp(schedule, nodes, order=2),
        "ipndm": ipndm(schedule, nodes, order=4),
        "deis": deis(schedule, nodes, order=3),
        "er_sde": er_sde(schedule, nodes, order=3),
        "churn": churn(schedule, nodes, s_churn=4.0),
        "euler churn": churn(schedule, nodes, s_churn=4.0, method="euler"),
        "restart": restart(schedule, nodes, RESTARTS),
    }


NAMES = list(plans(LINEAR))


def scheduled(scheduler, noise, x=None, dtype=torch.float32):
    """The pipeline's loop, which asks its network with the channels of a learned variance."""
    scheduler.noise = noise
    scheduler.set_timesteps(len(Plan.from_json(scheduler.config.plan)))
    x = noise.start().to(dtype) * scheduler.init_noise_sigma if x is None else x
    for t in scheduler.timesteps:
        output = torch.cat(network(x, t), dim=1)
        x = scheduler.step(output, t, x).prev_sample
    return x


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("prediction", "clip", "scale"),
    [("epsilon", False, None), ("v_prediction", True, None), ("epsilon", True, (1e-5, 1.01))],
)
def test_every_plan_gives_the_numbers_of_the_loop_to_the_bit(name, prediction, clip, scale):
    plan = plans(SCALED)[name]
    if scale:
        plan = scale_eps(plan, *scale, limited=clip)
    noise = SampleNoise(7, [3, 5], SHAPE[1:])
    reading = Reading(prediction, Clip() if clip else None)
    want = run(NetworkDenoiser(network, SCALED, reading), plan, noise)
    options = {**SD, "prediction_type": prediction, "clip_sample": clip}
    scheduler = PlanScheduler.from_json(plan.to_json(), **options)
    assert torch.equal(scheduled(scheduler, noise), want) and want.std() > 0.05
    assert scheduler.step_index == len(plan) == len(scheduler.timesteps)
    # Again, without set_timesteps in between.
    x = noise.start()
    for t in scheduler.timesteps:
        x = scheduler.step(torch.cat(network(x, t), dim=1), t, x).prev_sample
    assert torch.equal(x, want)


def test_what_the_option_eps_scale_does_is_what_a_plan_of_that_scale_does():
    plan, noise = mix(SCALED, grid(SCALED), cutoff=291), SampleNoise(0, [0, 1], SHAPE[1:])
    scaled = scale_eps(plan, 0, 1.01, limited=True)
    a = PlanScheduler.from_json(plan.to_json(), **SD, clip_sample=True, eps_scale=1.01)
    b = PlanScheduler.from_json(scaled.to_json(), **SD, clip_sample=True)
    assert torch.equal(scheduled(a, noise), scheduled(b, noise))
    c = PlanScheduler.from_json(plan.to_json(), **SD, clip_sample=True)
    assert not torch.equal(scheduled(b, noise), scheduled(c, noise))


@pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler])
def test_a_plan_of_another_scheduler_is_that_scheduler(cls):
    noise = SampleNoise(0, [0, 1], SHAPE[1:])
    ours = cls(**SD, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)
    ours.noise = noise
    ours.set_timesteps(12)
    same = PlanScheduler.from_json(ours.plan.to_json(), like=ours)
    x = noise.start()
    for t in ours.timesteps:
        x = ours.step(network(x, t)[0], t, x).prev_sample
    assert torch.equal(x, scheduled(same, noise))
    assert same.timesteps.tolist() == ours.timesteps.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["mix", "mixstar", "restart"])
def test_latents_in_another_precision(name, dtype):
    """Half precision is computed in float32 and rounded after every step; float64 as it is."""
    plan, noise = plans(SCALED)[name], SampleNoise(0, [0, 1], SHAPE[1:])
    scheduler = PlanScheduler.from_json(plan.to_json(), **SD)
    x = scheduled(scheduler, noise, dtype=dtype)
    assert x.dtype == dtype
    want = run(bound(network, SCALED), plan, SampleNoise(0, [0, 1], SHAPE[1:], dtype=torch.float64))
    size = float(want.abs().max())
    tolerance = {torch.float64: 1e-9, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(x.double(), want, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("name", ["skipped", "mixstar", "restart"])
def test_generators_make_samples_independent_of_the_batch(name):
    plan = plans(SCALED)[name]
    scheduler = PlanScheduler.from_json(plan.to_json(), **SD)
    start = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(0))

    def sampled(*seeds):
        scheduler.set_timesteps(len(plan))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = start[: len(seeds)] if len(seeds) > 1 else start[1:2]
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t)[0], t, x, generator=generators).prev_sample
        return x

    torch.testing.assert_close(sampled(1, 2, 3)[1:2], sampled(2))
    assert not torch.allclose(sampled(1, 2, 3)[1:2], sampled(4))


# --- the file, and whose model it is ----------------------------------------------------------------


def test_from_a_file_of_any_name_or_from_text(tmp_path):
    plan = plans(LINEAR)["mixstar"]
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    for source in (path, str(path), plan.to_json(), "\n" + plan.to_json()):
        scheduler = PlanScheduler.from_json(source)
        scheduler.set_timesteps(10)
        assert scheduler.plan.to_json() == plan.to_json()
        assert scheduler.timesteps.tolist() == plan.t.tolist()
        assert scheduler.timesteps.dtype == torch.int64


V = {"prediction_type": "v_prediction", "clip_sample": False}


def test_the_model_is_that_of_another_scheduler(tmp_path):
    """A scheduler, its config, one from a file, or a pipeline that has it."""
    text = plans(SCALED)["mix"].to_json()
    theirs = DDIMScheduler(**SD, **V)
    theirs.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    pipe = type("Pipe", (), {"scheduler": theirs, "config": {"_class_name": "Pipe"}})()
    for like in (theirs, theirs.config, stored, pipe):
        scheduler = PlanScheduler.from_json(text, like=like)
        assert (
            scheduler.config.prediction_type == "v_prediction" and not scheduler.config.clip_sample
        )
        assert scheduler.config.beta_schedule == "scaled_linear"
    # A class's own defaults count, too: DDPM clips; options override.
    clipping = PlanScheduler.from_json(text, like=DDPMScheduler(**SD))
    assert clipping.config.clip_sample
    assert not PlanScheduler.from_json(
        text, like=DDPMScheduler(**SD), clip_sample=False
    ).config.clip_sample
    # Where that scheduler would place its levels is of no effect.
    karras = EulerDiscreteScheduler(**SD, use_karras_sigmas=True)
    assert (
        scheduled(PlanScheduler.from_json(text, like=karras), SampleNoise(0, [0, 1], SHAPE[1:]))
        .isfinite()
        .all()
    )
    with pytest.raises(ValueError, match="use_karras_sigmas"):
        MixScheduler.from_config(karras.config)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_without_a_model_the_schedule_is_that_of_the_plan(name):
    schedule = Schedule.named(name)
    scheduler = PlanScheduler.from_json(mix(schedule, grid(schedule), cutoff=291).to_json())
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), schedule.alpha_bar, rtol=1e-5)
    assert scheduler.config.prediction_type == "epsilon" and not scheduler.config.clip_sample
    told = PlanScheduler.from_json(
        scheduler.config.plan, prediction_type="sample", clip_sample=True
    )
    assert told.config.prediction_type == "sample" and told.config.clip_sample


def refusal(*args, **options) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        PlanScheduler.from_json(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_noise_schedule_is_refused():
    text = plans(SCALED)["mix"].to_json()
    for like in (DDPMScheduler(), DDIMScheduler(beta_schedule="squaredcos_cap_v2")):
        said = refusal(text, like=like)
        assert said.startswith(
            "the plan is of another noise schedule: at t = 999 alpha and sigma are"
        )
        assert "like=pipe.scheduler" in said
    assert "another noise schedule" in refusal(text, beta_schedule="linear")
    assert "the last timestep here is 199" in refusal(text, **SD, num_train_timesteps=200)
    flow = ddim(Schedule.flow(np.linspace(1, 0.1, 10)), range(9, -1, -1)).to_json()
    assert "none of the noise schedules that go by a name" in refusal(flow)
    assert "begins at t = 1000" in refusal(flow, like=DDPMScheduler())
    assert "another noise schedule" in refusal(text, like=FlowMatchEulerDiscreteScheduler())
    betas = np.linspace(1e-4, 0.01, 1000)
    own = ddim(Schedule.from_betas(betas), [999, 500, 0]).to_json()
    assert "like=pipe.scheduler" in refusal(own)
    made = PlanScheduler.from_json(own, trained_betas=betas.tolist())
    assert len(made.config.trained_betas) == 1000


def test_what_is_no_plan_is_refused_in_one_line(tmp_path):
    text = plans(LINEAR)["mix"].to_json()
    bad = tmp_path / "bad.json"
    for content in ("", "[]", text[:80], text.replace('"t": 999', '"t": NaN'), "\x00"):
        bad.write_text(content)
        said = refusal(bad)
        assert said.startswith(f"{bad} is no plan") and said.endswith(
            "show_plan=FILE.json` writes one"
        )
    bad.write_bytes(b"\xff\xfe")
    assert "is no plan" in refusal(bad)
    assert "is no plan" in refusal(tmp_path)
    assert f"there is no plan at {tmp_path / 'none.json'}" in refusal(tmp_path / "none.json")
    assert "this is no JSON" in refusal(text[:80])
    assert "did you mean clip_sample?" in refusal(text, clip_smaple=True)
    with pytest.raises(ValueError, match=r"needs a plan: PlanScheduler.from_json\(path"):
        PlanScheduler()
    with pytest.raises(ValueError, match="needs a plan"):
        PlanScheduler.from_config(DDPMScheduler().config)
    with pytest.raises(ValueError, match="unknown prediction_type"):
        PlanScheduler.from_json(text, prediction_type="flow")


def test_a_plan_that_begins_with_noise_is_refused():
    plan = churn(LINEAR, grid(LINEAR, 10, "leading"), s_churn=4.0)
    assert not next(plan.rows()).calls
    said = refusal(plan.to_json())
    assert "adds noise before its first network call" in said and "spacing=trailing" in said
    PlanScheduler.from_json(churn(LINEAR, grid(LINEAR, 10, "trailing"), s_churn=4.0).to_json())


# --- the contract of a scheduler ----------------------------------------------------------------------


def test_the_number_of_steps_is_the_plans():
    plan = plans(LINEAR)["restart"]
    scheduler = PlanScheduler.from_json(plan.to_json())
    n = len(plan)
    assert n != len(grid(LINEAR))
    with pytest.raises(ValueError, match="run set_timesteps first"):
        _ = scheduler.plan
    for asked in (n - 1, n + 1, 50):
        with pytest.raises(
            ValueError,
            match=rf"makes {n} network calls, and {asked} steps .* num_inference_steps={n}",
        ):
            scheduler.set_timesteps(asked)
    for words in ({"sigmas": [1.0, 0.5]}, {"num_inference_steps": n, "mu": 1.0}):
        with pytest.raises(ValueError, match="leave sigmas and mu out"):
            scheduler.set_timesteps(**words)
    with pytest.raises(ValueError, match="leave timesteps out"):
        scheduler.set_timesteps(timesteps=[999, 0])
    for words in ({"timesteps": plan.t[plan.calls]}, {"num_inference_steps": n}):
        scheduler.set_timesteps(**words)
        assert scheduler.num_inference_steps == n


def test_config_is_json_and_comes_back(tmp_path, caplog):
    plan, noise = plans(SCALED)["mixstar"], SampleNoise(0, [0, 1], SHAPE[1:])
    scheduler = PlanScheduler.from_json(plan.to_json(), like=DDIMScheduler(**SD, **V))
    scheduler.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert stored["_class_name"] == "PlanScheduler"
    want = scheduled(scheduler, noise)
    for back in (
        PlanScheduler.from_pretrained(tmp_path),
        PlanScheduler.from_config(scheduler.config),
        PlanScheduler.from_json(stored["plan"], like=scheduler),
    ):
        assert back.config.plan == plan.to_json()
        assert torch.equal(scheduled(back, noise), want)
    # Another plan in its place, and back to another class.
    other = PlanScheduler.from_json(plans(SCALED)["ddim"].to_json(), like=scheduler)
    assert not torch.equal(scheduled(other, noise), want)
    ours = MixScheduler.from_config(scheduler.config)
    assert ours.config.prediction_type == "v_prediction"
    assert caplog.text == ""
    again = DDIMScheduler.from_config(scheduler.config)
    assert {k: again.config[k] for k in (*SD, *V)} == {**SD, **V}


def test_a_grid_of_another_class_survives_the_way_back():
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(**SD, timestep_spacing="leading")
    plan = PlanScheduler.from_json(plans(SCALED)["mix"].to_json(), like=theirs)
    back, straight = (MixScheduler.from_config(c) for c in (plan.config, theirs.config))
    for one in (back, straight):
        one.set_timesteps(7)
    assert back.timesteps.tolist() == straight.timesteps.tolist()


@pytest.mark.parametrize("begin", [0, 4])
@pytest.mark.parametrize("name", ["ddim", "skipped", "mix", "ddpm"])
def test_a_pipeline_that_begins_in_the_middle(name, begin):
    plan, noise = plans(SCALED)[name], SampleNoise(0, [0, 1], SHAPE[1:])
    rest = Plan(
        plan.name,
        **{
            f: getattr(plan, f)[begin:]
            for f in plan.__dataclass_fields__
            if f not in ("name", "start")
        },
    )
    want = run(bound(network, SCALED), rest, noise)
    scheduler = PlanScheduler.from_json(plan.to_json(), **SD)
    for said in (True, False):
        scheduler.set_timesteps(len(plan))
        scheduler.noise = noise
        if said:
            scheduler.set_begin_index(begin)
        x = noise.start()
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(torch.cat(network(x, t), dim=1), t, x).prev_sample
        assert torch.equal(x, want)


def test_where_a_plan_that_looks_back_may_begin():
    head, tail = dpmpp(SCALED, grid(SCALED), order=2), ddim(SCALED, grid(SCALED))
    plan = splice(head, tail, 500)
    scheduler = PlanScheduler.from_json(plan.to_json(), **SD)
    scheduler.set_timesteps(10)
    first = int((plan.t >= 500).sum())
    scheduler.set_begin_index(0)
    scheduler.set_begin_index(first)
    with pytest.raises(
        ValueError, match=r"cannot begin at its step 3, since step 3 looks back .* strength=1"
    ):
        scheduler.set_begin_index(2)
    x = torch.zeros(SHAPE)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="cannot begin at its step 3"):
        scheduler.step(x, scheduler.timesteps[2], x)
    # Heun's correction belongs to the jump before it.
    heun = PlanScheduler.from_json(plans(LINEAR)["restart"].to_json())
    heun.set_timesteps(len(plans(LINEAR)["restart"]))
    heun.set_begin_index(2)
    with pytest.raises(ValueError, match="cannot begin at its step 4"):
        heun.set_begin_index(3)


def test_images_are_noised_to_the_levels_of_the_plan():
    """At timesteps by the schedule, at levels between them by the plan."""
    x, z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for name in ("mix", "churn"):
        plan = plans(LINEAR)[name]
        scheduler = PlanScheduler.from_json(plan.to_json())
        scheduler.set_timesteps(len(plan))
        assert scheduler.timesteps.is_floating_point() == (name == "churn")
        for i in (0, 3, 5):
            row = [row for row in plan.rows() if row.calls][i]
            scheduler.set_begin_index(None)
            t = scheduler.timesteps[i : i + 1]
            want = row.alpha * x + row.sigma * z
            torch.testing.assert_close(scheduler.add_noise(x, z, t), want)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ddpm"])
def test_the_posterior_is_what_step_draws_from(name):
    plan, clip = plans(SCALED)[name], {"clip_sample": True, "clip_sample_range": 2.0}
    scheduler = PlanScheduler.from_json(plan.to_json(), **SD, **clip)
    scheduler.set_timesteps(len(plan))
    x, z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in scheduler.timesteps:
        output = network(x, t)[0]
        mean, std = scheduler.posterior(output, t, x)
        out = scheduler.step(output, t, x, variance_noise=z).prev_sample
        torch.testing.assert_close(out, mean + std * z, rtol=1e-10, atol=1e-10)
        x = out


def test_draws_that_are_not_one():
    plan = churn(LINEAR, grid(LINEAR), s_churn=4.0, method="euler")
    noisy = Plan.from_json(plan.to_json().replace('"noise": 0.0', '"noise": 0.25'))
    scheduler = PlanScheduler.from_json(noisy.to_json())
    scheduler.set_timesteps(len(noisy))
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = scheduler.timesteps[0]
    mean, std = scheduler.posterior(x, t, x)
    many = torch.randn(
        40000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    one = many * 0 + 0.3
    mean, std = scheduler.posterior(one, t, one)
    drawn = scheduler.step(one, t, one, generator=torch.Generator().manual_seed(2)).prev_sample
    assert float(drawn.std()) == pytest.approx(std, rel=0.02)
    assert float(drawn.mean()) == pytest.approx(float(mean.mean()), abs=0.02)
    scheduler.set_timesteps(len(noisy))
    with pytest.raises(ValueError, match=r"draws noise twice after timestep 999.*give generator"):
        scheduler.step(x, t, x, variance_noise=x)
    learned = PlanScheduler.from_json(plans(LINEAR)["ddpm"].to_json())
    learned.set_timesteps(10)
    with pytest.raises(ValueError, match=r"learned variance.*variance=fixed_small"):
        learned.posterior(torch.cat([x, x], dim=1), learned.timesteps[0], x)
    with pytest.raises(ValueError, match="the network predicts none"):
        learned.step(x, learned.timesteps[0], x, generator=torch.Generator())


@pytest.mark.parametrize("name", ["mix", "mixstar", "restart"])
def test_no_step_looks_at_the_device(name):
    plan = plans(LINEAR)[name]
    scheduler = PlanScheduler.from_json(plan.to_json())
    scheduler.set_timesteps(len(plan), device="meta")
    x = torch.empty(SHAPE, device="meta")
    for t in scheduler.timesteps:
        x = scheduler.step(torch.empty_like(x), t, x).prev_sample
    assert scheduler.step_index == len(plan)


def test_every_option_is_documented():
    text = (SkippedStepScheduler.__doc__ or "") + (PlanScheduler.__doc__ or "")
    for name in set(inspect.signature(PlanScheduler.__init__).parameters) - {"self"}:
        assert f"`{name}`" in text, name
    shared = inspect.signature(SkippedStepScheduler.__init__).parameters
    assert list(inspect.signature(PlanScheduler.__init__).parameters) == [*shared, "plan"]
