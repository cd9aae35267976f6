"""From the folder or hub id of any pipeline of diffusers to what can be sampled."""

import hashlib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models.dit
import models.stable_diffusion
from files.media import Images, Media, Videos
from models.backbone import Backbone
from models.diffusers.pixels import pixel_backbone
from models.diffusers.running import FINEST, Looking, WholePipeline, nominal_levels
from models.distilled import check_distilled
from models.hub import hub_file
from models.pipelines import (
    load_pipeline,
    pipeline_digest,
    pipeline_index,
    tokens_digest,
)
from models.weights import dtype_named
from sampling import Schedule
from sampling.inherit import inherited, schedule_of
from sampling.options import check_options

PIXELS = ("DDPMPipeline", "DDIMPipeline")
TEXT = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# Arguments of a call that other settings say, or nobody can.
OURS = {
    **{"prompt": "prompts", "class_labels": "label", "guidance_scale": "model.guidance_scale"},
    **{"num_inference_steps": "steps", "timesteps": "spacing", "sigmas": "spacing"},
    **{"latents": "seed", "generator": "seed", "batch_size": "batch_size", "mu": "steps"},
    **{"num_images_per_prompt": "num_samples", "num_videos_per_prompt": "num_samples"},
    **{"output_type": "format", "return_dict": "format", "eta": "sampler.eta"},
}
# Arguments that no command line can give: tensors, images, functions.
TENSORS = re.compile("embeds|_mask$|^ip_adapter|callback|^kwargs$")
# What a pipeline starts from that is no noise.
STARTS = ("image", "images", "video", "mask_image", "control_image", "original_image")
UNIMPORTANT = ("_class_name", "_diffusers_version", "_use_default_values")
BIT_RATE = 1_024_000


def load(
    id: str,
    prompts: Sequence[str] | None = None,
    revision: str | None = None,
    variant: str | None = None,
    guidance_scale: float | None = None,
    call: Mapping[str, Any] | None = None,
    as_pipeline: bool = False,
    fps: int = 8,
    precision: str = "fp32",
    distilled: bool = False,
    fetch: bool = True,
    untrained: bool = False,
    device: torch.device | str = "cpu",
) -> Backbone | WholePipeline:
    """A pipeline of diffusers from the hub or a local folder, ready to sample.

    `prompts` are those of a pipeline that takes such, `guidance_scale` None its own default, `call`
    further arguments of its call.  Where there is a direct denoiser the pipeline is a `Backbone`,
    unless it is to run `as_pipeline` or there is a `call`.  `fps` is that of videos.  A `distilled`
    model is sampled only if one says that it is (`models.distilled`).  Without `fetch` nothing is asked of the hub; `untrained` is no model, but what can be counted without a file.

    Raises FileNotFoundError without such a model, ValueError for one that no sampler can be put
    into, and for options and prompts that it does not take, each with the remedy.
    """
    dtype, call = dtype_named(precision), dict(call or {})
    if untrained:
        return _countable(id, prompts, torch.device(device))
    name, index, config = _described(id, revision, fetch)
    takes = _arguments(id, name)
    _check_call(name, takes, guidance_scale, call)
    _check_prompts(name, takes, prompts)
    if not fps >= 1:
        raise ValueError(f"model.fps must be at least 1 frame a second, got {fps!r}: model.fps=8")
    stated, identity = _our_config(id, config), _identity(name, config)
    if not distilled:
        check_distilled(id, revision, index, config)
    scale: Any = takes["guidance_scale"].default if "guidance_scale" in takes else None
    scale = scale if guidance_scale is None else guidance_scale
    facts = {} if scale is None else {"guidance_scale": scale}
    place = {"id": id, "revision": revision, "variant": variant, "fetch": fetch}
    # What a network of betas becomes when it is trained on flow matching, its own pipeline knows.
    if not (call or as_pipeline or stated.get("flow_matching")):
        direct = _direct(
            name, place, {"precision": precision, "device": device}, stated, (prompts, scale)
        )
        if direct is not None:
            sha256 = _joined(identity, direct.sha256)
            return replace(direct, sha256=sha256, facts={**direct.facts, **facts})
    pipe = load_pipeline(id, revision, variant, dtype, (name,), fetch=fetch, any_network=True)
    networks = [part for part, value in pipe.components.items() if isinstance(value, nn.Module)]
    sha256 = _joined(identity, pipeline_digest(pipe, sorted(networks)))
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    whole = _whole(config, stated, torch.device(device))
    classes = pipe.transformer.config.num_embeds_ada_norm if "class_labels" in takes else None
    return replace(
        whole,
        pipe=pipe,
        num_classes=len(prompts) if prompts is not None else classes,
        prompts=None if prompts is None else tuple(prompts),
        encoding=tokens_digest(pipe, _texts(prompts, call)) if prompts else None,
        sha256=sha256,
        stored=_media(takes, call, fps),
        call=call | facts,
        facts=facts,
    )


