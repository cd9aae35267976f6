"""What every pretrained model looks like to the rest: one small record, bound to labels by `given`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from files.media import Media
from models.memory import Room
from sampling import Denoiser, Gradient, Schedule
from sampling.denoise import Clip, Network, NetworkDenoiser, Reading

CPU = torch.device("cpu")
REMEDY = "use a lower model.precision, a device with more memory, or free some of it"


class Guidance(Protocol):
    """Something that steers samples towards labels by a gradient; `facts` go into manifests."""

    @property
    def facts(self) -> dict[str, Any]: ...

    def gradient(self, labels: Tensor) -> Gradient: ...


class Absent:
    """In place of a network without learned variance that is not here: for counting, never for pixels."""

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, None]:
        return torch.zeros_like(x), None


@dataclass(frozen=True)
class Backbone:
    """A pretrained diffusion model on its `device`, ready to sample.

    `network` predicts what `prediction_type` says (see `sampling.denoise.implied_x0`), and `clip`
    says whether x0 is limited to [-1, 1] (pixel models).  `shape` is the shape of one sample in
    the network's space; `decode` turns final samples into uint8 images [B, H, W, C] or videos
    [B, T, H, W, C], and `media` says how these are stored.  `sha256` is the checkpoint's and goes
    into every manifest, as do `facts`, what else pixels depend on that neither the checkpoint nor the
    model's config tells, in a form that JSON knows (where a name is that of a setting, they stand for
    it), and `encoding`, a digest of what the network is told of the prompts.

    `num_classes` is the number of labels that a sample can be made for, by a class-conditional
    network or by `guidance`.  A text model has `prompts`, and its labels are their indices;
    `embed` turns labels int64 [B] into what the network takes as condition, once a batch.

    `limit` is how x0 is limited where `clip` is not to [-1, 1].  `notes` are for the user, one line each.

    `evaluations_per_call` is 2 where a call evaluates the network with and without condition.
    `memory` estimates the bytes that sampling a batch of that size takes on the device; `room` and
    `decoding` know what did not fit into it.
    """

    network: Network
    schedule: Schedule
    shape: tuple[int, ...]
    num_classes: int | None
    clip: bool
    sha256: str
    decode: Callable[[Tensor], NDArray[np.uint8]]
    media: Media
    device: torch.device = CPU
    guidance: Guidance | None = None
    prediction_type: str = "epsilon"
    prompts: tuple[str, ...] | None = None
    embed: Callable[[Tensor], Any] | None = None
    evaluations_per_call: int = 1
    facts: Mapping[str, Any] = field(default_factory=dict)
    memory: Callable[[int], float] | None = None
    encoding: str | None = None
    room: Room = field(default_factory=lambda: Room(REMEDY))
    decoding: Room = field(default_factory=lambda: Room(REMEDY))
    limit: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_counted_only(self) -> bool:
        """Whether there is no network, but what can be counted without one."""
        return isinstance(self.network, Absent)

    def schedule_at(self, steps: int | None) -> Schedule:
        """The path of a run of so many steps: the same for all."""
        return self.schedule

    def decoded(self, x: Tensor) -> NDArray[np.uint8]:
        """`decode`, in as many parts as the memory asks for."""
        n = len(x)
        parts = list(self.decoding.batches(n, n, lambda part: self.decode(x[part]), self.device))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def given(self, labels: Tensor | None) -> Denoiser:
        """The model as the samplers see it, bound to labels int64 [B]; None: unconditional."""
        condition = gradient = None
        if labels is not None:
            y = labels.to(self.device)
            condition = self.embed(labels) if self.embed else y
            gradient = self.guidance.gradient(y) if self.guidance else None
        limit = self.limit or (Clip() if self.clip else None)
        reading = Reading(self.prediction_type, limit)
        return NetworkDenoiser(self.network, self.schedule, reading, condition, gradient)


def times(t: float, n: int, device: torch.device) -> Tensor:
    """t for each of n samples, [n]: int64 at a timestep, as networks are trained; float32 between two."""
    return torch.full((n,), int(t) if t == int(t) else t, device=device)


class ImageNetwork:
    """A module (x, t [B], y) -> [B, C or 2C, H, W] as a `Network`.

    With twice the channels of x the second half is the learned-variance fraction v.  An
    unconditional module (`conditional=False`) does not see the labels, which may still steer it
    by guidance.  It is told `time_scale` times t.
    """

    def __init__(self, net: nn.Module, conditional: bool = True, time_scale: float = 1.0):
        self.net = net
        self.conditional = conditional
        self.time_scale = time_scale

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]:
        y = condition if self.conditional else None
        told = torch.full((len(x),), t, device=x.device)
        if self.time_scale != 1:
            told = told * self.time_scale
        out = self.net(x, told, y)
        if out.shape[1] == x.shape[1]:
            return out, None
        eps, v = out.chunk(2, dim=1)
        return eps, v


def guided(given: Tensor, without: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): u + s (c - u) of outputs [B, C, ...].

    In the first `channels` alone, where that is a number: the others are those with condition.
    """
    led = without[:, :channels] + scale * (given[:, :channels] - without[:, :channels])
    return led if channels is None else torch.cat([led, given[:, channels:]], dim=1)


def optimized(net: nn.Module, channels_last: bool, compile: bool) -> nn.Module:
    """The same network in another memory layout, and compiled."""
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    return torch.compile(net) if compile else net  # type: ignore[return-value]


def to_uint8(x: Tensor) -> NDArray[np.uint8]:
    """[-1, 1] [B, C, H, W] -> uint8 [B, H, W, C] by truncation, as guided-diffusion saves."""
    x = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1).contiguous().cpu().numpy()
