"""The embedded model as a `Backbone`."""

from pathlib import Path
from typing import Any

import torch

from files.media import Images
from files.whole import file_sha256
from models.backbone import Backbone, ImageNetwork, to_uint8
from models.digits.data import HERE, IMAGE_SIZE, NUM_CLASSES, load_images
from models.digits.networks import UNET, ExactNetwork, PatchUNet
from models.weights import load_weights
from sampling import Schedule
from sampling.denoise import Network


def load(
    checkpoint: str = "unet-6500", clip: bool = True, device: torch.device | str = "cpu", **net: Any
) -> Backbone:
    """The embedded model from `models/digits/<checkpoint>.safetensors` or a path to a file.

    `unet-1000`, `unet-3000` and `unet-6500` are the weights after so many training steps; `exact` is
    no network but the `ExactNetwork` of the split `floor`, so that a perfect sampler of it scores
    the real-vs-real floor.  It has no learned variance.
    `net` overrides network options, for models trained with others.  Raises FileNotFoundError
    or ValueError (with the remedy) for a missing or unfitting file.
    """
    schedule = Schedule.linear()
    network: Network
    if checkpoint == "exact":
        path = HERE / "mnist10k.npz"
        network = ExactNetwork(*load_images("floor"), schedule, device)
    else:
        path = _weights(checkpoint)
        model = PatchUNet(**{**UNET, **net})
        load_weights(model, path, device)
        network = ImageNetwork(model.eval())
    return Backbone(
        network=network,
        schedule=schedule,
        shape=(1, IMAGE_SIZE, IMAGE_SIZE),
        num_classes=NUM_CLASSES,
        clip=clip,
        sha256=file_sha256(path),
        decode=to_uint8,
        media=Images((IMAGE_SIZE, IMAGE_SIZE, 1)),
        device=torch.device(device),
    )


def _weights(checkpoint: str) -> Path:
    path = HERE / f"{checkpoint}.safetensors"
    if not path.exists():
        path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f"no digits checkpoint {checkpoint!r}: use unet-1000, unet-3000, unet-6500, exact or the "
            "path of a file that `python -m scripts.train unet` wrote"
        )
    return path
