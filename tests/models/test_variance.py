"""Measured errors of x0: against a case with a known answer, stored and found again."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

import sample
import scripts.variance
from files.media import Images
from models import variance
from models.backbone import Backbone, to_uint8
from models.digits.backbone import load
from sampling import Schedule

SCHEDULE = Schedule.linear()


def backbone(network=None, clip=False, sha256="f" * 64):
    images = Images((4, 4, 1))
    return Backbone(network, SCHEDULE, (1, 4, 4), None, clip, sha256, to_uint8, images)


def test_the_error_of_a_network_that_is_right_is_the_posterior_variance():
    c = 0.3

    def exact(x, t, condition):
        a = float(SCHEDULE.alpha_bar[int(t)])
        return x * (1 - a) ** 0.5 / (a * c + 1 - a), None

    x_0 = torch.randn(4000, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * c**0.5
    timesteps = [5, 100, 300, 600, 999]
    got = variance.measure_x0_variance(backbone(exact), x_0, None, timesteps)
    a = SCHEDULE.alpha_bar[timesteps]
    assert got == pytest.approx(c * (1 - a) / (a * c + 1 - a), rel=0.02)
    few = variance.measure_x0_variance(backbone(exact), x_0, None, timesteps, batch_size=77)
    assert few == pytest.approx(got, rel=1e-5)


def test_stored_and_found_by_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path))
    ours = backbone()
    path = variance.save_x0_variance(ours, [0, 499, 999], [1e-4, 1e-2, 1.0], n=7)
    assert path.parent == tmp_path
    errors = variance.stored_x0_variance(ours)
    assert errors.shape == (1000,)
    assert errors[[0, 499, 999]] == pytest.approx([1e-4, 1e-2, 1.0])
    assert errors[749] == pytest.approx(0.1, rel=0.01)  # in between, the logarithm
    assert json.loads(path.read_text())["images"] == 7
    for other in (backbone(sha256="e" * 64), backbone(clip=True)):
        with pytest.raises(FileNotFoundError, match=r"`python -m scripts\.variance model="):
            variance.stored_x0_variance(other)
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        variance.stored_x0_variance(ours)


def test_that_of_digits_is_in_the_repository_and_sane():
    errors = variance.stored_x0_variance(load())
    # At the top x0 is eps's error times 160, clipped: worse than the mean image would be.
    assert errors[0] < 1e-3 < errors[300] < errors[600] < errors[999] < 2
    posterior = errors * SCHEDULE.alpha_bar / (1 - SCHEDULE.alpha_bar)  # the error of eps
    assert (posterior < 1.2).all()
    assert np.isfinite(errors).all()


def test_the_command_measures_what_is_stored(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SKIPPED_STEP_DOWNLOADS", str(tmp_path))
    words = ["model=digits", "model.checkpoint=exact", "--images", "8", "--every", "999"]
    monkeypatch.setattr(sys, "argv", ["variance.py", *words])
    scripts.variance.main()
    (path,) = tmp_path.glob("x0_variance-*.json")
    assert f"written: {path}" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert (content["images"], content["timesteps"]) == (8, 2)
    assert content["x0_variance"][0] < 1e-3 < content["x0_variance"][-1] < 2


def test_analytic_variance_on_the_command_line(command, tmp_path):
    words = ["sampler=mixpp", "sampler.variance=analytic", "steps=4", "num_samples=4", "out=out"]
    status, _, err = command(sample, *words)
    assert status == 0, err
    config = json.loads((tmp_path / "out/manifest.json").read_text())["config"]["sampler"]
    assert config["variance"] == "analytic"
    assert len(config["x0_variance"]) == 12
    status, _, err = command(sample, *words[:-1], "out=b", "model.checkpoint=unet-1000")
    assert status == 2
    assert "measure it once with `python -m scripts.variance" in err
