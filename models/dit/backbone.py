"""DiT as a `Backbone`: a class-conditional transformer on the latents of Stable Diffusion's VAE."""

import json
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from files.media import Images
from models.backbone import Backbone, guided, optimized
from models.hub import hub_file
from models.pipelines import betas_config, decode, load_pipeline, pipeline_digest, prepare_vae
from models.weights import dtype_named, randomize
from sampling import Schedule

# The published networks by their hub ids, to be counted and timed without a file: 28 layers of 16
# heads of 72, the defaults of diffusers' class; latents are an eighth of the image.
PUBLISHED = {
    "facebook/DiT-XL-2-256": {"sample_size": 32, "out_channels": 8},
    "facebook/DiT-XL-2-512": {"sample_size": 64, "out_channels": 8},
}
VAE_SCALE = 8


def load(
    id: str,
    revision: str | None = None,
    guidance_scale: float = 1.5,
    guided_channels: int | None = 3,
    precision: str = "fp32",
    compile: bool = False,
    untrained: bool = False,
    fetch: bool = True,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A `DiTPipeline` of diffusers from the hub or a local folder, ready to sample.

    Guidance is that of `ClassNetwork`; a `guidance_scale` of 1 is none, at half the cost.
    `precision` is that of transformer and VAE, but for a VAE that needs float32.  `untrained` takes
    random weights, to measure speed without a file, and without `fetch` nothing is asked of the hub.
    Raises FileNotFoundError without such a model,
    ValueError for another kind and bad options.
    """
    dtype = dtype_named(precision)
    if type(guidance_scale) not in (int, float) or not guidance_scale >= 0:
        raise ValueError(
            f"model.guidance_scale must be a number of at least 0, got {guidance_scale!r}"
        )
    net: Any
    vae: Any
    if untrained:
        net, sha256 = _untrained(id, revision, dtype, device, fetch), "untrained"
        schedule, prediction, clip, scale, vae = (
            Schedule.linear(),
            "epsilon",
            False,
            VAE_SCALE,
            None,
        )
    else:
        hint = f", or fetch it with `python -m scripts.download model=dit model.id={id}`"
        pipe = load_pipeline(id, revision, None, dtype, ("DiTPipeline",), hint, fetch)
        sha256 = pipeline_digest(pipe)
        prepare_vae(pipe.vae, dtype)
        pipe.to(device)
        net, vae = pipe.transformer, pipe.vae
        schedule, prediction, clip = _diffusion(pipe.scheduler.config)
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
    config = net.config
    latents = config.in_channels if vae is None else vae.config.latent_channels
    _check_channels(guided_channels, config, latents)
    pixels = config.sample_size * scale
    return Backbone(
        network=ClassNetwork(
            optimized(net, False, compile),
            guidance_scale,
            guided_channels,
            config.num_embeds_ada_norm,
        ),
        schedule=schedule,
        shape=(config.in_channels, config.sample_size, config.sample_size),
        num_classes=config.num_embeds_ada_norm,
        clip=clip,
        sha256=sha256,
        decode=lambda latents: decode(vae, latents),
        media=Images((pixels, pixels, 3)),
        device=torch.device(device),
        prediction_type=prediction,
        evaluations_per_call=1 + (guidance_scale != 1),
    )


def _untrained(
    id: str, revision: str | None, dtype: torch.dtype, device: torch.device | str, fetch: bool
) -> Any:
    """The transformer with random numbers: of a published size, or as its config says."""
    from diffusers import DiTTransformer2DModel

    stated = PUBLISHED.get(id)
    if stated is None:
        path = hub_file(id, "transformer/config.json", revision, "model.id", fetch)
        try:
            stated = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is no model config ({error}): fetch {id} again") from None
    known = signature(DiTTransformer2DModel.__init__).parameters
    with torch.device("meta"):
        made: Any = DiTTransformer2DModel(**{k: v for k, v in stated.items() if k in known})
    net = randomize(nn.Module.to(made, dtype), device)  # diffusers' own `to` warns
    for buffer in net.buffers():
        buffer.zero_()  # of positions: no weights
    return net


def _diffusion(config: Any) -> tuple[Schedule, str, bool]:
    """(schedule, prediction type, whether x0 is clipped) of the pipeline's scheduler."""
    from sampling.inherit import schedule_of

    stated = betas_config(config)
    if stated["thresholding"] or (stated["clip_sample"] and stated["clip_sample_range"] != 1):
        raise ValueError(
            "the pipeline's scheduler limits x0 otherwise than to -1..1: set clip_sample and "
            "thresholding to false in its scheduler_config.json, as DiT's own has it"
        )
    return schedule_of(stated), stated["prediction_type"], bool(stated["clip_sample"])


def _check_channels(guided_channels: int | None, config: Any, latents: int) -> None:
    channels, out = config.in_channels, config.out_channels
    if channels != latents or out not in (None, channels, 2 * channels):
        raise ValueError(
            f"the transformer takes {channels} channels and gives {out or channels}, the VAE's latents "
            f"have {latents}: give a pipeline of parts that belong together as model.id=..."
        )
    if guided_channels is not None and guided_channels not in range(1, channels + 1):
        raise ValueError(
            f"model.guided_channels must be in 1..{channels}, or null for all of them, got "
            f"{guided_channels!r}"
        )


class ClassNetwork:
    """A class-conditional transformer with classifier-free guidance as a `Network`.

    Guidance of scale s is u + s (c - u), u with the label that stands for none, in the first
    `guided_channels` of the prediction: 3 of 4 as in the original's forward_with_cfg, by which its
    scores were made; None is all of them, as diffusers' `DiTPipeline`.  The other channels and the
    learned variance, where there is one, are those with label.
    """

    def __init__(self, net: nn.Module, scale: float, guided_channels: int | None, no_label: int):
        self.net, self.scale = net, scale
        self.guided_channels, self.no_label = guided_channels, no_label
        self.dtype = next(net.parameters()).dtype

    def __call__(self, x: Tensor, t: float, condition: Any) -> tuple[Tensor, Tensor | None]:
        if condition is None:
            raise ValueError("this network is class-conditional: pass labels y")
        n, is_guided = x.shape[1], self.scale != 1
        inputs, labels = x.to(self.dtype), condition
        if is_guided:
            inputs = torch.cat([inputs, inputs])
            labels = torch.cat([labels, torch.full_like(labels, self.no_label)])
        times = torch.full((len(inputs),), t, device=x.device)
        output = self.net(inputs, timestep=times, class_labels=labels, return_dict=False)[0]
        output = output.to(x.dtype)
        if is_guided:
            given, without = output.chunk(2)
            led = n if self.guided_channels is None else self.guided_channels
            output = guided(given, without, self.scale, led)
        return output[:, :n], output[:, n:] if output.shape[1] == 2 * n else None
