"""Shared fixtures: the golden numbers recorded from guided-diffusion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from models.adm import UNet

GOLDEN = Path(__file__).parent / "golden"


def golden_json(name: str):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_weights(tensors: dict[str, torch.Tensor], model: str) -> dict[str, torch.Tensor]:
    """The stored weights of one tiny network; int8 tensors mean value / 256."""
    prefix = f"{model}/sd/"
    return {
        key.removeprefix(prefix): value.float() / 256 if value.dtype == torch.int8 else value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }


@pytest.fixture(scope="session")
def unet_forward() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "unet_forward.safetensors")


@pytest.fixture(scope="session")
def trajectories() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "trajectories.safetensors")


@pytest.fixture(scope="session")
def golden_schedules():
    return np.load(GOLDEN / "schedules.npz")


@pytest.fixture(scope="session")
def golden_t64(unet_forward) -> UNet:
    """The tiny class-conditional network that the golden trajectories used."""
    config = dict(golden_json("unet_forward")["models"]["t64"]["config"])
    del config["kind"], config["image_size"]
    net = UNet(**config)
    net.load_state_dict(golden_weights(unet_forward, "t64"))
    return net.eval()
