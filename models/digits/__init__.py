"""The embedded model: a small class-conditional ADM U-Net for 28x28 handwritten digits.

Everything it needs is in this folder: 10,000 MNIST images, the trained weights and the
small classifier whose features the `digits` scores use.  CARD.md says how they were made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.adm import UNet
from models.backbone import Backbone, NetworkDenoiser, file_sha256, load_weights, to_uint8
from sampling import Denoiser, Schedule

HERE = Path(__file__).parent
IMAGE_SIZE = 28
NUM_CLASSES = 10
HELD_OUT_STRIDE = 10  # every 10th image is held out from all training

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


def load_images(split: str = "all") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Real digits: images uint8 [N, 28, 28] and labels int64 [N] of the embedded MNIST subset.

    Splits: `all` (10,000), `train` (9,000), `held_out` (the other 1,000), and the two
    disjoint, class-balanced sets `reference` (4,300: what scores compare with) and `floor`
    (4,300: the real images that play the perfect sampler).  Raises ValueError for another split.
    """
    with np.load(HERE / "mnist10k.npz") as file:
        images, labels = file["images"], file["labels"].astype(np.int64)
    index = np.arange(len(images))
    held_out = index % HELD_OUT_STRIDE == HELD_OUT_STRIDE - 1
    splits = {
        "all": index >= 0,
        "train": ~held_out,
        "held_out": held_out,
        "reference": _balanced(labels, index % 2 == 0),
        "floor": _balanced(labels, index % 2 == 1),
    }
    if split not in splits:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(splits)}")
    return images[splits[split]], labels[splits[split]]


def _balanced(labels: NDArray[np.int64], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The first 430 of each class among the given images (the rarest class has 431 in a half)."""
    chosen = np.zeros(len(labels), np.bool_)
    for label in range(NUM_CLASSES):
        chosen[np.flatnonzero(among & (labels == label))[:430]] = True
    return chosen


def load_reference_images(split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """`load_images` with images uint8 [N, 28, 28, 1], which is what extractors take."""
    images, labels = load_images(split)
    return images[..., None], labels


def to_model_range(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, 28, 28] -> float32 [N, 1, 28, 28] in [-1, 1]."""
    return torch.from_numpy(images).float()[:, None] / 127.5 - 1


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


class ExactDenoiser:
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


def load(
    checkpoint: str = "unet-6500",
    clip: bool = True,
    device: torch.device | str = "cpu",
    **net: Any,
) -> Backbone:
    """The embedded model from `models/digits/<checkpoint>.safetensors` or a path to a file.

    `unet-1000`, `unet-3000` and `unet-6500` are the weights after so many training steps; `exact` is
    no network but the `ExactDenoiser` of the split `floor`, so that a perfect sampler of it scores
    the real-vs-real floor.  It has no learned variance.
    `net` overrides network options, for models trained with others.  Raises FileNotFoundError
    or ValueError (with the remedy) for a missing or unfitting file.
    """
    schedule = Schedule.linear()
    denoiser: Denoiser
    if checkpoint == "exact":
        path = HERE / "mnist10k.npz"
        denoiser = ExactDenoiser(*load_images("floor"), schedule, device)
    else:
        path = _weights(checkpoint)
        model = PatchUNet(**{**UNET, **net})
        load_weights(model, path, device)
        denoiser = NetworkDenoiser(model.eval())
    return Backbone(
        denoiser=denoiser,
        schedule=schedule,
        shape=(1, IMAGE_SIZE, IMAGE_SIZE),
        num_classes=NUM_CLASSES,
        clip=clip,
        sha256=file_sha256(path),
        decode=to_uint8,
    )


def _weights(checkpoint: str) -> Path:
    path = HERE / f"{checkpoint}.safetensors"
    if not path.exists():
        path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f"no digits checkpoint {checkpoint!r}: use unet-1000, unet-3000, unet-6500, exact or the "
            "path of a file that `python scripts/train_digits.py unet` wrote"
        )
    return path
