"""Published pipelines of diffusers: loading them, what identifies them, latents to images."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.hub import check_filled, check_pipeline_id, remedied
from models.weights import hash_state, public_config

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae", "transformer")
# Where parts of a pipeline may be from; null where there is none.
LIBRARIES = (
    None,
    "diffusers",
    "transformers",
    "sampling.schedulers",
    "sampling.plan_scheduler",
    "skipped_step.schedulers",
    "skipped_step.plan_scheduler",
    "stable_diffusion",
)
# Classes of networks; the last one is how folders of DiT from before name theirs.
OF_DIFFUSERS = (
    "AutoencoderKL",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "Transformer2DModel",
)
OF_TRANSFORMERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
LONGEST_TEXT = 1024  # tokens; some tokenizers know no end
# What of a scheduler's config decides pixels here: our samplers and spacings take the place of its own.
SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "set_alpha_to_one",
)


def load_pipeline(
    id: str,
    revision: str | None,
    variant: str | None,
    dtype: torch.dtype,
    names: Sequence[str],
    hint: str = "",
    fetch: bool = True,
    any_network: bool = False,
) -> Any:
    """The diffusers pipeline of a hub id or local folder, on the CPU, without safety checker.

    `names` are the classes of pipelines that it may be of; `hint` is told where there is none.  Its
    networks are those of Stable Diffusion and DiT, or with `any_network` of any class of diffusers
    and transformers.
    Without `fetch` the hub is not asked for what is not there yet.
    Raises FileNotFoundError, with the remedy, if it is not there, cannot be fetched or is not
    complete; ValueError if it is another kind of pipeline.
    """
    import diffusers

    name, index = pipeline_index(id, revision, fetch, hint)
    if name not in names:
        raise ValueError(
            f"{id} is a {name}: only {' and '.join(names)} can be sampled here; say model=diffusers, which "
            "runs any pipeline"
        )
    place = {"revision": revision, "local_files_only": not fetch}
    _check_parts(id, index)
    _check_variant(id, variant)
    # Parts that the pipeline was saved without, as SD3 without T5, diffusers wants to be told.
    more: dict[str, Any] = {part: None for part, stated in index.items() if stated == [None, None]}
    # The checker would replace images, silently, by black ones.
    more |= {"safety_checker": None} if name == "StableDiffusionPipeline" else {}
    source = {**place, "variant": variant, "dtype": dtype}
    classes = _classes(id, index) if any_network else None
    parts = [part for part in (classes or NETWORKS) if part in index]
    more |= {part: load_network(id, part, index, source, hint, classes) for part in parts}
    with remedied(id, "model.id", hint=hint):
        pipe = getattr(diffusers, name).from_pretrained(id, **source, **more)
    _check_tokenizers(id, pipe)
    return pipe


def pipeline_index(
    id: str, revision: str | None, fetch: bool = True, hint: str = ""
) -> tuple[str, Mapping[str, Any]]:
    """(class, model_index.json) of a pipeline; raises as `load_pipeline`, and for one with its own code."""
    import diffusers

    check_pipeline_id(id)
    with remedied(id, "model.id", hint=hint):
        index = diffusers.DiffusionPipeline.load_config(
            id, revision=revision, local_files_only=not fetch
        )
    if not isinstance(index, Mapping):
        raise ValueError(f"the model_index.json of {id} is no list of parts: copy it again")
    name = index.get("_class_name")
    if isinstance(name, Sequence) and not isinstance(name, str):
        raise ValueError(
            f"{id} is a {name} by code of its own, which is never run: give a pipeline of diffusers' "
            "as model.id=..., or load it by a function of yours, model=function"
        )
    if not isinstance(name, str):
        raise ValueError(f"the model_index.json of {id} names no pipeline: copy it again")
    return name, index


def _classes(id: str, index: Mapping[str, Any]) -> dict[str, Any]:
    """The classes of a pipeline's networks, by part: those of the installed libraries alone."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    found = {}
    for part, stated in index.items():
        if isinstance(stated, Sequence) and len(stated) == 2 and stated[0] in libraries:
            one = getattr(libraries[stated[0]], str(stated[1]), None)
            if one is None:
                raise ValueError(
                    f"{id}'s {part} is a {stated[1]}, which this version of {stated[0]} does not have: pip "
                    f"install -U {stated[0]}, or give another pipeline as model.id=..."
                )
            if isinstance(one, type) and issubclass(one, torch.nn.Module):
                found[part] = one
    return found


