"""`model=diffusers`: any pipeline of diffusers from a folder to pictures and tables, tiny ones."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import tiny_pipelines as tiny
import tiny_texts
import torch
from conftest import done, refused, shards
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    UNet2DModel,
)
from PIL import Image

import reproduce
import sample
from files.images import load_samples
from models.diffusers import load
from sampling import SampleNoise
from sampling.schedulers import MixPlusPlusScheduler, MixScheduler, SkippedStepScheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of NumPy, in diffusers
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*CPU [aA]utocast:UserWarning"),
]
PROMPTS = ["a red bus", "the quick brown fox", "a lazy dog"]
STEPS, N = 5, 3


def pixel_pipeline(folder, scheduler, kind=DDPMPipeline, **more):
    torch.manual_seed(0)
    net = tiny.pixel_unet()
    if more:
        net = UNet2DModel(**{**net.config, **more})
    kind(net, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Name -> the folder of a pipeline."""
    root = tmp_path_factory.mktemp("any")
    v = DDIMScheduler(prediction_type="v_prediction", clip_sample_range=2.0)
    limited = DDPMScheduler(thresholding=True, sample_max_value=1.5, prediction_type="sample")
    learned = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    tiny.dit().save_pretrained(root / "dit")
    return {
        "ddpm": pixel_pipeline(root / "ddpm", DDPMScheduler()),
        "ddim": pixel_pipeline(root / "ddim", v, DDIMPipeline),
        "limited": pixel_pipeline(root / "limited", limited),
        "learned": pixel_pipeline(root / "learned", learned, out_channels=6),
        "grey": pixel_pipeline(root / "grey", DDPMScheduler(), in_channels=1, out_channels=1),
        "classes": pixel_pipeline(root / "classes", DDPMScheduler(), num_class_embeds=4),
        "sd": tiny.stable_diffusion(root / "sd"),
        "v": tiny.stable_diffusion(root / "v", "v_prediction"),
        "xl": tiny.stable_diffusion_xl(root / "xl"),
        "dit": root / "dit",
        "sd3": tiny_texts.sd3(root / "sd3"),
        "flux": tiny_texts.flux(root / "flux"),
        "pixart": tiny_texts.pixart(root / "pixart"),
        "video": tiny_texts.video(root / "video"),
    }


SIZE = {"height": 16, "width": 16}
CALLS = {
    "sd3": {},
    "flux": SIZE,
    "pixart": {"use_resolution_binning": False},
    "video": {"num_frames": 9, "height": 32, "width": 32, "max_sequence_length": 16},
}
TEXT = ("sd", "v", "xl", *CALLS)
FLOW = ("sd3", "flux")


def words(folders, name, **more) -> list[str]:
    """The settings of a command on that pipeline."""
    settings = [f"model.id={folders[name]}", *(f"{key}={value}" for key, value in more.items())]
    settings += [f"model.call.{key}={value}" for key, value in CALLS.get(name, {}).items()]
    prompts = [f"prompts=[{','.join(PROMPTS)}]"] if name in TEXT else []
    return ["model=diffusers", "num_samples=3", "batch_size=2", *settings, *prompts]


def sampled(command, folders, name, out, **more) -> np.ndarray:
    outcome = command(sample, *words(folders, name, **more), f"steps={STEPS}", f"out={out}")
    assert f"{N} samples, {STEPS} network calls each" in done(outcome)
    return load_samples(out).images.astype(int)


# --- the same pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ddpm", "ddim", "limited", "learned", "grey", "sd", "v", "xl", "dit"]
)
def test_network_and_whole_pipeline_give_the_same_pictures(command, folders, name):
    label = {"label": 3} if name == "dit" else {}
    for sampler in ("mix", "mixstar", *["dpmpp"] * (name in ("ddpm", "learned", "sd", "dit"))):
        more = {**label, "sampler": sampler}
        direct = sampled(command, folders, name, f"direct-{sampler}", **more)
        more["model.as_pipeline"] = "true"
        whole = sampled(command, folders, name, f"whole-{sampler}", **more)
        assert abs(direct - whole).max() <= 1 and direct.std() > 5