def _direct(
    name: str,
    place: dict[str, Any],
    how: dict[str, Any],
    scheduler: Mapping[str, Any],
    told: tuple[Sequence[str] | None, Any],
) -> Backbone | None:
    """The pipeline's network, where it can be asked faithfully; `told` are prompts and guidance."""
    prompts, scale = told
    if name in TEXT:
        given = {**place, **how, "prompts": prompts, "guidance_scale": scale}
        return models.stable_diffusion.load(**given, set_alpha_to_one=None, distilled=True)
    if name == "DiTPipeline":
        where = {key: value for key, value in place.items() if key != "variant"}
        return models.dit.load(**where, **how, guidance_scale=scale, guided_channels=None)
    if name in PIXELS:
        dtype = dtype_named(how["precision"])
        pipe = load_pipeline(**place, dtype=dtype, names=(name,), any_network=True)
        return pixel_backbone(pipe, scheduler, how["device"])
    return None


# --- what stands in the files -------------------------------------------------------------------


def _described(
    id: str, revision: str | None, fetch: bool
) -> tuple[str, Mapping[str, Any], dict[str, Any]]:
    """The class of the pipeline, its model_index.json, and the config of its scheduler."""
    import diffusers

    name, index = pipeline_index(id, revision, fetch)
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ValueError(
            f"{id} is a {name}, which is no pipeline of this version of diffusers: pip install -U "
            "diffusers, or give another pipeline as model.id=..."
        )
    if not (index.get("scheduler") or [None])[0]:
        raise ValueError(
            f"{id} is a {name} without a scheduler in its model_index.json, and no sampler can take its "
            "place: give the folder of a whole diffusion pipeline as model.id=..."
        )
    if Path(id).is_dir() and not Path(id, "scheduler/scheduler_config.json").is_file():
        raise FileNotFoundError(
            f"{id} has no scheduler/scheduler_config.json, which says the noise schedule: copy it from "
            "where the model is from, or give a complete folder as model.id=..."
        )
    path = hub_file(id, "scheduler/scheduler_config.json", revision, "model.id", fetch)
    try:
        config: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is no JSON of settings ({error}): copy it again from where the model is from"
        ) from None
    return name, index, config


