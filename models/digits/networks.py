"""The networks of the embedded model: U-Net, exact denoiser, classifier."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.adm.networks import UNet
from models.digits.data import NUM_CLASSES, to_model_range
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


class PatchUNet(nn.Module):
    """An ADM U-Net that sees `patch` x `patch` pixels as channels of one position.

    Pixel-unshuffling only permutes pixels, so the diffusion is unchanged, while a CPU does
    far less memory traffic per call.  Where the U-Net's down-sampling needs it, the image is
    padded with zeros inside the network and the output cropped.

    forward: x [B, 1, H, W], t [B], y [B] -> [B, 2, H, W], eps then variance values.
    """

    def __init__(self, patch: int, **unet_options: Any):
        super().__init__()
        self.patch = patch
        self.multiple = patch * 2 ** (len(unet_options["channel_mult"]) - 1)
        self.unet = UNet(in_channels=patch**2, **unet_options)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        right, bottom = -width % self.multiple, -height % self.multiple
        x = F.pad(x, (right // 2, right - right // 2, bottom // 2, bottom - bottom // 2))
        out = self.unet(F.pixel_unshuffle(x, self.patch), t, y)
        out = torch.cat([F.pixel_shuffle(half, self.patch) for half in out.chunk(2, 1)], 1)
        return out[..., bottom // 2 : bottom // 2 + height, right // 2 : right // 2 + width]


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
        self.alpha_bar = schedule.alpha_bar

    def __call__(self, x: Tensor, t: float, condition: Tensor) -> tuple[Tensor, None]:
        a = float(self.alpha_bar[int(t)])
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
