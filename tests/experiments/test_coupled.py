"""noise=brownian through the commands: pictures of more steps converge, and cells are others."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import done, refused

import reproduce
import sample
from experiments.cells import NOISES, Settings
from experiments.folder import read_manifest
from experiments.generate import generate
from models.backbone import Backbone
from models.digits.backbone import load

COUNTS = (10, 20, 40, 80)


@pytest.fixture(scope="module")
def digits() -> Backbone:
    return load()


@pytest.mark.parametrize("noise", NOISES)
def test_digits_of_more_steps_converge_with_brownian_noise_alone(
    digits, noise, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    model = {"name": "digits", "_target_": "models.digits.load"}
    settings = Settings(model, digits, "even", seed=0, label="balanced", noise=noise)
    pictures = []
    for steps in COUNTS:
        cells = settings.column({"Skipped-Step": {"name": "skipped"}}, steps, 6).cells
        assert generate(cells, digits)
        with np.load(cells[0].folder / "samples.npz") as file:
            pictures.append(file["arr_0"].astype(float))
    distances = [np.sqrt(((a - b) ** 2).mean((1, 2, 3))).mean() for a, b in pairwise(pictures)]
    if noise == "brownian":
        assert all(b < 0.9 * a for a, b in pairwise(distances)), distances
    else:
        assert distances[-1] > 0.8 * distances[0], distances


def test_the_choice_is_part_of_a_cell_where_it_is_not_the_default(digits):
    configs = [
        Settings({"name": "m", "_target_": ""}, digits, "even", 0, None, noise=noise)
        .cell("", {"name": "skipped"}, 3, 4)
        .config
        for noise in NOISES
    ]
    assert configs[1] == {**configs[0], "noise": "brownian"} and "noise" not in configs[0]


SMALL = ["model.checkpoint=unet-1000", "sampler=skipped", "steps=3", "num_samples=5"]


def test_sample_with_it(command, tmp_path):
    """Whatever the batches; and not into the folder of other noise."""
    for out, more in (("a", []), ("b", ["batch_size=2", "shard_size=3"])):
        done(command(sample, *SMALL, f"out={out}", "noise=brownian", *more))
    assert read_manifest(tmp_path / "a")["config"]["noise"] == "brownian"
    a, b = (np.load(tmp_path / out / "samples.npz")["arr_0"].astype(int) for out in "ab")
    assert np.abs(a - b).max() <= 1
    refused(command(sample, *SMALL, "out=a"), "noise is brownian there")
    refused(command(sample, *SMALL, "noise=none"), "choose one of per_step, brownian")


def test_the_cells_of_a_table_share_it(command, tmp_path):
    """Mix's head is Skipped-Step: with a cutoff below all timesteps they are the same pictures."""
    rows = "{Skipped-Step: {name: skipped}, Mix: {name: mix, cutoff: 0}, DDIM: {name: ddim}}"
    words = ["experiment=figure2_small", "model.checkpoint=unet-1000", f"++experiment.rows={rows}"]
    words += ["stage=sample", "steps=3", "num_samples=4", "noise=brownian"]
    done(command(reproduce, *words))
    folders = {path.name.split("-")[0]: path for path in (tmp_path / "runs/digits").iterdir()}
    images = {}
    for name, folder in folders.items():
        assert read_manifest(folder)["config"]["noise"] == "brownian"
        images[name] = torch.from_numpy(np.load(folder / "samples.npz")["arr_0"])
    assert torch.equal(images["skipped"], images["mix"])
    assert not torch.equal(images["skipped"], images["ddim"])
