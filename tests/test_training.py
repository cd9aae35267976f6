"""Training: the objectives against closed forms, the commands, and CIFAR-10 from images to figures."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from PIL import Image

from experiments.config import composed, load_backbone
from files.whole import file_sha256
from models.cifar10 import data as cifar10
from models.cifar10.data import JPEG_FILE
from models.cifar10.data import load_images as load_cifar10
from models.cifar10.networks import shifted
from models.digits.data import load_images as load_digits
from models.trainer import TrainingSet
from models.training import Ema, Objective, learning_rate
from models.weights import read_weights
from sampling import SampleNoise, Schedule, ddpm, run, skipped
from scripts.train import main

SCHEDULE = Schedule.linear()
ABAR = SCHEDULE.alpha_bar


def abar(t: int) -> float:
    """1-based as in the paper: abar(0) = 1."""
    return 1.0 if t == 0 else float(ABAR[t - 1])


def test_jump_weights_are_equation_4_average_to_one_and_only_jump_downwards():
    """Weight (a_{t-m} - a_t)^2 / (2 s^2 a_t a_{t-m} (1 - a_t)) with the jump's posterior variance."""
    weights = Objective(SCHEDULE, "skipped_step").jump_weight.double()
    reference = (abar(1) - abar(2)) / 2 / (abar(2) * (1 - abar(1)))  # that at (2, 1), by hand
    for t, m in [(2, 1), (500, 1), (500, 250), (1000, 999), (1000, 1), (37, 20)]:
        a_t, a_s = abar(t), abar(t - m)
        variance = (a_s - a_t) * (1 - a_s) / (a_s * (1 - a_t))
        expected = (a_s - a_t) ** 2 / (2 * variance * a_t * a_s * (1 - a_t))
        ours = weights[t - 1, t - m] / weights[1, 1]
        assert ours == pytest.approx(expected / reference, rel=1e-5)
    assert weights.shape == (1000, 1001)
    jumps = torch.arange(1, 1001, dtype=torch.float64)
    assert (weights.sum(1) / jumps).mean() == pytest.approx(1, rel=1e-5)
    assert (torch.triu(weights, diagonal=1) == 0).all()  # no jump to s >= t
    assert (torch.tril(weights)[:, 1:][torch.tril_indices(1000, 999, -1).unbind()] > 0).all()


def test_bound_is_the_kl_between_the_two_gaussians():
    """For t > 0 against torch's own KL, with the plan's posterior and bounds of the variance."""
    plan, objective = ddpm(SCHEDULE, range(999, -1, -1)), Objective(SCHEDULE, "simple")
    x0 = torch.full((1, 1, 4, 4), 0.25)
    for t in (1, 10, 500, 999):
        k = 999 - t
        # Of a network whose variance fraction is v and whose eps is wrong by eps_error.
        for v, eps_error in [(-1.0, 0.0), (0.3, 0.0), (1.0, 0.5), (-0.4, 0.1)]:
            low, high = plan.noise[k], plan.noise_high[k]
            std = low ** (1 - (v + 1) / 2) * high ** ((v + 1) / 2)
            a = SCHEDULE.abar(t)
            shift = plan.x0[k, 0] * math.sqrt((1 - a) / a) * eps_error
            p = torch.distributions.Normal(torch.tensor(shift), torch.tensor(std))
            q = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(low))
            expected = torch.distributions.kl_divergence(q, p).item() / math.log(2)
            at = (torch.full_like(x0, eps_error), torch.full_like(x0, v), torch.tensor([t]))
            assert objective.bound(x0, *at).item() == pytest.approx(expected, rel=2e-3, abs=1e-6)


