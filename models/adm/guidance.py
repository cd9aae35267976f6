"""Classifier guidance (Dhariwal & Nichol 2021, section 4)."""

from typing import Any

import torch
from torch import Tensor

from models.adm.networks import Classifier
from sampling import Gradient


class ClassifierGuidance:
    """Steers samples towards their labels by `scale` * grad log p(label | x_t).

    `net` is a noise-aware classifier (x_t [B, C, H, W], t [B]) -> logits [B, num_labels].  How
    the gradient enters a step is the plan's business: see `sampling.plan.Plan.gradient`.
    `network` are the options it was built with, some of which change no shape but the gradient.
    Raises ValueError unless the scale is a number of at least 0.
    """

    def __init__(
        self, net: Classifier, scale: float, sha256: str, network: dict[str, Any] | None = None
    ):
        if type(scale) not in (int, float) or not scale >= 0:
            raise ValueError(f"guidance.scale must be a number of at least 0, got {scale!r}")
        self.net = net
        self.scale = scale
        self.sha256 = sha256
        self.network = network

    @property
    def num_labels(self) -> int:
        return self.net.num_labels

    @property
    def facts(self) -> dict[str, Any]:
        facts = {"name": "classifier", "scale": self.scale, "sha256": self.sha256}
        return facts if self.network is None else {**facts, "network": self.network}

    def gradient(self, labels: Tensor) -> Gradient:
        """The gradient function of samples made for `labels` int64 [B]."""

        def gradient(x: Tensor, t: float) -> Tensor:
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                logits = self.net(x, torch.full((len(x),), t, device=x.device))
                log_p = logits.log_softmax(dim=-1).gather(1, labels[:, None])
                (slope,) = torch.autograd.grad(log_p.sum(), x)
            return slope * self.scale

        return gradient
