"""What every pretrained model looks like to the samplers: one small record."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from sampling import Denoiser, Gradient, Schedule

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_named(precision: str) -> torch.dtype:
    """The dtype of that name; ValueError with the known names for another."""
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


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


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_sha256(path: Path) -> str | None:
    """The hash in `<path>.sha256`, which a download writes; None if there is no such file.

    Raises ValueError if it is not in sha256sum's format.
    """
    record = path.with_name(path.name + ".sha256")
    try:
        text = record.read_text(errors="replace")
    except FileNotFoundError:
        return None
    if not (match := re.fullmatch(r"([0-9a-fA-F]{64}) [ *][^\n]+\n?", text)):
        raise ValueError(f"{record} is not in the format of sha256sum: restore or remove it")
    return match[1].lower()


def load_weights(
    net: nn.Module, path: Path, device: torch.device | str = "cpu", remedy: str = "restore it"
) -> None:
    """Load a .safetensors or a torch .pt file into `net`, which may be on the meta device.

    Every tensor goes straight to `device` in the dtype of the parameter that it fills, one at a
    time from a memory-mapped file: loading into half precision needs half the file's size, and
    no second copy.  Raises ValueError naming the file and the `remedy` if it is damaged, or the
    first key or shape that differs.
    """
    weights = read_weights(path, remedy)
    expected = net.state_dict()
    check_fit({key: list(value.shape) for key, value in expected.items()}, weights, path)
    net.load_state_dict(
        {key: weights[key].to(device, value.dtype) for key, value in expected.items()}, assign=True
    )


def read_weights(path: Path, remedy: str = "restore it") -> dict[str, Tensor]:
    """The named tensors of a .safetensors or torch file; never executes code from it.

    Raises ValueError naming the file and the `remedy` if it is damaged or holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            weights = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            if "_use_new_zipfile_serialization" not in str(error):
                raise
            # A file in torch's old format cannot be memory-mapped.
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}): {remedy}") from None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path} does not hold a dictionary of tensors: {remedy}")
    return weights


def check_fit(shapes: dict[str, list[int]], weights: dict[str, Tensor], path: Path) -> None:
    """Raise ValueError at the first key or shape in which `weights` differ from `shapes`."""
    for key in [*shapes, *weights]:
        ours, theirs = shapes.get(key), weights.get(key)
        if ours is None or theirs is None or ours != list(theirs.shape):
            want = "no such key" if ours is None else f"shape {ours}"
            have = "no such key" if theirs is None else f"shape {list(theirs.shape)}"
            raise ValueError(
                f"{path} does not fit the network: at {key} the network has {want}, "
                f"the file {have}; check the model's options"
            )
