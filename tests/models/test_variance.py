"""Measured errors of x0: against a case with a known answer, stored and found again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import sample
from models import variance
from models.backbone import Backbone, to_uint8
from models.digits.backbone import load
from sampling import Schedule

SCHEDULE = Schedule.linear()


def backbone(denoiser, clip=False, sha256="f" * 64):
    return Backbone(denoiser, SCHEDULE, (1, 4, 4), None, clip, sha256, to_uint8)


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
    ours, other = backbone(None), backbone(None, sha256="e" * 64)
    path = variance.save_x0_variance(ours, [0, 499, 999], [1e-4, 1e-2, 1.0], n=7)
    assert path.parent == tmp_path
    found = variance.stored_x0_variance(ours)
    assert found.shape == (1000,)
    assert found[[0, 499, 999]] == pytest.approx([1e-4, 1e-2, 1.0])
    assert found[749] == pytest.approx(0.1, rel=0.01)  # in between, the logarithm
    assert json.loads(path.read_text())["images"] == 7
    for lacking in (other, backbone(None, clip=True)):
        with pytest.raises(FileNotFoundError, match=r"scripts/variance\.py"):
            variance.stored_x0_variance(lacking)
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        variance.stored_x0_variance(ours)


def test_that_of_digits_is_in_the_repository_and_sane():
    found = variance.stored_x0_variance(load())
    # At the top x0 is eps's error times 160, clipped: worse than the mean image would be.
    assert found[0] < 1e-3 < found[300] < found[600] < found[999] < 2
    posterior = found * SCHEDULE.alpha_bar / (1 - SCHEDULE.alpha_bar)  # the error of eps
    assert (posterior < 1.2).all()
    assert np.isfinite(found).all()


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