def load_network(
    id: str,
    name: str,
    index: Mapping[str, Any],
    source: Mapping[str, Any],
    hint: str,
    by_part: Mapping[str, Any] | None = None,
) -> Any:
    """A network of a pipeline, of which every weight stands in its files.

    `by_part` are the classes that it may be of, where these are others than Stable Diffusion's.

    What is not there diffusers and transformers fill with random numbers, others each time.  Raises
    FileNotFoundError as `load_pipeline`, ValueError for a class that such pipelines do not have.
    """
    import diffusers
    import transformers

    classes = {name: getattr(diffusers, name) for name in OF_DIFFUSERS}
    classes |= {name: getattr(transformers, name) for name in OF_TRANSFORMERS}
    if by_part:
        classes = {index[name][1]: by_part[name]}
    stated = index[name][1] if isinstance(index[name], Sequence) and len(index[name]) == 2 else None
    if not isinstance(stated, str) or stated not in classes:
        raise ValueError(f"{id}'s {name} is a {stated}: only {', '.join(classes)} are sampled here")
    how = {"subfolder": name, **source, "output_loading_info": True}
    with _all_in_one(classes[stated], how), remedied(id, "model.id", f"the {name} of ", hint=hint):
        try:
            network, info = classes[stated].from_pretrained(id, **how)
        except OSError:
            if source["variant"] is None:
                raise
            # Not every part has the variant; the pipeline takes such a part as it is, too.
            network, info = classes[stated].from_pretrained(id, **{**how, "variant": None})
    check_filled(info["missing_keys"], id, "model.id", f"the {name} of ")
    return network


@contextmanager
def _all_in_one(network: Any, how: Mapping[str, Any]) -> Iterator[None]:
    """Without accelerate diffusers loads no network that keeps parts in float32, as Wan's, where all is
    to be float32, neither: here it does, while the class does not say so."""
    kept = getattr(network, "_keep_in_fp32_modules", None)
    if not kept or find_spec("accelerate"):
        yield
        return
    if how["dtype"] != torch.float32:
        raise ValueError(
            f"a {network.__name__} keeps parts in float32, which diffusers does with accelerate: pip "
            "install accelerate, or set model.precision=fp32"
        )
    network._keep_in_fp32_modules = None
    try:
        yield
    finally:
        network._keep_in_fp32_modules = kept


def _check_parts(id: str, index: Mapping[str, Any]) -> None:
    """Raise ValueError if model_index.json names a module of others: diffusers would import it."""
    for part, stated in index.items():
        is_part = isinstance(stated, Sequence) and not isinstance(stated, str) and part[:1] != "_"
        if is_part and stated[:1] and stated[0] not in LIBRARIES:
            raise ValueError(
                f"{id}'s {part} is of {stated[0]!r}, which is not imported: only parts of "
                f"{', '.join(map(str, LIBRARIES[1:]))} are loaded"
            )


def _check_variant(id: str, variant: str | None) -> None:
    """Raise ValueError for a folder without any file of the variant."""
    if variant is not None and Path(id).is_dir() and not any(Path(id).rglob(f"*.{variant}.*")):
        raise ValueError(f"{id} has no files of model.variant={variant}: set model.variant=null")


