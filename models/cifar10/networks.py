"""The networks of the CIFAR-10 model: options of its U-Net, and the classifier of its scores."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cifar10.data import NUM_CLASSES
from models.patched import PatchUNet, patched_unet

UNET = {
    "patch": 2,
    "channels": 3,
    "num_channels": 64,
    "channel_mult": (1, 2),
    "num_res_blocks": 2,
    "attention_ds": (2,),
    "num_classes": NUM_CLASSES,
    "num_heads": 4,
    "norm_groups": 16,
}


def unet(**options: Any) -> PatchUNet:
    """The U-Net, or one with other options."""
    return patched_unet(UNET, options)


class CifarClassifier(nn.Module):
    """Small residual CNN: x [B, 3, 32, 32] in [-1, 1] -> (features [B, 64], logits [B, 10]).

    The features follow a smooth nonlinearity and feed the last linear layer directly, as
    Inception's do.  In training, dropout lies between the two.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels in ((3, 64), (64, 128), (128, 128)):
            layers += [_convolution(channels_in, channels), nn.MaxPool2d(2), _Residual(channels)]
        pool = [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * 128, 64), nn.SiLU()]
        self.body = nn.Sequential(*layers, *pool)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64, NUM_CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(self.dropout(features))


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(*(_convolution(channels, channels) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolution(channels_in: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.SiLU())


def shifted(x: Tensor) -> Tensor:
    """Each image mirrored or not, moved by up to 4 pixels: a crop of it with a reflected border."""
    b, size = len(x), x.shape[-1]
    x = torch.where((torch.rand(b, device=x.device) < 0.5)[:, None, None, None], x.flip(-1), x)
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    top, left = torch.randint(9, (2, b, 1), device=x.device)
    pixels = torch.arange(size, device=x.device)
    image = torch.arange(b, device=x.device)[:, None, None]
    rows, columns = (top + pixels)[:, :, None], (left + pixels)[:, None, :]
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