def _our_config(id: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler's config in our options; the grid is the command's.

    Raises ValueError for a scheduler that ours cannot replace.
    """
    try:
        stated = inherited(config, {"timestep_spacing": None})
        if not stated.get("flow_matching"):
            schedule_of(stated)
        return stated
    except (ValueError, TypeError) as error:  # TypeError: "1000" where a number should be
        raise ValueError(
            f"no sampler can be put into {id}: {error}; here: give another pipeline as model.id=..."
        ) from None


def _identity(name: str, config: Mapping[str, Any]) -> str:
    """What is not in the weights: the pipeline's class and its scheduler's config."""
    stated = {key: value for key, value in config.items() if key not in UNIMPORTANT}
    return json.dumps([name, config.get("_class_name"), stated], sort_keys=True)


def _joined(identity: str, digest: str) -> str:
    return hashlib.sha256(f"{identity} {digest}".encode()).hexdigest()


# --- what the pipeline takes --------------------------------------------------------------------


def _arguments(id: str, name: str) -> dict[str, inspect.Parameter]:
    """The arguments of the pipeline's call.  ValueError for one that starts from no noise."""
    import diffusers

    takes = dict(inspect.signature(getattr(diffusers, name).__call__).parameters)
    if start := next((key for key in STARTS if key in takes), None):
        raise ValueError(
            f"{id} is a {name}, which starts from its {start}: give a pipeline that starts from noise, "
            "by prompts or labels, as model.id=..."
        )
    if "num_inference_steps" not in takes:
        raise ValueError(
            f"{id} is a {name}, which takes no num_inference_steps: give another pipeline as model.id=..."
        )
    del takes["self"]
    return takes


def _check_call(
    name: str,
    takes: Mapping[str, inspect.Parameter],
    guidance_scale: float | None,
    call: Mapping[str, Any],
) -> None:
    if guidance_scale is not None and "guidance_scale" not in takes:
        raise ValueError(f"{name} takes no guidance_scale: leave model.guidance_scale=null")
    is_number = isinstance(guidance_scale, int | float) and not isinstance(guidance_scale, bool)
    if guidance_scale is not None and not (is_number and guidance_scale >= 0):
        raise ValueError(
            f"model.guidance_scale must be a number of at least 0, or null for the pipeline's own, got "
            f"{guidance_scale!r}"
        )
    for key in call:
        if key in OURS:
            raise ValueError(f"model.call.{key} is what {OURS[key]} says: set {OURS[key]}=...")
    known = [k for k in takes if k not in OURS and not TENSORS.search(k)]
    check_options(f"model.call of {name}", call, known)


def _check_prompts(
    name: str, takes: Mapping[str, inspect.Parameter], prompts: Sequence[str] | None
) -> None:
    if "prompt" in takes and not prompts:
        raise ValueError(
            f"{name} needs prompts: prompts=FILE with one a line, or prompts='[a cat,a dog]'"
        )
    if "prompt" not in takes and prompts is not None:
        by = "label=7, or label=balanced" if "class_labels" in takes else "nothing"
        raise ValueError(f"{name} takes no prompts, but {by}: leave prompts=null")


def _texts(prompts: Sequence[str], call: Mapping[str, Any]) -> list[str]:
    """All that is tokenized."""
    return [*prompts, *(value for value in call.values() if isinstance(value, str))]


def _media(takes: Mapping[str, inspect.Parameter], call: Mapping[str, Any], fps: int) -> Media:
    """How samples are stored; the size, where the call or its defaults tell it."""

    def stated(key: str) -> int:
        given = (call.get(key), takes[key].default if key in takes else None)
        return next((n for n in given if type(n) is int and n > 0), 0)

    height, width = stated("height"), stated("width")
    if "num_frames" in takes:
        return Videos((stated("num_frames") or 1, height, width, 3), fps, BIT_RATE)
    return Images((height, width, 3))


# --- the pipeline itself ------------------------------------------------------------------------


def _whole(
    config: Mapping[str, Any], stated: Mapping[str, Any], device: torch.device
) -> WholePipeline:
    """A `WholePipeline` of this scheduler's config, without a pipe yet."""
    is_flow = bool(stated.get("flow_matching"))

    def scheduler(kind: Any = Looking, **options: Any) -> Any:
        grid = {} if is_flow else {"timestep_spacing": "even"}
        return kind.from_config(dict(config), **grid, **options)

    path = nominal_levels(scheduler(), FINEST).schedule if is_flow else schedule_of(stated)
    limited = bool(stated.get("clip_sample") or stated.get("thresholding"))
    return WholePipeline(None, scheduler, path, None, limited, "untrained", Images(), device)


def _countable(id: str, prompts: Sequence[str] | None, device: torch.device) -> WholePipeline:
    """What can be counted of a model that is not here: as if of the usual thousand timesteps."""

    def none(*_: Any, **options: Any) -> Any:
        raise FileNotFoundError(
            f"{id} is not here: run the command without dry=true, which fetches it"
        )

    n = None if prompts is None else len(prompts)
    whole = WholePipeline(None, none, Schedule.linear(), n, False, "untrained", Images(), device)
    return replace(whole, prompts=None if prompts is None else tuple(prompts))
