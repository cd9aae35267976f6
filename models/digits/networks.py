"""The networks of the embedded model: U-Net, exact denoiser, classifier."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.digits.data import NUM_CLASSES, to_model_range
from models.patched import PatchUNet, patched_unet
from sampling import Schedule

UNET = {
    "patch": 2,
    "num_channels": 32,
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "attention_ds": (2,),
    "num_classes": NUM_CLASSES,
    "num_heads": 4,
    "norm_groups": 8,  # with 32 channels, 32 groups would erase every channel's mean
}


def unet(**options: Any) -> PatchUNet:
    """The embedded U-Net, or one with other options."""
    return patched_unet(UNET, options)


class ExactNetwork:
    """What a perfect training on given images would find, in place of a network.

    E[x_0 | x_t, y] over the images of label y, each as likely: a softmax of their distances to x_t.  A
    sampler that makes no error of its own then returns these images, each equally often.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], schedule: Schedule, device: Any
    ):
        self.images = to_model_range(images).flatten(1).to(device, torch.float64)
        self.labels = torch.from_numpy(labels).to(device)
        self.schedule = schedule

    def __call__(self, x: Tensor, t: float, condition: Tensor) -> tuple[Tensor, None]:
        a = self.schedule.abar(t)
        flat = x.flatten(1).double()
        # log N(x_t; sqrt(a) x_0, 1 - a) without what is the same for all images
        half = self.images.square().sum(1) / 2
        logits = (a**0.5 * flat @ self.images.T - a * half) / (1 - a)
        logits = logits.masked_fill(condition[:, None] != self.labels, -torch.inf)
        x_0 = logits.softmax(1) @ self.images
        eps = (flat - a**0.5 * x_0) / (1 - a) ** 0.5
        return eps.to(x.dtype).view_as(x), None


class DigitsClassifier(nn.Module):
    """Small CNN: x [B, 1, 28, 28] in [-1, 1] -> (features [B, 64], logits [B, 10]).

    The features follow a smooth nonlinearity and feed the last linear layer directly, as
    Inception's do.  In training, dropout lies between the two.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels in ((1, 16), (16, 32), (32, 64)):
            conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(channels), nn.SiLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 3 * 3, 64), nn.SiLU())
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(self.dropout(features))


def distorted(x: Tensor) -> Tensor:
    """Each digit turned by up to 0.2 rad, scaled by up to 10% and moved by up to 2 pixels."""
    u = 2 * torch.rand(4, len(x), device=x.device) - 1
    angle, scale, move = 0.2 * u[0], 1 + 0.1 * u[1], 2 * u[2:] / 14  # 14 pixels: half a side
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([cos, -sin, move[0], sin, cos, move[1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # outside is background, -1
