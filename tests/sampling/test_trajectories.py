"""Every step of guided-diffusion's 78 recorded sampling runs, at the stated tolerances."""

from __future__ import annotations

import pytest
import torch

from experiments.check.golden import recorded_runs, replay, trajectory_tolerance

RUNS = recorded_runs()


@pytest.mark.parametrize("id", RUNS)
def test_every_step_in_float32(id, trajectories, golden_t64):
    run, golden = RUNS[id], trajectories[f"{id}/x"]
    ours = replay(run, golden_t64)
    error = (ours - golden).abs().flatten(1).amax(1)
    assert ours.shape == golden.shape
    assert (error <= trajectory_tolerance(run, golden)).all(), error


@pytest.mark.parametrize("id", [id for id in RUNS if not id.startswith("unet")])
def test_every_step_in_float64(id, trajectories, golden_t64):
    run = RUNS[id]
    ours = replay(run, golden_t64, torch.float64)
    tolerance = 1e-10 if run["noise_schedule"] == "linear" else 1e-8
    torch.testing.assert_close(ours, trajectories[f"{id}/x_float64"], rtol=0, atol=tolerance)


def test_all_78_runs_are_replayed():
    assert len(RUNS) == 78