def _check_tokenizers(id: str, pipe: Any) -> None:
    """Raise FileNotFoundError for one without words, which transformers makes where its files are not."""
    for name in TOKENIZERS:
        tokenizer = getattr(pipe, name, None)
        if tokenizer is not None and not {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens}:
            raise FileNotFoundError(
                f"the {name} of {id} is not complete (it knows no words): copy or download it again, or "
                "give another folder as model.id=..."
            )


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is of flow matching."""
    stated = config.get("use_flow_sigmas") or config.get("flow_matching")
    return bool(stated) or "FlowMatch" in str(config.get("_class_name"))


def betas_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's config in our options, the grid left to the command.

    Raises ValueError for flow matching, whose levels are not those of betas, and as `inherited`.
    """
    from sampling.inherit import inherited

    if is_flow(config):
        raise ValueError(
            f"the pipeline's scheduler, {config.get('_class_name')}, is of flow matching: say "
            "model=diffusers, which runs such a pipeline as a whole"
        )
    return inherited(config, {"timestep_spacing": None})


def pipeline_digest(pipe: Any, names: Sequence[str] = NETWORKS) -> str:
    """SHA-256 over configs and weights of the networks: what is in memory, whatever its files."""
    digest = hashlib.sha256()
    for name in names:
        network = getattr(pipe, name, None)
        if network is None:
            continue
        config = network.config if isinstance(network.config, dict) else network.config.to_dict()
        digest.update(f"{name} {public_config(config)}".encode())
        state = network.state_dict()
        hash_state(digest, {f"{key} {value.dtype}": value for key, value in state.items()})
    return digest.hexdigest()


def pipeline_facts(pipe: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What pixels depend on besides the networks and the tokens; `config` is the scheduler's."""
    zeros = pipe.config.get("force_zeros_for_empty_prompt")  # of XL
    facts = {} if zeros is None else {"force_zeros_for_empty_prompt": zeros}
    return {"scheduler": schedule_facts(config), **facts}


def schedule_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a scheduler's config decides pixels; many betas by their digest."""
    facts = {key: config[key] for key in SCHEDULE if config.get(key) is not None}
    if "trained_betas" in facts:
        betas = json.dumps([float(beta) for beta in facts["trained_betas"]])
        facts["trained_betas"] = hashlib.sha256(betas.encode()).hexdigest()[:12]
    return facts


def tokens_digest(pipe: Any, texts: Sequence[str], block: int = 1000) -> str:
    """SHA-256 of what the tokenizers make of these texts: all that is left of a tokenizer in pixels."""
    digest = hashlib.sha256()
    for name in TOKENIZERS:
        tokenizer = getattr(pipe, name, None)
        if tokenizer is None:
            continue
        for i in range(0, len(texts), block):
            length = min(tokenizer.model_max_length, LONGEST_TEXT)
            ids = tokenizer(
                list(texts[i : i + block]), padding="max_length", max_length=length, truncation=True
            ).input_ids
            digest.update(json.dumps(ids).encode())
    return digest.hexdigest()


def prepare_vae(vae: Any, dtype: torch.dtype) -> None:
    """In float32 where it overflows in half precision; one image at a time.

    Decoding a batch at once would need more memory than a step.
    """
    if dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.to(torch.float32)
    vae.enable_slicing()


@torch.no_grad()
def decode(vae: Any, latents: Tensor, shifted: bool = False) -> NDArray[np.uint8]:
    """Latents [B, C, h, w] -> images uint8 [B, H, W, 3], rounded as diffusers' pipelines do.

    `shifted` heeds latents_mean and latents_std of the VAE's config, as XL's pipeline alone does.
    """
    config, x = vae.config, latents.to(vae.dtype)
    mean, std = (config.get(f"latents_{name}") for name in ("mean", "std"))
    if shifted and mean is not None and std is not None:
        mean, std = (x.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, std))
        scaled = x * std / config.scaling_factor + mean
    else:
        scaled = x / config.scaling_factor
    images = vae.decode(scaled, return_dict=False)[0]
    pixels = (images * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    rounded: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8)
    return rounded