@pytest.mark.parametrize("name", ["ddpm", "sd", "sd3", "flux"])
def test_a_table_gives_the_pictures_of_its_sampler_in_a_pipeline(command, folders, name, tmp_path):
    """The command writes the table, and a pipeline that runs as a whole samples it from the file."""
    knots = {"sampler.knots": "[[-1,0.9],[1,0.2]]", "sampler.orders": "[2]"}
    if name not in FLOW:
        knots["sampler.eps_scale"] = "1.01"
    table = tmp_path / "mine.json"
    whole = {"model.as_pipeline": "true"}
    ours = sampled(
        command, folders, name, "ours", sampler="mixstar", show_plan=table, **knots, **whole
    )
    again = sampled(
        *(command, folders, name, "again"),
        **{"sampler": "plan", "sampler.path": table, **whole},
    )
    assert np.array_equal(ours, again) and ours.std() > 5
    other = sampled(command, folders, name, "other", sampler="ddim", **whole)
    assert abs(ours - other).max() > 5


def by_the_library(folder, name, scheduler, **options) -> np.ndarray:
    """The pictures of the pipeline itself, with one of our schedulers and the noise of (seed, id)."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    spacing = {} if name in FLOW else {"timestep_spacing": "even"}
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **spacing, **options)
    call = {"num_inference_steps": STEPS, "output_type": "np", **CALLS.get(name, {})}
    seen = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda out, t, x, **more: seen.append(x.shape) or step(out, t, x, **more)
    pipe(PROMPTS, **call)
    pipe.scheduler.step = step
    noise = pipe.scheduler.noise = SampleNoise(0, range(N), seen[0][1:])
    images = pipe(PROMPTS, latents=noise.start(), **call)
    images = images.images if hasattr(images, "images") else images.frames
    return (images * 255).round().astype(int)


@pytest.mark.parametrize("name", [name for name in TEXT if name != "video"])
@pytest.mark.parametrize(
    ("sampler", "scheduler", "option"),
    [
        ("skipped", SkippedStepScheduler, {}),
        ("mix", MixScheduler, {"cutoff": 500}),
        ("mixpp", MixPlusPlusScheduler, {"lo": 500}),
    ],
)
def test_pictures_are_those_of_the_librarys_own_pipeline(
    command, folders, name, sampler, scheduler, option
):
    theirs = by_the_library(folders[name], name, scheduler, **option)
    stated = {f"sampler.{key}": value for key, value in option.items()}
    ours = sampled(command, folders, name, "ours", sampler=sampler, **stated)
    assert ours.shape == theirs.shape and ours.std() > 5
    assert abs(ours - theirs).max() <= 1
    if (
        sampler == "mix"
    ):  # of one prompt another picture by another seed: it is not the prompt alone
        other = sampled(command, folders, name, "other", sampler=sampler, seed=1)
        assert abs(ours - other).max() > 5


def test_a_pixel_pipeline_is_that_of_the_library(command, folders, monkeypatch):
    """DDPMPipeline draws x_T itself."""
    import diffusers.pipelines.ddpm.pipeline_ddpm as module

    pipe = DDPMPipeline.from_pretrained(folders["ddpm"])
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = SkippedStepScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="even"
    )
    noise = pipe.scheduler.noise = SampleNoise(0, range(N), (3, 8, 8))
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **more: noise.start())
    images = pipe(batch_size=N, num_inference_steps=STEPS, output_type="np").images
    monkeypatch.undo()
    theirs = (images * 255).round().astype(int)
    monkeypatch.chdir(folders["ddpm"].parent)
    ours = sampled(command, folders, "ddpm", folders["ddpm"].parent / "own", sampler="skipped")
    assert abs(ours - theirs).max() <= 1 and theirs.std() > 5


def test_ddim_of_the_library_itself(command, folders):
    """Not only our schedulers in it: DDIMScheduler at eta = 0 on its own grid."""
    pipe = DiffusionPipeline.from_pretrained(folders["sd"])
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    start = SampleNoise(0, range(N), (4, 16, 16)).start()
    images = pipe(PROMPTS, latents=start, num_inference_steps=STEPS, output_type="np").images
    theirs = (images * 255).round().astype(int)
    for i, way in enumerate(("false", "true")):
        more = {"sampler": "ddim", "spacing": "leading+1", "model.as_pipeline": way}
        assert abs(sampled(command, folders, "sd", f"o{i}", **more) - theirs).max() <= 1


def test_euler_of_the_library_itself_on_flow_matching(command, folders):
    pipe = DiffusionPipeline.from_pretrained(folders["sd3"])
    pipe.set_progress_bar_config(disable=True)
    start = SampleNoise(0, range(N), (16, 8, 8)).start()
    images = pipe(PROMPTS, latents=start, num_inference_steps=STEPS, output_type="np").images
    theirs = (images * 255).round().astype(int)
    assert abs(sampled(command, folders, "sd3", "o", sampler="ddim") - theirs).max() <= 1


def test_a_class_conditional_network_with_its_learned_variance(folders):
    """Against the network itself, called as diffusers does."""
    backbone = load(str(folders["classes"]))
    assert backbone.num_classes == 4
    labels, noise = torch.tensor([0, 3]), SampleNoise(0, [0, 1], backbone.shape)
    x, net = noise.start(), UNet2DModel.from_pretrained(folders["classes"], subfolder="unet").eval()
    with torch.no_grad():
        x0, v, _ = backbone.given(labels)(x, 700)
        eps = net(x, 700, labels).sample
    assert v is None
    a = backbone.schedule.alpha_bar[700]
    torch.testing.assert_close(x0, ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1))
    other = backbone.given(torch.tensor([1, 3]))(x, 700)[0]
    assert (other[0] != x0[0]).any() and torch.allclose(other[1], x0[1])
    learned = load(str(folders["learned"]))
    net = UNet2DModel.from_pretrained(folders["learned"], subfolder="unet").eval()
    with torch.no_grad():
        torch.testing.assert_close(learned.given(None)(x, 700)[1], net(x, 700).sample[:, 3:])


def test_videos(command, folders):
    outcome = command(sample, *words(folders, "video"), "steps=3", "out=o", "shard_size=2")
    done(outcome)
    from pathlib import Path

    assert sorted(path.name for path in Path("o/videos").iterdir()) == [
        f"{i:06d}.mp4" for i in range(N)
    ]


# --- the same however it is run --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddpm", "sd3"])
def test_interrupted_and_resumed(command, folders, name, tmp_path):
    settings = [*words(folders, name), "steps=4", "shard_size=1"]
    done(command(sample, *settings, "out=whole"))
    before = shards(tmp_path / "whole")
    shutil.copytree("whole", "cut")
    (tmp_path / "cut/shards/shard-00001.npz").unlink()
    (tmp_path / "cut/samples.npz").unlink()
    (tmp_path / "cut/manifest.json").unlink()
    done(command(sample, *settings, "out=cut"))
    assert shards(tmp_path / "cut") == before
    # And in other batches: of text encoders' and networks' rounding alone.
    done(command(sample, *settings[:-1], "batch_size=3", "out=batch"))
    a, b = (load_samples(tmp_path / out).images.astype(int) for out in ("whole", "batch"))
    assert abs(a - b).max() <= 1


def test_samples_are_known_by_what_they_depend_on(folders, tmp_path):
    def digest(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folders["ddpm"], folder)
        change(folder)
        return load(str(folder)).sha256

    def schedule(key, value):
        def change(folder):
            path = folder / "scheduler/scheduler_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

        return change

    def weights(folder):
        net = UNet2DModel.from_pretrained(folder, subfolder="unet")
        net.conv_in.weight.data[0, 0, 0, 0] += 1
        net.save_pretrained(folder / "unet")

    same = digest(lambda folder: None)
    assert same == digest(lambda folder: None) == digest(schedule("_diffusers_version", "0"))
    changes = [weights, schedule("beta_end", 0.03), schedule("clip_sample", False)]
    assert len({same, *map(digest, changes)}) == 4


def test_a_plan_of_detours_runs_in_a_whole_pipeline(command, folders):
    """Rows that call no network go with the call before."""
    more = {"sampler": "restart", "sampler.restarts": "[[2,1,0.5,2]]", "sampler.method": "euler"}
    settings = ["steps=9", "out=a"]
    done(command(sample, *words(folders, "sd", **more), *settings))
    more["model.as_pipeline"] = "true"
    done(command(sample, *words(folders, "sd", **more), "steps=9", "out=b"))
    a, b = (load_samples(out).images.astype(int) for out in ("a", "b"))
    assert abs(a - b).max() <= 1


# --- from a folder of weights and a folder of images to a table --------------------------------------


@pytest.fixture
def real(tmp_path):
    def make(size: int):
        folder = tmp_path / f"real{size}"
        folder.mkdir()
        for i, image in enumerate(np.random.default_rng(0).integers(256, size=(64, size, size, 3))):
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:03d}.png")
        return folder

    return make


def compared(command, *settings):
    some = ["experiment=compare", "model=diffusers", "num_samples=64", "metrics=pixels"]
    return done(command(reproduce, *some, *settings))


def test_one_command_to_a_table(command, folders, real, tmp_path):
    settings = [f"model.id={folders['ddpm']}", "steps=[4,3]", f"reference.images={real(8)}"]
    out = compared(command, *settings, "samplers=[ddim,skipped,ddpm,heun]")
    assert "left out: DDPM: the network predicts no variance" in out
    table = (tmp_path / "results/diffusers/compare/table.md").read_text()
    assert re.findall(r"^\| (\S+) \| [*]*[0-9.]+ ±", table, re.M) == [
        "DDIM",
        "Skipped-Step",
        "Heun",
    ]
    assert "4 steps (N=64)" in table and "3 steps (N=64)" in table
    # One that has it keeps the row; options go with a name.
    settings[0] = f"model.id={folders['learned']}"
    two = ["samplers=[ddpm,{name:mix,cutoff:500}]", "out=two"]
    assert "left out" not in compared(command, *settings, *two)
    assert "| Mix (cutoff=500) |" in (tmp_path / "two/table.md").read_text()


def test_a_table_of_a_flow_model_leaves_out_what_is_of_betas(command, folders, real):
    settings = [f"model.id={folders['sd3']}", "steps=3", f"reference.images={real(16)}"]
    settings += ["prompts=[a,b]", "label=balanced", "samplers=[ddim,mix,unipc]"]
    out = compared(command, *settings)
    assert "left out: UniPC: UniPCMultistepScheduler cannot be put on the noise levels" in out
    assert "| DDIM |" in out and "| Mix |" in out


def test_any_experiment_takes_samplers(command):
    """Of a model that is no pipeline, too."""
    out = done(
        command(
            reproduce, "experiment=table1_small", "samplers=[ddim,ddpm]", "steps=[5]", "dry=true"
        )
    )
    assert "2 cells, 5,000 image calls" in out  # the digits' network has a learned variance


def test_counts_need_no_weights_and_no_network(command, monkeypatch, folders, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = ["experiment=compare", "model=diffusers", "samplers=[ddim,mix]", "steps=[10,25]"]
    settings += ["num_samples=100", "dry=true", "reference.images=none"]
    out = done(command(reproduce, *settings, "model.id=nobody/nothing"))
    assert "not yet: " in out and "4 cells, 7,000 image calls" in out
    assert "is not timed" in out and "calibra" not in out
    # Of one that is there, the counts come before anything is timed.
    out = done(command(reproduce, *settings, f"model.id={folders['ddpm']}"))
    assert (
        out.index("4 cells, 7,000 image calls")
        < out.index("calibration: timing")
        < out.index("ms an")
    )


# --- wrong uses ------------------------------------------------------------------------------------


def broken(folders, tmp_path, name, change):
    folder = tmp_path / "broken"
    shutil.copytree(folders[name], folder)
    change(folder)
    return f"model.id={folder}"


def edited(path, **more):
    """A change of a JSON file of a folder; None takes a key away."""

    def change(folder):
        config = {**json.loads((folder / path).read_text()), **more}
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / path).write_text(json.dumps(kept))

    return change


def with_scheduler(scheduler):
    return lambda folder: scheduler.save_pretrained(folder / "scheduler")


SCHEDULER, UNET = "scheduler/scheduler_config.json", "unet/config.json"
BROKEN = {
    "no scheduler in the index": (
        "ddpm",
        edited("model_index.json", scheduler=None),
        "without a scheduler in its model_index.json",
    ),
    "no scheduler's file": (
        "ddpm",
        lambda folder: shutil.rmtree(folder / "scheduler"),
        "has no scheduler/scheduler_config.json, which says the noise schedule: copy it",
    ),
    "no JSON": (
        "ddpm",
        lambda folder: (folder / SCHEDULER).write_text("{"),
        "is no JSON",
    ),
    "no index": (
        "ddpm",
        lambda folder: (folder / "model_index.json").unlink(),
        "has no model_index.json: give the folder of a diffusers pipeline",
    ),
    "distilled": (
        "sd",
        with_scheduler(LCMScheduler()),
        "load the model that it was distilled from",
    ),
    "continuous": (
        "ddpm",
        with_scheduler(
            EulerDiscreteScheduler(timestep_type="continuous", prediction_type="sample")
        ),
        "give another pipeline as model.id=...",
    ),
    "wrong channels": (
        "ddpm",
        edited(UNET, in_channels=4, out_channels=4),
        "",
    ),
    "no weights": (
        "ddpm",
        lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "is not complete",
    ),
    "another kind": (
        "ddpm",
        edited("model_index.json", _class_name="NewestPipeline"),
        "no pipeline of this version of diffusers: pip install -U diffusers",
    ),
    "starts from an image": (
        "sd",
        edited("model_index.json", _class_name=StableDiffusionImg2ImgPipeline.__name__),
        "which starts from its image: give a pipeline that starts from noise",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_folders_that_cannot_be_sampled(command, folders, tmp_path, case):
    name, change, said = BROKEN[case]
    where = broken(folders, tmp_path, name, change)
    prompts = ["prompts=[a]"] if name in TEXT else []
    refused(command(sample, "model=diffusers", where, "num_samples=1", *prompts), said)


WRONG = {
    "no id": (None, [], "model.id is missing: give model.id=..."),
    "no prompts": ("sd", ["prompts=null"], "needs prompts: prompts=FILE with one a line"),
    "no prompts for a whole one": ("sd3", ["prompts=null"], "needs prompts: prompts=FILE"),
    "prompts of a pixel model": ("ddpm", ["prompts=[a]"], "takes no prompts, but nothing"),
    "prompts of classes": ("dit", ["prompts=[a]"], "takes no prompts, but label=7"),
    "label of none": ("ddpm", ["label=3"], "this model is unconditional: leave label=null"),
    "label beyond": ("classes", ["label=4"], "label must be in 0..3, balanced or null"),
    "label beyond, whole": (
        "dit",
        ["model.as_pipeline=true", "label=1000"],
        "label must be in 0..999",
    ),
    "too few prompts": ("sd3", ["num_samples=9"], "there are 3 prompts for 9 samples"),
    "betas on flow": ("sd3", ["sampler=unipc"], "noise levels of flow: choose ddim, skipped, mix"),
    "a grid on flow": ("flux", ["spacing=trailing"], "leave spacing=even"),
    "no guidance": ("ddpm", ["model.guidance_scale=3"], "leave model.guidance_scale=null"),
    "negative guidance": ("sd3", ["model.guidance_scale=-1"], "must be a number of at least 0"),
    "a misspelt argument": ("sd3", ["model.call.hieght=16"], "did you mean height?"),
    "an argument of ours": ("sd3", ["model.call.num_inference_steps=3"], "set steps=..."),
    "no learned variance": ("ddpm", ["sampler=ddpm"], "use variance=fixed_small or fixed_large"),
    "no learned variance, whole": ("flux", ["sampler=ddpm"], "use variance=fixed_small"),
    "analytic": (
        "flux",
        ["sampler=mixpp", "sampler.variance=analytic"],
        "use variance=fixed_small",
    ),
    "no classifier": ("ddpm", ["guidance=classifier"], "use guidance=none"),
    "a precision": ("sd3", ["model.precision=fp12"], "unknown precision 'fp12'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_uses_end_in_one_line(command, folders, case):
    name, more, said = WRONG[case]
    settings = ["model=diffusers"] if name is None else words(folders, name)
    refused(command(sample, *settings, "steps=3", "out=o", *more), said)


def test_the_papers_cutoff_on_another_T(command, tmp_path, real):
    folder = pixel_pipeline(tmp_path / "px", DDPMScheduler(num_train_timesteps=200))
    settings = ["model=diffusers", f"model.id={folder}", "num_samples=2"]
    refused(command(sample, *settings, "steps=4"), "say sampler.cutoff=58")
    done(command(sample, *settings, "steps=4", "sampler.cutoff=58"))
    settings = [f"model.id={folder}", "steps=3", f"reference.images={real(8)}"]
    assert "| Mix (cutoff=58) |" in compared(command, *settings, "samplers=[{name:mix,cutoff:58}]")


def test_a_scheduler_of_ours_in_the_folder(command, folders, tmp_path):
    """A pipeline that was saved with one of our schedulers."""
    pipe = DiffusionPipeline.from_pretrained(folders["ddpm"])
    pipe.scheduler = MixScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "saved")
    folders = {**folders, "ddpm": folders["ddpm"], "saved": tmp_path / "saved"}
    a = sampled(command, folders, "ddpm", "a")
    assert np.array_equal(a, sampled(command, folders, "saved", "b"))
