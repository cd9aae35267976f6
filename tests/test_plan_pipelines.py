"""One JSON plan: the same pictures from the command line, from Python's loop and from a pipeline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flows
import tiny_pipelines as tiny
import tiny_texts
import torch
from conftest import ROOT, done, refused
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

import sample
from files.images import load_samples
from models.diffusers import load
from sampling import Plan, SampleNoise, ddpm, run, scale_eps, timesteps
from sampling.borrowed import sampler_at
from sampling.schedulers import MixScheduler, PlanScheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of NumPy, in diffusers
    pytest.mark.filterwarnings("ignore:.*CPU [aA]utocast:UserWarning"),  # Mochi's network
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning"),
]
PROMPTS = ["a red bus", "the quick brown fox", "a lazy dog"]
STEPS, N = 6, 3
# Of every sampler: its options, `eps_scale` and `spacing`.
SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "skipped": {},
    "mix": {"cutoff": 291},
    "mixpp": {"lo": 500},
    "mixstar": {
        **{"knots": [[-5, 0.4], [-1, 1], [3, 0]], "orders": [3]},
        **{"eps_scale": 1.01, "spacing": "karras+5+2"},
    },
    "unipc": {},
    "dpmpp": {"order": 3},
    "churn": {"s_churn": 3.0},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("plans")
    for name, options in (("ddpm", {}), ("learned", {"variance_type": "learned_range"})):
        torch.manual_seed(0)
        net = tiny.pixel_unet()
        if options:
            net = type(net)(**{**net.config, "out_channels": 6})
        DDPMPipeline(net, DDPMScheduler(**options)).save_pretrained(root / name)
    return {
        "sd": tiny.stable_diffusion(root / "sd", "v_prediction"),
        "ddpm": root / "ddpm",
        "learned": root / "learned",
        "sd3": tiny_texts.sd3(root / "sd3"),
    }


@pytest.fixture(scope="module")
def sd(folders):
    """Stable Diffusion as the command's network, and as diffusers' pipeline with a scheduler of its own."""
    pipe = DiffusionPipeline.from_pretrained(folders["sd"])
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.enable_slicing()  # as the command decodes, one by one
    return load(str(folders["sd"]), PROMPTS), pipe, pipe.scheduler


def sampled(command, folder, *settings) -> np.ndarray:
    """The pictures of the command line."""
    words = ["model=diffusers", f"model.id={folder}", f"num_samples={N}", f"batch_size={N}"]
    if (folder / "tokenizer").exists():
        words.append(f"prompts=[{','.join(PROMPTS)}]")
    done(command(sample, *words, *settings))
    (out,) = (word.partition("=")[2] for word in settings if word.startswith("out="))
    return load_samples(out).images


def stored(model, sampler, limited=False, steps=STEPS) -> Plan:
    """The plan of a sampler, also in a file in this folder; test_any_pipeline.py has the command do that."""
    options = dict(SAMPLERS.get(sampler, {}))
    spacing, scale = options.pop("spacing", "even"), options.pop("eps_scale", None)
    plan = sampler_at(sampler, model.schedule_at(steps), steps, spacing, **options)
    plan = scale_eps(plan, 0, scale, limited=limited) if scale else plan
    Path("plan.json").write_text(plan.to_json())
    return plan


def opened(folder, kind=DiffusionPipeline):
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = PlanScheduler.from_json("plan.json", like=pipe.scheduler)
    return pipe


def rounded(images) -> np.ndarray:
    return (images * 255).round().astype(np.uint8)


TABLE = ("sampler=plan", "sampler.path=plan.json")


@pytest.mark.parametrize("sampler", [*SAMPLERS, "heun"])  # whose x_T is a little smaller
def test_a_plan_of_stable_diffusion(command, folders, sd, sampler):
    """To the bit, latents too: a network of v, its guidance and its decoder."""
    backbone, pipe, theirs = sd
    plan, noise = stored(backbone, sampler), SampleNoise(0, range(N), (4, 16, 16))
    latents = run(backbone.given(torch.arange(N)), plan, noise)
    pipe.scheduler = PlanScheduler.from_json("plan.json", like=theirs)
    pipe.scheduler.noise = noise
    words = {"latents": noise.start(), "num_inference_steps": len(plan)}
    assert torch.equal(pipe(PROMPTS, **words, output_type="latent").images, latents)
    if sampler in ("mixstar", "unipc"):
        images = rounded(pipe(PROMPTS, **words, output_type="np").images)
        assert np.array_equal(images, backbone.decode(latents)) and images.std() > 5
        assert np.array_equal(images, sampled(command, folders["sd"], *TABLE, "out=o"))


def by_the_pipeline(folder, noise, calls, monkeypatch) -> np.ndarray:
    """The pictures of DDPMPipeline, which draws x_T itself."""
    import diffusers.pipelines.ddpm.pipeline_ddpm as module

    pipe = opened(folder)
    pipe.scheduler.noise = noise
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **more: noise.start())
    images = rounded(pipe(batch_size=N, num_inference_steps=calls, output_type="np").images)
    monkeypatch.undo()
    return images


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_plan_of_pixels_which_are_clipped(command, folders, sampler, monkeypatch, tmp_path):
    """To the bit."""
    backbone, noise = load(str(folders["ddpm"])), SampleNoise(0, range(N), (3, 8, 8))
    plan = stored(backbone, sampler, limited=True)
    assert (plan.eps_scale != 1).any() == (sampler == "mixstar")
    images = sampled(command, folders["ddpm"], *TABLE, "out=o")
    assert np.array_equal(images, backbone.decode(run(backbone.given(None), plan, noise)))
    theirs = by_the_pipeline(folders["ddpm"], noise, len(plan), monkeypatch)
    assert np.array_equal(images, theirs) and images.std() > 5


def test_a_learned_variance(command, folders, monkeypatch):
    """Where the pipeline hands it on: to the bit."""
    backbone, noise = load(str(folders["learned"])), SampleNoise(0, range(N), (3, 8, 8))
    plan = ddpm(backbone.schedule, timesteps(1000, STEPS), variance="learned")
    Path("plan.json").write_text(plan.to_json())
    assert np.isfinite(plan.noise_high[:-1]).all()
    images = sampled(command, folders["learned"], *TABLE, "out=o")
    theirs = by_the_pipeline(folders["learned"], noise, len(plan), monkeypatch)
    assert np.array_equal(images, theirs) and images.std() > 5


@pytest.mark.parametrize("sampler", ["mixpp", "dpmpp"])
def test_a_plan_of_flow_matching(command, folders, sampler):
    """To the bit, where the command runs the pipeline as a whole, too."""
    plan = stored(load(str(folders["sd3"]), PROMPTS), sampler)
    images = sampled(command, folders["sd3"], *TABLE, f"steps={STEPS}", "out=o")
    pipe = opened(folders["sd3"])
    noise = pipe.scheduler.noise = SampleNoise(0, range(N), (16, 8, 8))
    theirs = pipe(PROMPTS, latents=noise.start(), num_inference_steps=len(plan), output_type="np")
    assert np.array_equal(images, rounded(theirs.images)) and images.std() > 5
    with pytest.raises(ValueError, match=f"makes {len(plan)} network calls, and 9 steps"):
        pipe(PROMPTS, num_inference_steps=9)


@pytest.mark.parametrize("name", ["flux", "wan", "ltx", "mochi"])
def test_what_pipelines_of_flow_matching_are_told(name):
    """The times and levels of the class that places them, and the numbers of Mix itself."""
    pipe, words = getattr(tiny_flows, name)()
    pipe.set_progress_bar_config(disable=True)
    words = {"num_inference_steps": STEPS, **words, "output_type": "latent"}
    theirs = pipe.scheduler
    made = pipe.scheduler = MixScheduler.from_config(theirs.config)

    def result():
        torch.manual_seed(3)
        out = pipe(**words, generator=torch.Generator().manual_seed(3))
        return (out.images if hasattr(out, "images") else out.frames).float()

    want = result()
    pipe.scheduler = PlanScheduler.from_json(made.plan.to_json(), like=theirs)
    assert torch.equal(result(), want)
    assert pipe.scheduler.timesteps.tolist() == made.timesteps.tolist()
    torch.testing.assert_close(pipe.scheduler.sigmas, made.sigmas)


@pytest.mark.parametrize("name", ["flux", "mochi"])
def test_levels_beyond_those_of_the_pipeline(name):
    """A plan may begin and end elsewhere than the pipeline would: the network is told its own levels."""
    pipe, _ = getattr(tiny_flows, name)()
    ours = MixScheduler.from_config(pipe.scheduler.config)
    mu = {"mu": 0.6} if name == "flux" else {}
    ours.set_timesteps(sigmas=np.array([0.9, 0.6, 0.01]), **mu)
    plan = ours.plan
    followed = PlanScheduler.from_json(plan.to_json(), like=pipe.scheduler)
    followed.set_timesteps(sigmas=np.array([0.7, 0.6, 0.5]), **mu)
    torch.testing.assert_close(followed.timesteps, ours.timesteps)
    torch.testing.assert_close(followed.sigmas, ours.sigmas)


def test_class_labels(command, tmp_path, monkeypatch):
    """DiT's pipeline doubles its batch, and guides in another order of operations."""
    import diffusers.pipelines.dit.pipeline_dit as module

    pipe = tiny.dit()
    for value in pipe.transformer.parameters():
        torch.nn.init.normal_(value, std=0.2)
    pipe.save_pretrained(tmp_path / "dit")
    stored(load(str(tmp_path / "dit")), "skipped")
    images = sampled(command, tmp_path / "dit", *TABLE, "label=3", "out=o").astype(int)
    pipe = opened(tmp_path / "dit")
    pipe.scheduler.noise = SampleNoise(0, [*range(N)] * 2, (4, 8, 8))
    start = SampleNoise(0, range(N), (4, 8, 8)).start()
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **more: start)
    theirs = rounded(pipe([3] * N, num_inference_steps=STEPS, output_type="np").images)
    assert abs(theirs.astype(int) - images).max() <= 1 and images.std() > 5


