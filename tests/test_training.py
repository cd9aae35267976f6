"""The training objectives, against closed forms and independent formulas."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT

from models.training import Ema, Objective, learning_rate
from sampling import Schedule, ddpm
from scripts import train
from scripts.train import training_data

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
            shift = plan.x0[k] * math.sqrt((1 - a) / a) * eps_error
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


def test_training_resumes_exactly_where_it_stopped(tmp_path, monkeypatch):
    """Six steps by the command, and three steps stopped and resumed, end in the same weights."""
    net = {"patch": 4, "num_channels": 32, "channel_mult": [1], "num_res_blocks": 1}
    net |= {"attention_ds": [], "num_classes": 10, "norm_groups": 8}
    base = ["unet", "--net", json.dumps(net), "--batch", "8", "--save-every", "3", "--steps", "6"]

    def resume(*extra: str) -> None:
        words = ["train.py", *base, "--out", str(tmp_path / "parts"), *extra]
        monkeypatch.setattr(sys, "argv", words)
        train.main()

    command = [sys.executable, "-m", "scripts.train", *base, "--out", str(tmp_path / "whole")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    resume("--stop-after", "3")
    assert not (tmp_path / "parts/unet-6.safetensors").exists()
    resume()
    whole = (tmp_path / "whole/unet-6.safetensors").read_bytes()
    assert whole == (tmp_path / "parts/unet-6.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="holds a training with --loss simple, not skipped_step"):
        resume("--steps", "9", "--loss", "skipped_step")


def test_golden_folder_is_small():
    """The tests' reference tensors stay some megabytes: a clone must stay quick."""
    assert sum(p.stat().st_size for p in GOLDEN.iterdir()) < 13 * 2**20
    assert np.load(GOLDEN / "to_uint8.npz")["float_in"].shape == (64,)


def test_full_mnist_by_option(monkeypatch):
    import torchvision.datasets

    def stored(root, train, download):
        """What torchvision's MNIST holds, without the download."""
        assert download
        data = torch.full((60 if train else 2000, 28, 28), 255, dtype=torch.uint8)
        return SimpleNamespace(data=data, targets=torch.arange(len(data)) % 10)

    monkeypatch.setattr(torchvision.datasets, "MNIST", stored)
    (x, y), (held_x, held_y) = training_data("mnist60k")
    assert x.shape == (60, 1, 28, 28) and x.min() == 1
    assert y[:12].tolist() == [*range(10), 0, 1]
    assert len(held_x) == len(held_y) == 1000
    unreachable = Mock(side_effect=RuntimeError("Error downloading train-images-idx3-ubyte.gz"))
    monkeypatch.setattr(torchvision.datasets, "MNIST", unreachable)
    with pytest.raises(SystemExit, match="use --data mnist10k"):
        training_data("mnist60k")
