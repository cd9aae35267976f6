"""Our schedulers in real diffusers pipelines, tiny ones with all components, and `sample.py` on them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import skipped_step.schedulers as installed
import tiny_pipelines as tiny
import torch
from conftest import ROOT
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

import sample
from models.stable_diffusion.backbone import load
from sampling import SampleNoise, mix, run, timesteps
from sampling.schedulers import MixPlusPlusScheduler, MixScheduler, SkippedStepScheduler

ALL = pytest.mark.parametrize("cls", [SkippedStepScheduler, MixScheduler, MixPlusPlusScheduler])
PROMPTS = ["a cat on a mat", "a chair designed to look like an octopus", "a red bus"]


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Folders of pipelines in the published layout."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {
        "sd": tiny.stable_diffusion(folder / "sd"),
        "v": tiny.stable_diffusion(folder / "v", "v_prediction"),
        "xl": tiny.stable_diffusion_xl(folder / "xl"),
    }


def open_pipeline(path, scheduler, kind=DiffusionPipeline, **options):
    pipe = kind.from_pretrained(path)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(result) -> np.ndarray:
    """As the pipeline would save them: uint8."""
    return (result.images * 255).round().astype(np.uint8)


def seeded():
    return torch.Generator().manual_seed(3)


# --- every pipeline with all three schedulers, saved and loaded back -----------------------------------


@ALL
@pytest.mark.parametrize("name", ["sd", "v", "xl"])
def test_text_to_image(cls, name, pipelines, tmp_path):
    pipe = open_pipeline(pipelines[name], cls)
    words = {"num_inference_steps": 6, "output_type": "np"}
    images = pixels(pipe(PROMPTS[:2], generator=seeded(), **words))
    assert images.shape == (2, 32, 32, 3) and images.std() > 5
    # Another seed, another image; stochastic steps follow the generator, too.
    assert (
        images != pixels(pipe(PROMPTS[:2], generator=torch.Generator().manual_seed(4), **words))
    ).any()
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == [
        "sampling.schedulers",
        cls.__name__,
    ]
    back = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(back.scheduler) is cls
    back.set_progress_bar_config(disable=True)
    assert np.array_equal(images, pixels(back(PROMPTS[:2], generator=seeded(), **words)))
    # And in place of another scheduler while loading.
    given = DiffusionPipeline.from_pretrained(
        pipelines[name], scheduler=cls.from_config(pipe.scheduler.config)
    )
    given.set_progress_bar_config(disable=True)
    assert np.array_equal(images, pixels(given(PROMPTS[:2], generator=seeded(), **words)))


def test_a_pipeline_saved_with_the_installed_package_names_it(pipelines, tmp_path):
    pipe = open_pipeline(pipelines["sd"], installed.MixScheduler, cutoff=400)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["skipped_step.schedulers", "MixScheduler"]
    back = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(back.scheduler) is installed.MixScheduler
    assert back.scheduler.config.cutoff == 400


@ALL
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_pipelines_eta_changes_nothing(cls, eta, pipelines):
    pipe = open_pipeline(pipelines["sd"], cls)
    words = {"num_inference_steps": 5, "output_type": "np"}
    a = pixels(pipe(PROMPTS[0], generator=seeded(), **words))
    b = pixels(pipe(PROMPTS[0], generator=seeded(), eta=eta, **words))
    assert np.array_equal(a, b)
    # And is not what eta = 0 would be.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert (a != pixels(pipe(PROMPTS[0], generator=seeded(), **words))).any()


@pytest.mark.parametrize("name", ["sd", "v", "xl"])
@pytest.mark.parametrize("steps", [7, 20])
def test_extremes_of_mix_are_ddim_in_the_same_pipeline(name, steps, pipelines):
    pipe = open_pipeline(pipelines[name], MixScheduler, cutoff=1000)
    words = {"num_inference_steps": steps, "output_type": "np"}
    ours = pixels(pipe(PROMPTS[0], generator=seeded(), **words)).astype(int)
    pipe = open_pipeline(pipelines[name], DDIMScheduler, clip_sample=False)
    theirs = pixels(pipe(PROMPTS[0], generator=seeded(), **words)).astype(int)
    assert np.abs(ours - theirs).max() <= 1  # 2^-24 in x can move a pixel's rounding
    pipe = open_pipeline(pipelines[name], SkippedStepScheduler)
    ours = pixels(pipe(PROMPTS[0], generator=seeded(), **words)).astype(int)
    pipe = open_pipeline(pipelines[name], DDIMScheduler, clip_sample=False)
    theirs = pixels(pipe(PROMPTS[0], generator=seeded(), eta=1.0, **words)).astype(int)
    assert np.abs(ours - theirs).max() <= 1


@ALL
@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_image_to_image(cls, strength, pipelines):
    start = Image.fromarray(
        np.random.default_rng(0).integers(256, size=(32, 32, 3), dtype=np.uint8)
    )
    pipe = open_pipeline(pipelines["sd"], cls, StableDiffusionImg2ImgPipeline)
    words = {"prompt": PROMPTS[0], "image": start, "strength": strength, "output_type": "np"}
    ours = pixels(pipe(num_inference_steps=10, generator=seeded(), **words)).astype(int)
    # It began in the middle of the plan, and went to its end.
    begin = 10 - int(10 * strength)
    assert (pipe.scheduler.begin_index, pipe.scheduler.step_index) == (begin, 10)
    if cls is SkippedStepScheduler:
        pipe = open_pipeline(
            pipelines["sd"], DDIMScheduler, StableDiffusionImg2ImgPipeline, clip_sample=False
        )
        theirs = pixels(pipe(num_inference_steps=10, generator=seeded(), eta=1.0, **words))
        assert np.abs(ours - theirs.astype(int)).max() <= 1


@ALL
def test_inpainting(cls, pipelines):
    rng = np.random.default_rng(1)
    start = Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    words = {"prompt": PROMPTS[1], "image": start, "mask_image": Image.fromarray(mask)}
    words |= {"height": 32, "width": 32, "output_type": "np", "strength": 0.9}
    pipe = open_pipeline(pipelines["sd"], cls, StableDiffusionInpaintPipeline)
    ours = pixels(pipe(num_inference_steps=8, generator=seeded(), **words)).astype(int)
    assert pipe.scheduler.step_index == 8
    if cls is SkippedStepScheduler:
        pipe = open_pipeline(
            pipelines["sd"], DDIMScheduler, StableDiffusionInpaintPipeline, clip_sample=False
        )
        theirs = pixels(pipe(num_inference_steps=8, generator=seeded(), eta=1.0, **words))
        assert np.abs(ours - theirs.astype(int)).max() <= 1


@ALL
def test_an_unconditional_pixel_pipeline(cls, tmp_path):
    torch.manual_seed(2)
    net = tiny.pixel_unet("Attn").eval()
    theirs = DDPMScheduler()
    pipe = DDPMPipeline(net, cls.from_config(theirs.config))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.clip_sample  # as DDPM's class does without saying so
    words = {"batch_size": 2, "num_inference_steps": 9, "output_type": "np"}
    ours = pixels(pipe(generator=seeded(), **words))
    pipe.save_pretrained(tmp_path)
    back = DDPMPipeline.from_pretrained(tmp_path)
    back.set_progress_bar_config(disable=True)
    assert np.array_equal(ours, pixels(back(generator=seeded(), **words)))
    if cls is SkippedStepScheduler:
        pipe.scheduler = theirs
        want = pixels(pipe(generator=seeded(), **words)).astype(int)
        assert np.abs(ours.astype(int) - want).max() <= 1


@ALL
def test_ddim_pipeline_of_pixels(cls):
    """It passes eta and use_clipped_model_output to step without asking whether it takes them."""
    torch.manual_seed(2)
    theirs = DDIMScheduler()
    pipe = DDIMPipeline(tiny.pixel_unet().eval(), theirs)
    pipe.set_progress_bar_config(disable=True)
    words = {"batch_size": 2, "num_inference_steps": 10, "output_type": "np"}
    eta = {SkippedStepScheduler: 1.0, MixScheduler: 0.0}.get(cls)
    if eta is not None:
        clipped = {"eta": eta, "use_clipped_model_output": True}
        want = pixels(pipe(generator=seeded(), **words, **clipped)).astype(int)
    pipe.scheduler = cls.from_config(
        theirs.config, **({"cutoff": 1000} if cls is MixScheduler else {})
    )
    ours = pixels(pipe(generator=seeded(), **words))
    assert ours.shape == (2, 8, 8, 3) and ours.std() > 5
    if eta is not None:
        assert np.abs(ours.astype(int) - want).max() <= 1
    with pytest.raises(ValueError, match="does not follow eta"):
        pipe(eta=0.3, **words)
    # Its __init__ makes a DDIMScheduler of whatever it is given: set ours afterwards.
    assert type(DDIMPipeline(pipe.unet, pipe.scheduler).scheduler) is DDIMScheduler


EMBEDDED = {
    f"{which}prompt_embeds": torch.randn(
        1, 5, 12, generator=torch.Generator().manual_seed(len(which))
    )
    for which in ("", "negative_")
}
MASKS = {
    f"{which}prompt_attention_mask": torch.ones(1, 5, dtype=torch.int64)
    for which in ("", "negative_")
}


@ALL
@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_transformers(cls, name):
    """Their networks predict a variance, too; Skipped-Step is DDPM's fixed-small variance."""
    pipe = getattr(tiny, name)()
    pipe.set_progress_bar_config(disable=True)
    words = {"num_inference_steps": 5, "output_type": "np"}
    if name == "dit":
        words |= {"class_labels": [1, 2], "guidance_scale": 4.0}
    else:
        words |= {"negative_prompt": None, **EMBEDDED, **MASKS, "use_resolution_binning": False}
        words |= {"height": 16, "width": 16, "num_images_per_prompt": 2}
    theirs = pipe.scheduler
    pipe.scheduler = cls.from_config(theirs.config)
    torch.manual_seed(0)  # DiT's pipeline passes no generator to step
    ours = pixels(pipe(generator=seeded(), **words))
    assert ours.shape == (2, 16, 16, 3) and ours.std() > 5
    assert pipe.scheduler.step_index == 5
    if cls is SkippedStepScheduler:
        pipe.scheduler = theirs
        torch.manual_seed(0)
        want = pixels(pipe(generator=seeded(), **words)).astype(int)
        assert np.abs(ours.astype(int) - want).max() <= 1
    # Noise of (seed, i): an id for every sample that is stepped, and a line that says so.
    pipe.scheduler = cls.from_config(theirs.config)
    pipe.scheduler.noise = SampleNoise(5, [0], (4, 8, 8))
    batch = 4 if name == "dit" else 2
    with pytest.raises(ValueError, match=rf"the pipeline steps \[{batch}, 4, 8, 8\] at once"):
        pipe(generator=seeded(), **words)
    pipe.scheduler.noise = SampleNoise(5, [0, 1, 0, 1][:batch], (4, 8, 8))
    assert pixels(pipe(generator=seeded(), **words)).shape == ours.shape