def test_bound_of_the_last_step_is_a_likelihood_over_the_256_pixel_values():
    """Exponentiated, it sums to one over all values a pixel can have."""
    objective = Objective(SCHEDULE, "simple")
    values = (torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1)
    # x0 is the candidate, and the error moves the mean from it to the one of 100.
    error = (values - values[100]) / objective.eps_to_mean[0]
    last = torch.zeros(256, dtype=torch.int64)
    bits = objective.bound(values, error, torch.zeros_like(values), last)
    assert (2.0**-bits).sum().item() == pytest.approx(1, abs=1e-3)


def test_only_the_variance_learns_from_the_bound():
    net, x0 = torch.nn.Conv2d(1, 2, 1), torch.zeros(4, 1, 3, 3)
    eps, v = net(x0).chunk(2, dim=1)
    at = (eps.detach(), v, torch.tensor([5, 50, 500, 900]))
    Objective(SCHEDULE, "simple").bound(x0, *at).sum().backward()
    assert net.bias.grad[0] == 0 and net.bias.grad[1] != 0


def test_learning_rate_and_ema():
    rates = [learning_rate(s, 1000, 1e-3, 100) for s in range(1000)]
    assert max(rates) == rates[99] == pytest.approx(1e-3)
    assert rates[-1] < 1e-8
    net = torch.nn.Linear(2, 2)
    ema = Ema(net, 0.9)
    before = ema.values["bias"].clone()
    with torch.no_grad():
        net.bias += 1
    for step in range(200):
        ema.update(step)
    torch.testing.assert_close(ema.values["bias"], before + 1, atol=1e-4, rtol=0)


TINY = [f"++model.net.{word}" for word in ("num_channels=16", "num_res_blocks=1", "norm_groups=8")]


def train(*words: str) -> None:
    main(composed("train", *words))


