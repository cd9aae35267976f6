"""Tuning and advice on models of every kind, and their printed lines as they are typed in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tiny_pipelines as tiny
import tiny_texts
import torch
from conftest import done, refused
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image

import sample
from scripts import advise, tune

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of NumPy, in diffusers
    pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*CPU [aA]utocast:UserWarning"),
]

SCORED = ["metrics=pixels", "experiment.metric=diagonal_fid", "experiment.rounds=[6,12]"]
STAR = [
    *("num_samples=8", "experiment.generation_samples=6", "experiment.finalist_samples=8"),
    *("experiment.starts=1", "experiment.orders=[[2]]"),
]


def pixels(folder, scheduler):
    torch.manual_seed(0)
    DDPMPipeline(tiny.pixel_unet(), scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> the folder of a pipeline."""
    root = tmp_path_factory.mktemp("contest")
    return {
        "pixels": pixels(root / "pixels", DDPMScheduler()),
        "short": pixels(root / "short", DDPMScheduler(num_train_timesteps=200)),
        "sd3": tiny_texts.sd3(root / "sd3"),
    }


SIZES = {"pixels": 8, "sd3": 16}


def real_images(folder, size):
    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(256, size=(32, size, size, 3))):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def words_of(folders, name, real):
    words = ["model=diffusers", f"model.id={folders[name]}", f"reference.images={real}"]
    return [*words, *(["prompts=[a bus,a cat]", "label=balanced"] if name == "sd3" else [])]


def typed_in(command, text, out):
    """Type in both lines that were printed; they sample the same pictures."""
    lines = [row.strip() for row in text.splitlines() if row.startswith("    python sample.py")]
    assert len(lines) == 2
    few = ["num_samples=2", "seed=5"]
    for i, line in enumerate(lines):
        done(command(sample, *shlex.split(line)[2:], *few, f"out={out}{i}"))
    one, other = (np.load(Path(f"{out}{i}", "samples.npz"))["arr_0"] for i in (0, 1))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("name", ["pixels", "sd3"])
def test_pipelines_of_both_kinds_of_paths(command, folders, tmp_path, name):
    """Advice, Mix* and Mix++'s window; what flow matching cannot have is said in one line."""
    words = words_of(folders, name, real_images(tmp_path / "real", SIZES[name]))
    few = [*words, *SCORED, "steps=3", "batch_size=12", "samplers=[ddim,skipped]"]
    text = done(command(advise, *few, "budget=1500", "out=advice"))
    typed_in(command, text, "advised")
    star = ["experiment=tune_star", *STAR, "experiment.metrics=[diagonal_fid]", "budget=1200"]
    typed_in(command, done(command(tune, *star, *few, "out=star")), "star")
    window = ["experiment=tune", "experiment.tuning_samples=6", "experiment.windows=2"]
    few.remove("experiment.rounds=[6,12]")
    window += ["num_samples=8", "experiment.metrics=[diagonal_fid]", "out=window", *few]
    if name == "sd3":
        refused(command(tune, *window), "experiment=tune_star")
    else:
        typed_in(command, done(command(tune, *window)), "window")


def test_the_papers_cutoff_on_another_schedule(command, folders, tmp_path):
    words = words_of(folders, "short", real_images(tmp_path / "real", 8))
    words += [*SCORED, "steps=3", "budget=3000", "dry=true"]
    outcome = command(advise, *words)
    refused(outcome, "cutoff=58 for the same share")
    remedy = re.search(r"advice (experiment\.rivals\.NAME\.cutoff=)", outcome[2])[1]
    done(command(advise, *words, f"{remedy.replace('NAME', 'Mix')}58"))