@ALL
def test_video(cls):
    """CogVideoX: [B, F, C, H, W], v-prediction, its own shift of the signal-to-noise ratio."""
    pipe = tiny.cogvideox()
    pipe.set_progress_bar_config(disable=True)
    words = {**EMBEDDED, "prompt": None, "height": 32, "width": 32, "num_frames": 9}
    words |= {"num_inference_steps": 5, "output_type": "latent"}
    theirs = pipe.scheduler
    pipe.scheduler = cls.from_config(
        theirs.config, **({"cutoff": 1000} if cls is MixScheduler else {})
    )
    ours = pipe(generator=seeded(), **words).frames
    assert ours.shape == (1, 3, 4, 4, 4) and ours.std() > 0.1
    if cls is MixScheduler:
        pipe.scheduler = theirs
        want = pipe(generator=seeded(), **words).frames
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4)


# --- the same model through sample.py --------------------------------------------------------------


def words_of(path, tmp_path, *more):
    (tmp_path / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    words = ["model=sd21", f"model.id={path}", "model.precision=fp32", "prompts=prompts.txt"]
    return [*words, "out=here", *more]


def sampled(tmp_path):
    with np.load(tmp_path / "here/samples.npz") as file:
        return file["arr_0"], file["arr_1"]


@pytest.mark.parametrize("name", ["sd", "v", "xl"])
@pytest.mark.parametrize(
    ("sampler", "cls"), [("mix", MixScheduler), ("skipped", SkippedStepScheduler)]
)
def test_sample_py_gives_the_images_of_the_pipeline(
    command, pipelines, tmp_path, name, sampler, cls
):
    """The same seed and prompts: bit for bit, with this repository's noise in the pipeline."""
    words = words_of(pipelines[name], tmp_path, f"sampler={sampler}", "steps=20", "seed=5")
    status, out, err = command(
        sample, *words, "spacing=leading+1", "batch_size=3", "model.set_alpha_to_one=null"
    )
    assert status == 0, err
    assert "3 samples, 20 network calls each (two evaluations a call)" in out
    images, labels = sampled(tmp_path)
    assert labels.tolist() == [0, 1, 2]
    assert (tmp_path / "here/prompts.txt").read_text().splitlines() == PROMPTS
    pipe = open_pipeline(pipelines[name], cls)
    noise = SampleNoise(5, range(3), (4, 16, 16))
    pipe.scheduler.noise = noise
    pipe.vae.enable_slicing()
    theirs = pipe(
        PROMPTS, num_inference_steps=20, latents=noise.start(), output_type="np", guidance_scale=7.5
    )
    assert np.array_equal(images, pixels(theirs))


def test_sample_py_one_prompt_at_a_time(command, pipelines, tmp_path):
    """Sample i is of (seed, prompt i) alone: not of the batch, the shard or what was resumed."""
    words = words_of(pipelines["sd"], tmp_path, "steps=4")
    assert command(sample, *words, "num_samples=2", "batch_size=1", "shard_size=1")[0] == 0
    assert command(sample, *words, "batch_size=1", "shard_size=1")[0] == 0
    images, _ = sampled(tmp_path)
    assert command(sample, *words, "batch_size=3", "out=there")[0] == 0
    with np.load(tmp_path / "there/samples.npz") as file:
        other = file["arr_0"]
    assert np.abs(images.astype(int) - other).max() <= 1
    manifest = json.loads((tmp_path / "here/manifest.json").read_text())
    assert manifest["config"]["prompts"]["count"] == 3
    assert manifest["config"]["evaluations_per_call"] == 2
    assert manifest["config"]["model"]["id"] == "pipeline"
    assert manifest["nfe"] == 4
    # Other prompts are other samples.
    (tmp_path / "prompts.txt").write_text("a dog\nb\nc\n")
    status, _, err = command(sample, *words)
    assert status == 2 and "holds samples of another config (prompts.sha256" in err


def test_more_images_of_the_same_prompts(command, pipelines, tmp_path):
    words = words_of(pipelines["sd"], tmp_path, "steps=2", "label=balanced", "num_samples=5")
    assert command(sample, *words)[0] == 0
    images, labels = sampled(tmp_path)
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert (images[0] != images[3]).any()
    words = words_of(pipelines["sd"], tmp_path, "steps=2")
    assert command(sample, *words, "prompts=[a cat,a dog]", "out=two")[0] == 0
    assert (tmp_path / "two/prompts.txt").read_text() == "a cat\na dog\n"


def test_guidance_precision_and_size(pipelines):
    """What the options do, against the formula and against the pipeline."""
    path = str(pipelines["sd"])
    guided, plain = load(path, PROMPTS), load(path, PROMPTS, guidance_scale=1)
    assert (guided.evaluations_per_call, plain.evaluations_per_call) == (2, 1)
    assert guided.schedule.final == 1 and not guided.clip
    labels = torch.tensor([1, 2])
    x = SampleNoise(0, [0, 1], guided.shape).start()
    both = guided.embed(labels)["encoder_hidden_states"]
    assert both.shape == (4, 77, 32)
    with torch.no_grad():
        with_prompt = plain.network(x, 500, plain.embed(labels))[0]
        without = plain.network(x, 500, {"encoder_hidden_states": both[:2]})[0]
        got = guided.network(x, 500, guided.embed(labels))[0]
    torch.testing.assert_close(got, without + 7.5 * (with_prompt - without), rtol=1e-4, atol=1e-5)
    away = load(path, PROMPTS, negative_prompt="blurry")
    assert not torch.equal(away.embed(labels)["encoder_hidden_states"][:2], both[:2])
    assert torch.equal(away.embed(labels)["encoder_hidden_states"][2:], both[2:])
    # Half precision is near, and its own weights have their own digest.
    grid = timesteps(1000, 5, "leading+1")
    images = {}
    for precision in ("fp32", "bf16", "fp16"):
        model = load(path, PROMPTS, precision=precision)
        plan = mix(model.schedule, grid, cutoff=291)
        x = run(model.given(labels), plan, SampleNoise(0, [0, 1], model.shape))
        assert x.dtype == torch.float32
        images[precision] = model.decode(x).astype(int)
    assert np.abs(images["fp32"] - images["fp16"]).mean() < 1
    assert np.abs(images["fp32"] - images["bf16"]).mean() < 4
    larger = load(path, PROMPTS, image_size=48)
    assert (larger.shape, larger.media.size) == ((4, 24, 24), (48, 48, 3))
    assert larger.media.stored_bytes == 2 * 48 * 48 * 3
    x = run(larger.given(labels[:1]), plan, SampleNoise(0, [0], larger.shape))
    assert larger.decode(x).shape == (1, 48, 48, 3)


def test_a_vae_that_needs_float32_gets_it(pipelines, monkeypatch):
    seen = []
    model = load(str(pipelines["xl"]), PROMPTS, precision="fp16")
    x = SampleNoise(0, [0, 1], model.shape).start()
    real = AutoencoderKL._decode

    def watched(self, z, *args, **options):
        seen.append((z.dtype, len(z)))
        return real(self, z, *args, **options)

    monkeypatch.setattr(AutoencoderKL, "_decode", watched)
    model.decode(x)
    assert seen == [(torch.float32, 1)] * 2  # and one image at a time


def test_no_guidance_look_at_the_device(pipelines):
    """Nothing in a denoising step waits for the device: on meta every look raises."""
    model = load(str(pipelines["sd"]), PROMPTS)
    condition = {k: v.to("meta") for k, v in model.embed(torch.tensor([0])).items()}
    model.network.unet.to("meta")
    out, _ = model.network(torch.empty(1, *model.shape, device="meta"), 500, condition)
    assert out.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["prompts=null"], "needs prompts: prompts=FILE with one a line"),
        (["prompts=absent.txt"], "no prompts at absent.txt"),
        (["num_samples=4"], "there are 3 prompts for 4 samples"),
        (["label=3"], r"label must be in 0..2"),
        (["model.id=./nothing"], "there is no folder ./nothing, and a hub id is OWNER/NAME"),
        (["model.id=here"], "there is no folder here"),
        (["model.guidance_scale=-1"], "must be a number of at least 0"),
        (["model.guidance_scale=high"], "must be a number, got 'high'"),
        (["model.image_size=50"], "must be a multiple of 4"),
        (["model.precision=fp8"], "unknown precision 'fp8'"),
        (["guidance=classifier"], "model sd21 has no classifier"),
        (["sampler=ddpm"], "use variance=fixed_small or fixed_large"),
    ],
)
def test_mistakes_are_one_line(command, pipelines, tmp_path, change, message):
    status, _, err = command(sample, *words_of(pipelines["sd"], tmp_path), "steps=2", *change)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: ") and message in err.splitlines()[-1], err
    assert not (tmp_path / "here/samples.npz").exists()