def test_rows_before_the_first_network_call(command, folders):
    """Noise on a grid that begins below the last timestep: a pipeline that runs as a whole has it, too."""
    settings = ["sampler=churn", "sampler.s_churn=3", "spacing=leading", f"steps={STEPS}"]
    direct = sampled(command, folders["ddpm"], *settings, "out=direct").astype(int)
    more = ["model.as_pipeline=true", "out=whole", "show_plan=plan.json"]
    whole = sampled(command, folders["ddpm"], *settings, *more).astype(int)
    assert abs(direct - whole).max() <= 1 and direct.std() > 5
    with pytest.raises(ValueError, match="adds noise before its first network call"):
        opened(folders["ddpm"])


def test_a_pipeline_that_was_saved_with_its_plan(command, folders, tmp_path):
    plan = stored(load(str(folders["ddpm"])), "mixstar")
    pipe = opened(folders["ddpm"])
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    assert index["scheduler"] == ["sampling.plan_scheduler", "PlanScheduler"]
    back = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(back.scheduler) is PlanScheduler
    assert back.scheduler.config.plan == plan.to_json()
    # And the commands sample that folder as the one that it was made of.
    a = sampled(command, folders["ddpm"], "sampler=ddim", "steps=3", "out=a")
    assert np.array_equal(
        a, sampled(command, tmp_path / "saved", "sampler=ddim", "steps=3", "out=b")
    )


