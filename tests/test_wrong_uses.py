"""Models of one's own that cannot be sampled, or not as told: one line with a remedy, before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines as tiny
import tiny_texts
import torch
from conftest import done, refused
from diffusers import (
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image

import reproduce
import sample
from models.diffusers import load
from models.distilled import NAMES, check_distilled
from sampling import SampleNoise
from sampling.borrowed import sampler_at
from sampling.schedulers import SkippedStepScheduler

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of NumPy, in diffusers
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning"),
]
SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Name -> the folder of a pipeline; made once."""
    root = tmp_path_factory.mktemp("wrong")
    torch.manual_seed(0)
    DDPMPipeline(tiny.pixel_unet(), DDPMScheduler()).save_pretrained(root / "pixels")
    return {
        "pixels": root / "pixels",
        "sd": tiny.stable_diffusion(root / "sd"),
        "flux": tiny_texts.flux(root / "flux"),
    }


@pytest.fixture
def mine(made, tmp_path):
    """A copy of such a folder, under a name."""

    def copied(name: str, called: str = "mine") -> Path:
        return Path(shutil.copytree(made[name], tmp_path / called))

    return copied


def edit(path: Path, **more) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def of(folder: Path, *more: str) -> list[str]:
    prompts = (
        [] if "ddpm" in str(json.loads((folder / INDEX).read_text())).lower() else ["prompts=[a]"]
    )
    return ["model=diffusers", f"model.id={folder}", "num_samples=1", "steps=2", *prompts, *more]


# --- distilled -----------------------------------------------------------------------------------


def test_a_flux_that_was_distilled(command, mine):
    folder = mine("flux")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
    size = ["model.call.height=16", "model.call.width=16"]
    done(command(sample, *of(folder, *size, "out=a")))  # FLUX.1-dev has guidance_embeds
    edit(folder / "transformer/config.json", guidance_embeds=False)
    said = "was distilled to few steps (as FLUX.1-schnell it has no guidance_embeds"
    refused(command(sample, *of(folder, *size, "out=b")), said)
    # What the line says works.  (The tiny network has weights of the guidance, which go unused.)
    done(command(sample, *of(folder, *size, "out=b", "model.distilled=true")))


def test_a_consistency_model_by_its_network(command, mine):
    folder = mine("sd")
    edit(folder / "unet/config.json", time_cond_proj_dim=8)
    refused(command(sample, *of(folder)), "is told the guidance scale, by time_cond_proj_dim")


