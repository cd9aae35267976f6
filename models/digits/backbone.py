"""The embedded model as a `Backbone`."""

from collections.abc import Mapping
from typing import Any

import torch

from files.media import Images
from files.whole import file_sha256
from models.backbone import Backbone, to_uint8
from models.digits.data import HERE, IMAGE_SIZE, NUM_CLASSES, load_images
from models.digits.networks import ExactNetwork, unet
from models.patched import patched_backbone, weights_file
from sampling import Schedule

REMEDY = (
    "use unet-1000, unet-3000, unet-6500, exact or the path of a file that "
    "`python -m scripts.train model=digits` wrote"
)


def load(
    checkpoint: str = "unet-6500",
    clip: bool = True,
    precision: str = "fp32",
    channels_last: bool | None = None,
    compile: bool = False,
    net: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Backbone:
    """The embedded model from `models/digits/<checkpoint>.safetensors` or a path to a file.

    `unet-1000`, `unet-3000` and `unet-6500` are the weights after so many training steps; `exact` is
    no network but the `ExactNetwork` of the split `floor`, so that a perfect sampler of it scores
    the real-vs-real floor.  It has no learned variance, and no precision but its own.
    `net` overrides network options, for models trained with others.  Raises FileNotFoundError
    or ValueError (with the remedy) for a missing or unfitting file, or an unknown precision.
    """
    if checkpoint == "exact":
        if precision != "fp32":
            raise ValueError("checkpoint=exact is no network: set model.precision=fp32")
        return _exact(clip, device)
    return patched_backbone(
        unet(**net or {}),
        weights_file(HERE, checkpoint, REMEDY),
        IMAGE_SIZE,
        clip=clip,
        precision=precision,
        channels_last=channels_last,
        compile=compile,
        device=device,
    )


def _exact(clip: bool, device: torch.device | str) -> Backbone:
    schedule = Schedule.linear()
    return Backbone(
        network=ExactNetwork(*load_images("floor"), schedule, device),
        schedule=schedule,
        shape=(1, IMAGE_SIZE, IMAGE_SIZE),
        num_classes=NUM_CLASSES,
        clip=clip,
        sha256=file_sha256(HERE / "mnist10k.npz"),
        decode=to_uint8,
        media=Images((IMAGE_SIZE, IMAGE_SIZE, 1)),
        device=torch.device(device),
    )