@pytest.mark.parametrize("model", ["digits", "cifar10"])
def test_training_resumes_exactly_where_it_stopped(tmp_path, monkeypatch, model):
    """Six steps, and three steps stopped and resumed, end in the same weights, which sample."""
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path))
    toy_cifar10(tmp_path / "cifar10" / JPEG_FILE, per_class=4)
    source = ["training.images.source=jpeg"] if model == "cifar10" else []
    base = [f"model={model}", *TINY, *source, "training.unet.batch=8", "training.unet.steps=6"]
    base += ["training.saving.save_every=3", "training.saving.log_every=6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*base, f"out={whole}")
    train(*base, f"out={parts}", "stop_after=3")
    assert not (parts / "unet-6.safetensors").exists()
    torch.manual_seed(1234)  # the state brings its own
    train(*base, f"out={parts}")
    assert (whole / "unet-6.safetensors").read_bytes() == (
        parts / "unet-6.safetensors"
    ).read_bytes()
    rows = json.loads((parts / "curve.json").read_text())
    assert [row["step"] for row in rows] == [6] and rows[0]["held_out"] < 1.2
    with pytest.raises(ValueError, match=r"holds a training with unet.loss=simple, not skipped"):
        train(*base, f"out={parts}", "training.unet.loss=skipped_step")
    with pytest.raises(ValueError, match=r"there is no setting model.net.width"):
        train(*base, f"out={parts}", "++model.net.width=3")
    cfg = composed("sample", f"model={model}", f"model.checkpoint={whole}/unet-6", *TINY)
    backbone = load_backbone(cfg)
    noise = SampleNoise(0, range(2), backbone.shape)
    x = run(backbone.given(torch.tensor([3, 7])), skipped(SCHEDULE, [999, 500]), noise)
    assert backbone.decode(x).shape == (2, *backbone.shape[1:], backbone.shape[0])


def test_weights_are_stored_in_half_precision_for_natural_images():
    stored = read_weights(ROOT / "models/cifar10/unet-6500.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert (ROOT / "models/cifar10/unet-6500.safetensors").stat().st_size < 16e6


def test_the_rehearsal_of_cifar10_goes_from_images_to_figures(tmp_path):
    """scripts/cifar10.sh as a GPU runs it, on 400 toy images with a toy network."""
    toy_cifar10(tmp_path / "downloads/cifar10" / JPEG_FILE, per_class=40)
    tiny = " ".join(TINY)
    environment = os.environ | {
        "SKIPPED_STEP_DOWNLOADS": str(tmp_path / "downloads"),
        "PYTHON": sys.executable,
        "SOURCE": "jpeg",
        "STEPS": "3",
        "N": "80",
        "BATCH": "80",
        "OUT": str(tmp_path / "out"),
        "RESULTS": str(tmp_path / "results"),
        "TRAINING": f"training.unet.batch=8 training.classifier_recipe.epochs=9 {tiny}",
        "SAMPLING": "metrics.options.kid_subset_size=50 metrics.options.bootstrap=5 "
        f"steps=[2] device=cpu {tiny}",
    }
    shutil.copytree(
        ROOT,
        tmp_path / "clone",
        ignore=shutil.ignore_patterns(".*", "runs", "golden", "build", "site"),
    )
    script = ["bash", str(tmp_path / "clone/scripts/cifar10.sh")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, rows in (("table1", 4), ("figure4", 11), ("study", 12)):
        records = json.loads((tmp_path / "results" / name / "records.json").read_text())
        assert {(r["n"], r["extractor"], r["reference"]) for r in records} == {
            (80, "cifar10", "cifar10_jpeg")
        }
        assert len(records) == rows
        assert all(record["floor"]["fid"]["value"] >= 0 for record in records)


def test_images_of_both_sources_split_alike(tmp_path, monkeypatch):
    """Of an archive as it is published, and of a file of JPEGs."""
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"training.images.source=original"):
        load_cifar10("train", "jpeg")
    toy_cifar10(tmp_path / "cifar10" / JPEG_FILE, per_class=20)
    archive = tmp_path / "cifar10" / "cifar-10-python.tar.gz"
    monkeypatch.setattr(cifar10, "SHA256", published(archive, batches()))
    for source in ("original", "jpeg"):
        (real, y), (floor, z) = (load_cifar10(split, source) for split in ("reference", "floor"))
        assert real.shape == floor.shape == (100, 32, 32, 3)
        assert y.tolist() == z.tolist() == [*range(10)] * 10
        assert not {image.tobytes() for image in real} & {image.tobytes() for image in floor}
        assert len(load_cifar10("held_out", source)[0]) == 20
    images, labels = load_cifar10("train", "original")
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    assert images[7, 3, 4].tolist() == [7, 8, 9] and labels[:4].tolist() == [0, 0, 1, 1]
    for split, source in (("test", "jpeg"), ("train", "png")):
        with pytest.raises(ValueError, match="choose one of"):
            load_cifar10(split, source)
    archive.unlink()
    monkeypatch.setattr(cifar10, "fetch", Mock(side_effect=ConnectionError("no network")))
    with pytest.raises(FileNotFoundError, match=r"put cifar-10-python.tar.gz of https"):
        load_cifar10("train")


class Python2:
    """An array as Python 2 pickled it: its bytes are text, which is read as Latin-1."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        a = self.array
        rebuild, (kind, shape, _), _ = a.__reduce__()
        state = (1, a.shape, a.dtype, False, a.tobytes().decode("latin1"))
        return rebuild, (kind, shape, "b"), state


def batches():
    """By name: 200 images of CIFAR-10's training set and 20 others, i-th of the colour i, i + 1, i + 2."""
    colours = np.arange(200, dtype=np.uint8)[:, None] + np.arange(3, dtype=np.uint8)
    rows = np.repeat(colours, 32 * 32, axis=1)
    labels = np.arange(200) // 2 % 10
    parts = {f"data_batch_{i + 1}": slice(40 * i, 40 * i + 40) for i in range(5)}
    parts["test_batch"] = slice(20)
    return {
        name: {"data": Python2(rows[part]), "labels": labels[part].tolist()}
        for name, part in parts.items()
    }


def published(path: Path, entries: dict) -> str:
    """Write them as the archive is; returns its hash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, entry in entries.items():
            content = pickle.dumps(entry, protocol=2)
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file_sha256(path)


class Marking:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_no_code_of_an_archive_is_run(tmp_path, monkeypatch):
    """Neither of another than the published one, nor of one that took its place meanwhile."""
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path))
    archive, mark = tmp_path / "cifar10" / "cifar-10-python.tar.gz", tmp_path / "mark"
    theirs = published(archive, {**batches(), "data_batch_3": Marking(mark)})
    with pytest.raises(ValueError, match=r"damaged or another file: remove it"):
        load_cifar10("train")
    monkeypatch.setattr(cifar10, "SHA256", theirs)
    with pytest.raises(ValueError, match=r"mkdir, which is no array\): remove it"):
        load_cifar10("train")
    assert not mark.exists()
    assert len(load_cifar10("held_out")[0]) == 20


def toy_cifar10(path: Path, per_class: int) -> None:
    """A file like cifar10-jpeg.npz: coloured squares, one colour a class."""
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 10 * per_class), ("held_out", 20)):
        labels = np.arange(count) // 2 % 10
        files = []
        for label in labels:
            colour = np.array([25 * label, 255 - 25 * label, 128]) + rng.normal(0, 20, (32, 32, 3))
            buffer = io.BytesIO()
            Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG")
            files.append(buffer.getvalue())
        arrays |= {
            f"{part}_bytes": np.frombuffer(b"".join(files), np.uint8),
            f"{part}_offsets": np.cumsum([0, *map(len, files)]),
            f"{part}_labels": labels.astype(np.uint8),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def test_golden_folder_is_small():
    """The tests' reference tensors stay some megabytes: a clone must stay quick."""
    assert sum(p.stat().st_size for p in GOLDEN.iterdir()) < 16 * 2**20
    assert np.load(GOLDEN / "to_uint8.npz")["float_in"].shape == (64,)


def test_full_mnist_by_option(monkeypatch):
    import torchvision.datasets

    def stored(root, train, download):
        """What torchvision's MNIST holds, without the download."""
        assert download
        data = torch.full((60 if train else 2000, 28, 28), 255, dtype=torch.uint8)
        return SimpleNamespace(data=data, targets=torch.arange(len(data)) % 10)

    monkeypatch.setattr(torchvision.datasets, "MNIST", stored)
    images = TrainingSet.of(*load_digits("train", "mnist60k"), "cpu")
    x, y = images.batch(slice(None))
    assert x.shape == (60, 1, 28, 28) and x.min() == 1
    assert y[:12].tolist() == [*range(10), 0, 1]
    assert [len(part) for part in load_digits("held_out", "mnist60k")] == [1000, 1000]
    unreachable = Mock(side_effect=RuntimeError("Error downloading train-images-idx3-ubyte.gz"))
    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    with pytest.raises(FileNotFoundError, match=r"use training.images.source=mnist10k"):
        load_digits("train", "mnist60k")


def test_flips_and_crops_are_of_the_image_itself():
    """A crop of the padded image or of its mirror image; unmoved where it lies in the middle."""
    torch.manual_seed(0)
    x = torch.arange(32.0 * 32).reshape(1, 1, 32, 32).repeat(64, 3, 1, 1)
    moved = shifted(x)
    assert moved.shape == x.shape and len({m[0].numpy().tobytes() for m in moved}) > 30
    for image in moved:
        middle = image[0, 8:24, 8:24]
        step = middle[0, 1] - middle[0, 0]
        assert step in (1, -1)  # mirrored or not
        assert torch.equal(
            middle - middle[0, 0],
            (
                x[0, 0, :16, :16]
                if step == 1
                else 32 * torch.arange(16.0)[:, None] - torch.arange(16.0)
            ),
        )
