"""What every pretrained model looks like to the samplers: one small record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sampling import Denoiser, Gradient, Schedule


class Guidance(Protocol):
    """Something that steers samples towards labels by a gradient; `facts` go into manifests."""

    @property
    def facts(self) -> dict[str, Any]: ...

    def gradient(self, labels: Tensor) -> Gradient: ...


@dataclass(frozen=True)
class Backbone:
    """A pretrained diffusion model, ready to sample.

    `shape` is one sample's (C, H, W); `clip` says whether x0 is limited to [-1, 1] (pixel
    models); `decode` turns final samples into uint8 images [B, H, W, C]; `sha256` is the
    checkpoint's and goes into every manifest.  `num_classes` is the number of labels that a
    sample can be made for, by a class-conditional network or by `guidance`.

    A text-to-image model has `prompts`, and its labels are their indices; `embed` turns labels
    int64 [B] into what the denoiser takes as condition, once a batch.  `evaluations_per_call` is 2
    where a call evaluates the network with and without condition.  `image_size` is the decoded
    images' (H, W, C) where it is not that of `shape`; `prediction_type` is what the network
    predicts (see `sampling.run.implied_x0`).

    Videos are decoded into uint8 [B, T, H, W, C]; `fps` and `bit_rate` (bits a second) say how they
    are stored.  `memory` estimates the bytes that sampling a batch of that size takes on the device.
    """

    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    num_classes: int | None
    clip: bool
    sha256: str
    decode: Callable[[Tensor], NDArray[np.uint8]]
    guidance: Guidance | None = None
    prediction_type: str = "epsilon"
    prompts: tuple[str, ...] | None = None
    embed: Callable[[Tensor], Any] | None = None
    evaluations_per_call: int = 1
    image_size: tuple[int, ...] | None = None
    fps: int | None = None
    bit_rate: int = 0
    memory: Callable[[int], float] | None = None

    @property
    def stored_bytes(self) -> int:
        """About what a sample takes on disk: an image is in its shard and in samples.npz."""
        if self.fps:
            return self.bit_rate * self.shape[1] // self.fps // 8
        return 2 * math.prod(self.image_size or self.shape)


class NetworkDenoiser:
    """A network (x, t [B], y) -> [B, C or 2C, H, W] as a `Denoiser`.

    With twice the channels of x the second half is the learned-variance fraction v.  An
    unconditional network (`conditional=False`) does not see the condition, which may still
    steer it by guidance.
    """

    def __init__(self, net: nn.Module, conditional: bool = True):
        self.net = net
        self.conditional = conditional

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]:
        y = condition if self.conditional else None
        out = self.net(x, torch.full((len(x),), t, device=x.device), y)
        if out.shape[1] == x.shape[1]:
            return out, None
        eps, v = out.chunk(2, dim=1)
        return eps, v


def to_uint8(x: Tensor) -> NDArray[np.uint8]:
    """[-1, 1] [B, C, H, W] -> uint8 [B, H, W, C] by truncation, as guided-diffusion saves."""
    x = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1).contiguous().cpu().numpy()
