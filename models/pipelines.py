"""Published pipelines of diffusers: loading them, the digest of what they hold, latents to images."""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.hub import check_pipeline_id, remedied
from models.weights import hash_state

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae", "transformer")
UNIMPORTANT = ("transformers_version", "dtype", "torch_dtype")  # in a config, but not the model's


def load_pipeline(
    id: str,
    revision: str | None,
    variant: str | None,
    dtype: torch.dtype,
    names: Sequence[str],
    hint: str = "",
    fetch: bool = True,
) -> Any:
    """The diffusers pipeline of a hub id or local folder, on the CPU, without safety checker.

    `names` are the classes of pipelines that it may be of; `hint` is told where there is none.
    Without `fetch` the hub is not asked for what is not there yet.
    Raises FileNotFoundError, with the remedy, if it is not there, cannot be fetched or is not
    complete; ValueError if it is another kind of pipeline.
    """
    import diffusers

    check_pipeline_id(id)
    with remedied(id, "model.id", hint=hint):
        name = diffusers.DiffusionPipeline.load_config(
            id, revision=revision, local_files_only=not fetch
        ).get("_class_name")
    if name not in names:
        raise ValueError(
            f"{id} is a {name}: only {' and '.join(names)} can be sampled here; any other "
            "pipeline takes our schedulers instead (see README, Use it in your own pipeline)"
        )
    # The checker would replace images, silently, by black ones.
    more = {"safety_checker": None} if name == "StableDiffusionPipeline" else {}
    logging.getLogger("diffusers").addFilter(_not_about_the_safety_checker)
    with remedied(id, "model.id", hint=hint):
        return getattr(diffusers, name).from_pretrained(
            id,
            revision=revision,
            variant=variant,
            dtype=dtype,
            local_files_only=not fetch,
            **more,
        )


def _not_about_the_safety_checker(record: logging.LogRecord) -> bool:
    return "safety checker" not in record.getMessage()


def pipeline_digest(pipe: Any) -> str:
    """SHA-256 over configs and weights of the networks: what is in memory, whatever its files."""
    digest = hashlib.sha256()
    for name in NETWORKS:
        network = getattr(pipe, name, None)
        if network is None:
            continue
        config = network.config if isinstance(network.config, dict) else network.config.to_dict()
        public = {key: config[key] for key in config if key[0] != "_" and key not in UNIMPORTANT}
        digest.update(f"{name} {json.dumps(public, sort_keys=True, default=str)}".encode())
        state = network.state_dict()
        hash_state(digest, {f"{key} {value.dtype}": value for key, value in state.items()})
    return digest.hexdigest()


def prepare_vae(vae: Any, dtype: torch.dtype) -> None:
    """In float32 where it overflows in half precision; one image at a time.

    Decoding a batch at once would need more memory than a step.
    """
    if dtype == torch.float16 and vae.config.get("force_upcast"):
        vae.to(torch.float32)
    vae.enable_slicing()


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Latents [B, C, h, w] -> images uint8 [B, H, W, 3], rounded as diffusers' pipelines do."""
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor
    images = vae.decode(scaled, return_dict=False)[0]
    pixels = (images * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
    rounded: NDArray[np.uint8] = (pixels * 255).round().astype(np.uint8)
    return rounded
