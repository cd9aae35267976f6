"""A pixel model of diffusers (`UNet2DModel`, as `DDPMPipeline` and `DDIMPipeline` have it) as a `Backbone`."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from files.media import Images
from models.backbone import Backbone, ImageNetwork
from models.pipelines import pipeline_digest
from sampling.denoise import Clip


def pixel_backbone(
    pipe: Any, scheduler: Mapping[str, Any], device: torch.device | str = "cpu"
) -> Backbone:
    """The pipeline's U-Net, read as `scheduler` says, the config of a scheduler in our options.

    With twice the channels its second half is the learned variance; a network with `num_class_embeds`
    is class-conditional.  Raises ValueError for images of another number of channels than 1 or 3, for
    outputs that are none of an image, and conditions that are no classes.
    """
    from sampling.inherit import reading_of, schedule_of

    unet, config = pipe.unet, pipe.unet.config
    _check_network(config)
    size = config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    limit = reading_of(SimpleNamespace(**scheduler)).limit
    return Backbone(
        network=ImageNetwork(_Called(unet.to(device)), config.num_class_embeds is not None),
        schedule=schedule_of(scheduler),
        shape=(config.in_channels, height, width),
        num_classes=config.num_class_embeds,
        clip=limit is not None,
        limit=None if limit == Clip() else limit,
        sha256=pipeline_digest(pipe),
        decode=rounded,
        media=Images((height, width, config.in_channels)),
        device=torch.device(device),
        prediction_type=scheduler["prediction_type"],
    )


def _check_network(config: Any) -> None:
    channels, out = config.in_channels, config.out_channels
    if channels not in (1, 3):
        raise ValueError(
            f"the U-Net takes {channels} channels, and images have 1 or 3: a model of latents needs its "
            "decoder, so give the folder of its whole pipeline as model.id=..."
        )
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"the U-Net takes {channels} channels and gives {out}, which is neither a prediction nor one "
            "with a learned variance: give another pipeline as model.id=..."
        )
    if config.class_embed_type is not None:
        raise ValueError(
            f"the U-Net is told {config.class_embed_type!r} embeddings instead of a class, which no "
            "setting gives: give a network with num_class_embeds as model.id=..."
        )
    if config.sample_size is None:
        raise ValueError(
            "unet/config.json has no sample_size, the pixels of an image: write it there, as "
            '"sample_size": 32'
        )


class _Called(nn.Module):
    """A `UNet2DModel` as a module (x, t [B], y) -> [B, C, H, W]."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        dtype = next(self.unet.parameters()).dtype
        out: Tensor = self.unet(x.to(dtype), t, y, return_dict=False)[0]
        return out.to(x.dtype)


def rounded(x: Tensor) -> NDArray[np.uint8]:
    """[-1, 1] [B, C, H, W] -> uint8 [B, H, W, C], rounded as diffusers' pipelines do."""
    pixels = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    images: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8)
    return images
