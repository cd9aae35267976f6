"""The numbers of docs/flow.md, and that the samplers which they are of are the originals'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT
from diffusers import FlowMatchEulerDiscreteScheduler, LTXEulerAncestralRFScheduler

from sampling import tabulate
from scripts import bench, flow

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers


def test_the_page_has_the_tables_that_its_command_prints(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["flow"])
    flow.main()
    page = (ROOT / "docs/flow.md").read_text()
    assert "python -m scripts.flow" in page
    marginals, errors = capsys.readouterr().out.strip().split("\n\n")
    assert marginals in page and errors in page


def test_what_a_step_costs_is_printed(capsys, monkeypatch):
    monkeypatch.setattr("scripts.bench.STEP_ROUNDS", 2)
    monkeypatch.setattr("sys.argv", ["bench", "step"])
    bench.main()
    out = capsys.readouterr().out
    assert out.count(" ms against ") == out.count("of diffusers'") == 4


def test_renoising_is_that_of_diffusers():
    theirs = tabulate(FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True), 8)
    ours = flow.renoising(8)
    for column in ("x", "noise"):
        np.testing.assert_allclose(getattr(ours, column), getattr(theirs, column), atol=1e-6)
    np.testing.assert_allclose(ours.x0, theirs.x0, atol=1e-6)


def test_the_ancestral_sampler_is_that_of_diffusers():
    theirs = LTXEulerAncestralRFScheduler.from_config(flow.EULER.config)
    theirs.set_timesteps(8)
    x, v = torch.randn(2, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for row, t in zip(flow.ancestral(8).rows(), theirs.timesteps, strict=True):
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        want = theirs.step(v, t, x, torch.Generator().manual_seed(1)).prev_sample
        got = row.x * x + row.x0[0] * (x - row.sigma * v) + row.noise * z
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        x = want


@pytest.mark.parametrize("builder", [flow.flow_grpo, flow.coefficients_preserving])
def test_rows_for_reinforcement_learning_are_their_formulas(builder):
    """In the words of their code, of the network's v instead of x0."""
    x, v = 0.7, -1.3
    rows = list(builder(8).rows())
    for i, row in enumerate(rows):
        t, s = row.sigma, rows[i + 1].sigma if i < 7 else 0.0
        x0, dt = x - t * v, s - t
        if builder is flow.flow_grpo:
            std = 0.7 * np.sqrt(t / (1 - (t if t < 1 else rows[1].sigma)))
            mean = x * (1 + std**2 / (2 * t) * dt)
            mean += v * (1 + std**2 * (1 - t) / (2 * t)) * dt
            noise = std * np.sqrt(-dt)
        else:
            noise = s * np.sin(0.7 * np.pi / 2)
            mean = x0 * (1 - s) + (x + v * (1 - t)) * np.sqrt(s**2 - noise**2)
        assert row.x * x + row.x0[0] * x0 == pytest.approx(mean, abs=1e-12)
        assert row.noise == pytest.approx(noise, abs=1e-12)