@pytest.mark.parametrize(
    "scheduler", [EulerAncestralDiscreteScheduler, EulerDiscreteScheduler], ids=["xl", "2.1"]
)
def test_the_schedulers_of_turbo(command, mine, scheduler):
    """One of two signs is a warning, both are enough; a zero-SNR model has the same grid."""
    trailing = scheduler(**SD_BETAS, timestep_spacing="trailing", steps_offset=1)
    folder = mine("sd")
    trailing.save_pretrained(folder / "scheduler")
    out = done(command(sample, *of(folder, "out=a")))
    assert out.count("warning: ") == 1 and "may have been distilled to few steps" in out
    assert "warning" not in done(command(sample, *of(folder, "out=a", "model.distilled=true")))
    both = mine("sd", "my-turbo-merge")
    assert "'turbo' is in its name" in done(command(sample, *of(both, "out=b")))
    trailing.save_pretrained(both / "scheduler")
    refused(command(sample, *of(both)), "give the model that it was distilled from as model.id=...")
    refused(
        command(sample, "model=sd", "model.precision=fp32", *of(both)[1:]),
        "'turbo' is in its name and its scheduler has the trailing grid",
    )
    edit(both / SCHEDULER, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert "warning" in done(command(sample, *of(both, "out=c")))


def test_what_published_ones_are_called():
    names = "sdxl-turbo LCM_Dreamshaper_v7 SDXL-Lightning FLUX.1-schnell Hyper-SD dmd2 x-4step tcd"
    assert all(NAMES.search(name) for name in names.split())
    names = "turbine calcm stable-diffusion-xl-base-1.0 hyperreal 25-step FLUX.1-dev my-ddpm sd15"
    assert not any(NAMES.search(name) for name in names.split())
    with pytest.raises(ValueError, match="it is stabilityai/sdxl-turbo"):
        check_distilled("copy", None, {"_name_or_path": "stabilityai/sdxl-turbo"}, {})
    with pytest.raises(ValueError, match="is_distilled"):
        check_distilled(
            "copy", None, {"_class_name": "Flux2KleinPipeline", "is_distilled": True}, {}
        )


# --- folders -------------------------------------------------------------------------------------

CODE = "import pathlib\npathlib.Path({mark!r}).touch()\nfrom diffusers import *\n"
CODE += "class Mine(DDPMPipeline): ...\nclass MyUNet(UNet2DModel): ...\nclass MyScheduler(DDPMScheduler): ..."
OWN_CODE = {
    "pipeline": (
        "mine.py",
        {"_class_name": ["mine", "Mine"]},
        "by code of its own, which is never run",
    ),
    "its file": (
        "pipeline.py",
        {"_class_name": "Mine"},
        "no pipeline of this version of diffusers",
    ),
    "network": ("unet/my_unet.py", {"unet": ["my_unet", "MyUNet"]}, "which is not imported"),
    "scheduler": (
        "scheduler/my_scheduler.py",
        {"scheduler": ["my_scheduler", "MyScheduler"]},
        "which is not imported",
    ),
}


@pytest.mark.parametrize("case", OWN_CODE)
def test_code_in_a_folder_is_never_run(command, mine, tmp_path, case):
    file, index, said = OWN_CODE[case]
    folder, mark = mine("pixels"), tmp_path / "ran"
    (folder / file).write_text(CODE.format(mark=str(mark)))
    edit(folder / INDEX, **index)
    for way in ("false", "true"):
        refused(command(sample, *of(folder, f"model.as_pipeline={way}")), said)
    assert not mark.exists()


class Evil:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickled_weights_of_a_pipeline_are_not_run(command, mine, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder, mark = mine("sd"), tmp_path / "ran"
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / part / f"{stem}.safetensors").unlink()
        name = "pytorch_model" if part == "text_encoder" else stem
        torch.save({"weight": Evil(mark)}, folder / part / f"{name}.bin")
    refused(command(sample, *of(folder)), "copy or download it again")
    assert not mark.exists()


def test_code_that_a_part_names_is_never_run(command, mine, tmp_path):
    """transformers' auto_map, which asks to be run in place of the class that model_index.json names."""
    folder, mark = mine("sd"), tmp_path / "ran"
    for part, file, kinds in (
        ("tokenizer", "tokenizer_config.json", {"AutoTokenizer": ["theirs.CLIPTokenizer", None]}),
        ("text_encoder", "config.json", {"AutoModel": "theirs.CLIPTextModel"}),
        ("unet", "config.json", {"AutoModel": "theirs.UNet2DConditionModel"}),
    ):
        edit(folder / part / file, auto_map=kinds)
        code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nfrom transformers import *\n"
        (folder / part / "theirs.py").write_text(code)
    done(command(sample, *of(folder, "out=o")))
    assert not mark.exists()


def write(path: str, text: str):
    return lambda folder: (folder / path).write_text(text)


FOLDERS = {
    "an index of something else": (write(INDEX, "[1]"), "is no list of parts: copy it again"),
    "an empty index": (write(INDEX, "{}"), "names no pipeline: copy it again"),
    "a scheduler of something else": (write(SCHEDULER, "[1]"), "copy it again from where"),
    "no network's config": (
        lambda folder: (folder / "unet/config.json").unlink(),
        "the unet of",
    ),
    "a network of the future": (
        lambda folder: edit(folder / INDEX, unet=["diffusers", "UNet9D"]),
        "is a UNet9D, which this version of diffusers does not have: pip install -U diffusers",
    ),
    "no class of pipelines": (
        lambda folder: edit(folder / INDEX, _class_name="logging"),
        "which is no pipeline of this version of diffusers",
    ),
    "T in quotes": (
        lambda folder: edit(folder / SCHEDULER, num_train_timesteps="1000"),
        "no sampler can be put into",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_damaged_folders(command, mine, case):
    change, said = FOLDERS[case]
    folder = mine("pixels")
    words = of(folder)
    change(folder)
    refused(command(sample, *words), said)


def test_names_of_folders(command, mine):
    folder = mine("pixels", "my-pixels")
    settings = ["model=diffusers", "num_samples=1", "steps=2"]
    refused(command(sample, *settings, f"model.id={folder}s"), f"did you mean {folder}?")
    refused(command(sample, *settings, "model.id=''"), "give either as model.id=...")
    refused(command(sample, *settings, f"model.id={folder / INDEX}"), "a pipeline is a folder")
    said = "set model.variant=null"
    refused(command(sample, *settings, f"model.id={folder}", "model.variant=fp16"), said)


def test_a_tokenizer_without_words(command, mine):
    """transformers makes one of nothing, and the pictures would be of no prompt."""
    folder = mine("sd")
    shutil.rmtree(folder / "tokenizer")
    refused(command(sample, *of(folder)), "is not complete (it knows no words)")


def test_a_part_that_a_pipeline_was_saved_without(tmp_path):
    """As SD3 often is without T5: diffusers' own from_pretrained wants to be told."""
    folder = tiny_texts.sd3(tmp_path / "sd3")
    edit(folder / INDEX, text_encoder_3=[None, None], tokenizer_3=[None, None])
    whole = load(str(folder), ["a"])
    assert whole.pipe.text_encoder_3 is None and whole.media.size == (16, 16, 3)


# --- arguments of the pipeline's call ------------------------------------------------------------

CALLS = {
    "negative_prompt=5": "correct model.call.negative_prompt=5, or leave it out",
    "negative_prompt=[x,y,z]": "correct model.call.negative_prompt=",
    "clip_skip=99": "correct model.call.clip_skip=99, or leave it out",
    "cross_attention_kwargs=5": "correct model.call.cross_attention_kwargs=5, or leave it out",
    "prompt_embeds=5": "has no option 'prompt_embeds'",
    "ip_adapter_image=x.png": "has no option 'ip_adapter_image'",
    "callback_on_step_end=x": "has no option 'callback_on_step_end'",
    **{f"{key}=1": f"model.call.{key} is what" for key in ("generator", "latents", "output_type")},
    **{f"{key}=1": f"model.call.{key} is what" for key in ("timesteps", "sigmas", "return_dict")},
}


@pytest.mark.parametrize("case", CALLS)
def test_arguments_that_the_pipeline_does_not_take(command, made, case):
    refused(command(sample, *of(made["sd"], f"model.call.{case}")), CALLS[case])


# --- real images ---------------------------------------------------------------------------------


def pictures(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(np.full((size, size, 3), i, np.uint8)).save(folder / f"{i}.png")
    return folder


def real(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((64, 12, 12, 3), np.uint8))
    large, good = pictures(tmp_path / "large", [12] * 9), pictures(tmp_path / "good", [8] * 9)
    both, one = pictures(tmp_path / "both", [8, 9, 8]), pictures(tmp_path / "one", [8])
    sizes = "8 x 8 pixels, the reference's images 12 x 12"
    return {
        "of another size": ([f"reference.images={large}"], sizes),
        "in a file": ([f"reference.images={tmp_path / 'large.npz'}"], sizes),
        "of a model that has its own": (["reference=digits"], "the reference's images 28 x 28"),
        "of two sizes": ([f"reference.images={both}"], "are not 8 x 8 as the others"),
        "one": ([f"reference.images={one}"], "need 2 or more"),
        "nowhere": (["reference.images=nowhere"], "no images at nowhere"),
        "not told": ([], "reference.images is missing: give reference.images=DIR"),
        "none": (["reference=none"], "diagonal_fid compares with real images"),
        "a floor of another size": (
            [f"reference.images={good}", f"reference.floor.path={large}"],
            sizes,
        ),
        "no floor": (
            [f"reference.images={good}", "reference.floor.path=nowhere"],
            "no images at nowhere",
        ),
    }


def test_real_images_are_looked_at_before_sampling(command, made, tmp_path):
    settings = [
        "experiment=compare",
        "model=diffusers",
        f"model.id={made['pixels']}",
        "num_samples=64",
    ]
    settings += ["metrics=pixels", "samplers=[ddim]", "steps=[2]"]
    for name, (words, said) in real(tmp_path).items():
        refused(command(reproduce, *settings, *words), said)
        assert not Path("runs").exists(), name
    large = f"reference.images={tmp_path / 'large'}"
    ways = ["reference.preprocess=center_lanczos", "reference.size=8"]  # as the line says
    assert "| DDIM |" in done(command(reproduce, *settings, large, *ways))


# --- videos --------------------------------------------------------------------------------------

VIDEOS = {
    "wan": {"num_frames": 5, "height": 32, "width": 32},
    "ltx": {"num_frames": 9, "height": 64, "width": 64},
    "mochi": {"num_frames": 7, "height": 16, "width": 16},
}


def frames_are_the_librarys(whole, folder: Path, call: dict[str, int]) -> None:
    noise = SampleNoise(0, [0], whole.shape)
    plan = sampler_at("skipped", whole.schedule_at(4), 4, "even")
    ours = whole.images(plan, 4, noise, torch.tensor([0]))
    pipe = whole.pipe
    pipe.scheduler = SkippedStepScheduler.from_config(json.loads((folder / SCHEDULER).read_text()))
    pipe.scheduler.noise = SampleNoise(0, [0], noise.start().shape[1:])
    words = {**call, "max_sequence_length": 16, "num_inference_steps": 4, "output_type": "np"}
    generator = torch.Generator().manual_seed(0)
    theirs = pipe(["a red bus"], latents=noise.start(), generator=generator, **words).frames
    assert abs(ours - np.asarray(theirs)).max() * 255 < 0.01 and ours.std() * 255 > 5


@pytest.mark.filterwarnings("ignore:.*CPU [aA]utocast:UserWarning")
@pytest.mark.parametrize("name", VIDEOS)
def test_videos_of_flow_matching(command, tmp_path, name):
    """From the folder to files, to the frame as the pipeline itself with the same levels and noise."""
    folder, call = getattr(tiny_texts, name)(tmp_path / name), VIDEOS[name]
    words = [f"model.call.{key}={value}" for key, value in call.items()]
    words += [
        f"model.id={folder}",
        "model.call.max_sequence_length=16",
        "prompts=[a red bus,a fox]",
    ]
    done(command(sample, "model=diffusers", *words, "steps=3", "out=o", "sampler=skipped"))
    assert sorted(path.name for path in Path("o/videos").iterdir()) == ["000000.mp4", "000001.mp4"]
    whole = load(str(folder), ["a red bus"], call={**call, "max_sequence_length": 16})
    assert whole.media.size == (call["num_frames"], call["height"], call["width"], 3)
    assert whole.evaluations == 2 and whole.is_flow
    frames_are_the_librarys(whole, folder, call)
    table = ["experiment=compare", "samplers=[ddim,mix]", "steps=[3]", "metrics=pixels"]
    table += ["label=balanced", "num_samples=2", "reference.images=."]
    refused(command(reproduce, "model=diffusers", *words, *table), "this model makes videos")
    assert not Path("runs").exists()
    shown = ["experiment.scorer=none", "experiment.renderer=pictures"]  # as the line says
    assert "| DDIM " in done(command(reproduce, "model=diffusers", *words, *table, *shown))
    assert "2 evaluations of the network" in done(
        command(reproduce, "model=diffusers", *words, *table, "dry=true")
    )
