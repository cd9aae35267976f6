"""What every pretrained model looks like to the samplers: one small record."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sampling import Denoiser, Schedule


@dataclass(frozen=True)
class Backbone:
    """A pretrained diffusion model, ready to sample.

    `shape` is one sample's (C, H, W); `clip` says whether x0 is limited to [-1, 1] (pixel
    models); `decode` turns final samples into uint8 images [B, H, W, C]; `sha256` is the
    checkpoint's and goes into every manifest.
    """

    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    num_classes: int | None
    clip: bool
    sha256: str
    decode: Callable[[Tensor], NDArray[np.uint8]]


class NetworkDenoiser:
    """A network (x, t [B], y) -> [B, C or 2C, H, W] as a `Denoiser`.

    With twice the channels of x the second half is the learned-variance fraction v.
    """

    def __init__(self, net: nn.Module):
        self.net = net

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]:
        out = self.net(x, torch.full((len(x),), t, device=x.device), condition)
        if out.shape[1] == x.shape[1]:
            return out, None
        eps, v = out.chunk(2, dim=1)
        return eps, v


def to_uint8(x: Tensor) -> NDArray[np.uint8]:
    """[-1, 1] [B, C, H, W] -> uint8 [B, H, W, C] by truncation, as guided-diffusion saves."""
    x = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(net: nn.Module, path: Path) -> None:
    """Load a safetensors file into `net`.

    Raises ValueError naming the file if it is damaged, or the first key or shape that differs.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): restore or download it again") from None
    expected = net.state_dict()
    for key in [*expected, *weights]:
        ours, theirs = expected.get(key), weights.get(key)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            want = "no such key" if ours is None else f"shape {list(ours.shape)}"
            have = "no such key" if theirs is None else f"shape {list(theirs.shape)}"
            raise ValueError(
                f"{path} does not fit the network: at {key} the network has {want}, "
                f"the file {have}; check the model's options"
            )
    net.load_state_dict(weights)
