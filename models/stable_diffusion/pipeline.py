"""Published pipelines of diffusers, and the digest of what they hold."""

import hashlib
import json
import logging
from typing import Any

import torch

from models.hub import WITHDRAWN, check_pipeline_id, remedied
from models.weights import hash_state

NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
UNIMPORTANT = ("transformers_version", "dtype", "torch_dtype")  # in a config, but not the model's


def load_pipeline(id: str, revision: str | None, variant: str | None, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a hub id or local folder, on the CPU, without safety checker.

    Raises FileNotFoundError, with the remedy, if it is not there, cannot be fetched or is not
    complete; ValueError if it is another kind of pipeline.
    """
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    kinds = {kind.__name__: kind for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
    check_pipeline_id(id)
    with remedied(id, "model.id", hint=WITHDRAWN):
        name = DiffusionPipeline.load_config(id, revision=revision).get("_class_name")
    if name not in kinds:
        raise ValueError(
            f"{id} is a {name}: only {' and '.join(kinds)} can be sampled here; any other "
            "pipeline takes our schedulers instead (see README, Use it in your own pipeline)"
        )
    # The checker would replace images, silently, by black ones.
    more = {"safety_checker": None} if name == "StableDiffusionPipeline" else {}
    logging.getLogger("diffusers").addFilter(_not_about_the_safety_checker)
    with remedied(id, "model.id", hint=WITHDRAWN):
        return kinds[name].from_pretrained(
            id, revision=revision, variant=variant, dtype=dtype, **more
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