def test_a_model_without_text_takes_no_prompts(command):
    status, _, err = command(sample, "model=digits", "prompts=[a seven]")
    assert status == 2 and "model digits takes no prompts: use model=sd21 or leave" in err


def test_an_incomplete_or_foreign_folder(command, pipelines, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    status, _, err = command(sample, *words_of(empty, tmp_path))
    assert status == 2 and "has no model_index.json" in err
    broken = shutil.copytree(pipelines["sd"], tmp_path / "broken")
    (broken / "unet/diffusion_pytorch_model.safetensors").unlink()
    status, _, err = command(sample, *words_of(broken, tmp_path))
    assert status == 2 and "broken is not complete" in err.splitlines()[-1]
    torch.manual_seed(0)
    DDPMPipeline(tiny.pixel_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    status, _, err = command(sample, *words_of(tmp_path / "ddpm", tmp_path))
    assert status == 2 and "is a DDPMPipeline: only StableDiffusionPipeline" in err


def test_our_own_scheduler_in_the_pipeline_is_no_obstacle(pipelines, tmp_path):
    """A pipeline that was saved with Mix samples as any other."""
    pipe = open_pipeline(pipelines["sd"], MixScheduler, cutoff=400)
    pipe.save_pretrained(tmp_path / "mixed")
    model = load(str(tmp_path / "mixed"), PROMPTS, set_alpha_to_one=None)
    plain = load(str(pipelines["sd"]), PROMPTS, set_alpha_to_one=None)
    assert model.sha256 == plain.sha256
    assert model.schedule.final == plain.schedule.final < 1
    assert np.array_equal(model.schedule.alpha_bar, plain.schedule.alpha_bar)
    assert isinstance(pipe, StableDiffusionPipeline)


def test_configs_name_published_pipelines():
    for name in ("sd15", "sd21", "sd21_768v", "sdxl"):
        text = (ROOT / "models/stable_diffusion" / f"{name}.md").read_text()
        config = (ROOT / "configs/model" / f"{name}.yaml").read_text()
        (line,) = [line for line in config.splitlines() if line.startswith("id:")]
        assert line.removeprefix("id: ") in text
