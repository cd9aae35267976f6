"""The CIFAR-10 model as a `Backbone`."""

from collections.abc import Mapping
from typing import Any

import torch

from models.backbone import Backbone
from models.cifar10.data import HERE, IMAGE_SIZE
from models.cifar10.networks import unet
from models.patched import patched_backbone, weights_file


def load(
    checkpoint: str = "unet-6500",
    clip: bool = True,
    precision: str = "fp32",
    channels_last: bool | None = None,
    compile: bool = False,
    net: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """The CIFAR-10 model from `models/cifar10/<checkpoint>.safetensors` or a path to a file.

    `net` overrides network options, for models trained with others.  Raises FileNotFoundError
    or ValueError (with the remedy) for a missing or unfitting file, or an unknown precision.
    """
    return patched_backbone(
        unet(**net or {}),
        weights_file(HERE, checkpoint, "train it with `python -m scripts.train model=cifar10`"),
        IMAGE_SIZE,
        clip=clip,
        precision=precision,
        channels_last=channels_last,
        compile=compile,
        device=device,
    )