def test_image_to_image(sd, monkeypatch, tmp_path):
    """A plan that looks back at nothing begins anywhere; others say that they cannot."""
    monkeypatch.chdir(tmp_path)
    backbone, base, theirs = sd
    pipe = StableDiffusionImg2ImgPipeline(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    picture = np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    words = {"prompt": PROMPTS[0], "image": Image.fromarray(picture), "strength": 0.5}
    words |= {"num_inference_steps": STEPS, "output_type": "np"}

    def result(scheduler):
        pipe.scheduler = scheduler
        return pipe(**words, generator=torch.Generator().manual_seed(3)).images

    stored(backbone, "mix")
    ours = result(PlanScheduler.from_json("plan.json", like=theirs))
    assert (pipe.scheduler.begin_index, pipe.scheduler.step_index) == (STEPS // 2, STEPS)
    mixed = MixScheduler.from_config(theirs.config, timestep_spacing="even")
    assert np.array_equal(ours, result(mixed))
    stored(backbone, "mixstar")
    with pytest.raises(ValueError, match=r"cannot begin at its step 4, .*: use strength=1, or a "):
        result(PlanScheduler.from_json("plan.json", like=theirs))


def test_a_plan_of_another_model_is_refused_alike(command, folders, sd):
    stored(load(str(folders["ddpm"])), "mix")
    said = "another noise schedule"
    with pytest.raises(ValueError, match=said):
        PlanScheduler.from_json("plan.json", like=sd[2])
    words = ["model=diffusers", f"model.id={folders['sd']}", "prompts=[a bus]", *TABLE, "out=o"]
    refused(command(sample, *words), said)


def test_the_example_of_the_documentation_runs(command, sd, monkeypatch):
    """As it stands, but for the pipeline that from_pretrained finds."""
    text = (ROOT / "docs/pipelines.md").read_text().split("## Plans from files")[1]
    (block,) = re.findall(r"```python\n(.*?)```", text.split("\n## ")[0], re.S)
    backbone, pipe, pipe.scheduler = sd
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda id: pipe)
    plan, scope = stored(backbone, "mixstar", steps=10), {}
    exec(block, scope)
    assert scope["prompts"] == PROMPTS[:2] and "skipped_step.schedulers" in block
    x = run(backbone.given(torch.arange(2)), plan, SampleNoise(0, range(2), (4, 16, 16)))
    pictures = np.stack([np.asarray(image) for image in scope["images"]])
    assert np.array_equal(pictures, backbone.decode(x))
