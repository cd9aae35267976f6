"""From what a network says to the clean image it implies.

Networks predict the noise, v or the image; pixel models limit that image; a classifier may pull at
it.  All of this happens here, and the samplers see one thing: a `Denoiser`, (x_t, t) -> (x0, v).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .options import check_choice
from .schedule import Level, Schedule


class Denoised(NamedTuple):
    """What is known of the clean image behind x_t; every tensor has the shape of x_t.

    `x0` is the image itself.  `v` is the learned-variance fraction in about [-1, 1], or None where
    the network has none.  `gradient` is grad log p(y | x_t) times the guidance scale, or None
    without guidance: how far it moves x0 is the business of the sampler (`Plan.gradient`).
    """

    x0: Tensor
    v: Tensor | None = None
    gradient: Tensor | None = None


# (x_t [B, ...], t) -> (x0, v) or `Denoised`; t is the network's time, on a diffusion 0..T-1.  Where
# a plan has an `eps_scale` it is passed, too: (x_t, t, eps_scale).
Denoiser = Callable[..., Denoised | tuple[Tensor, Tensor | None]]

# (x_t, t) -> grad log p(y | x_t) times the guidance scale, of one batch's labels y.
Gradient = Callable[[Tensor, float], Tensor]


PREDICTION_TYPES = ("epsilon", "v_prediction", "flow_prediction", "sample")


def implied_x0(output: Tensor, x: Tensor, level: Level, prediction_type: str = "epsilon") -> Tensor:
    """The clean image that a network's output at x_t = alpha x0 + sigma eps implies.

    `prediction_type` says what the output is, in diffusers' words: `epsilon` is the noise,
    `v_prediction` v = alpha eps - sigma x0 (Salimans & Ho 2022), `flow_prediction` eps - x0 (flow
    matching), `sample` x0 itself.  Raises ValueError for another.
    """
    alpha, sigma = level
    if prediction_type == "epsilon":
        return (x * (1 / alpha)).sub_(output, alpha=sigma / alpha)
    if prediction_type == "v_prediction":
        norm = alpha**2 + sigma**2
        return (x * (alpha / norm)).sub_(output, alpha=sigma / norm)
    if prediction_type == "flow_prediction":
        if abs(alpha + sigma - 1) < 1e-15:  # as on the path of flow matching
            return torch.sub(x, output, alpha=sigma)
        return (x * (1 / (alpha + sigma))).sub_(output, alpha=sigma / (alpha + sigma))
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    return output


@dataclass(frozen=True)
class Clip:
    """Limits x0 to -size..size."""

    size: float = 1.0

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(-self.size, self.size)


@dataclass(frozen=True)
class DynamicThreshold:
    """Limits x0 by its own size (Saharia et al. 2022, section 2.3).

    The `quantile` of |x0| of a sample, within 1..`largest`, becomes 1, and what is beyond it too.
    """

    quantile: float = 0.995
    largest: float = 1.0

    def __call__(self, x0: Tensor) -> Tensor:
        size = x0.flatten(1).abs().quantile(self.quantile, dim=1).clamp(1, self.largest)
        size = size.reshape(-1, *[1] * (x0.ndim - 1))
        return torch.minimum(torch.maximum(x0, -size), size) / size


@dataclass(frozen=True)
class Reading:
    """How a network's output is read: what it predicts, and what limits the x0 that it implies.

    Raises ValueError for an unknown `prediction_type` (see `implied_x0`).
    """

    prediction_type: str = "epsilon"
    limit: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)

    def x0(self, output: Tensor, x: Tensor, level: Level, eps_scale: float = 1.0) -> Tensor:
        """The limited x0; its eps is divided by `eps_scale` before."""
        x0 = implied_x0(output, x, level, self.prediction_type)
        if eps_scale != 1:
            x0 = (x0 * (1 / eps_scale)).add_(x, alpha=(1 - 1 / eps_scale) / level.alpha)
        return x0 if self.limit is None else self.limit(x0)


class Network(Protocol):
    """A pretrained network: (x_t [B, ...], t, condition) -> (output, v), both in x_t's shape.

    What the output predicts is told by a `Reading`; v is that of `Denoised`.
    """

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network bound to all that one batch needs, as a `Denoiser`.

    `condition` is what the network is told besides x_t and t, `gradient` the guidance of a
    classifier.  The noise level is a plain float: nothing here waits for the device.

    `eps_scale` divides the network's eps before x0 is limited (see `plan.scale_eps`).
    """

    network: Network
    schedule: Schedule
    reading: Reading = Reading()
    condition: Any = None
    gradient: Gradient | None = None

    def __call__(self, x: Tensor, t: float, eps_scale: float = 1.0) -> Denoised:
        output, v = self.network(x, t, self.condition)
        x0 = self.reading.x0(output, x, self.schedule.level(t), eps_scale)
        return Denoised(x0, v, None if self.gradient is None else self.gradient(x, t))
