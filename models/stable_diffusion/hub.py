"""Published pipelines: from the hub or a local folder, and the digest of what they hold."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import torch

UNIMPORTANT = ("transformers_version", "dtype", "torch_dtype")  # in a config, but not the model's


NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")


WITHDRAWN = (
    "Stable Diffusion 2.x left the hub in November 2025 and 1.5 in 2024, and the default ids are "
    "unofficial mirrors that may vanish, too"
)


def load_pipeline(id: str, revision: str | None, variant: str | None, dtype: torch.dtype) -> Any:
    """The diffusers pipeline of a hub id or local folder, on the CPU, without safety checker.

    Raises FileNotFoundError, with the remedy, if it is not there, cannot be fetched or is not
    complete; ValueError if it is another kind of pipeline.
    """
    from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

    kinds = {kind.__name__: kind for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline)}
    _check_id(id)
    try:
        name = DiffusionPipeline.load_config(id, revision=revision).get("_class_name")
        if name not in kinds:
            raise ValueError(
                f"{id} is a {name}: only {' and '.join(kinds)} can be sampled here; any other "
                "pipeline takes our schedulers instead (see README, Use it in your own pipeline)"
            )
        # The checker would replace images, silently, by black ones.
        more = {"safety_checker": None} if name == "StableDiffusionPipeline" else {}
        logging.getLogger("diffusers").addFilter(_about_the_safety_checker)
        return kinds[name].from_pretrained(
            id, revision=revision, variant=variant, dtype=dtype, **more
        )
    except OSError as error:
        raise FileNotFoundError(_not_there(id, error)) from None


def download_pipeline(id: str, revision: str | None, variant: str | None) -> Path:
    """Fetch what `load_pipeline` needs from the hub into its cache; the folder there.

    Raises FileNotFoundError as `load_pipeline`.
    """
    from diffusers import DiffusionPipeline

    _check_id(id)
    if Path(id).is_dir():
        return Path(id)
    try:
        return Path(DiffusionPipeline.download(id, revision=revision, variant=variant))
    except OSError as error:
        raise FileNotFoundError(_not_there(id, error)) from None


def download_files(id: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch a hub repository's files that fit the patterns into its cache; the folder there.

    Raises FileNotFoundError as `load_pipeline`.
    """
    from huggingface_hub import snapshot_download

    if Path(id).is_dir():
        return Path(id)
    try:
        return Path(snapshot_download(id, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(_not_there(id, OSError(str(error)))) from None


def _check_id(id: str) -> None:
    if Path(id).is_dir():
        if not Path(id, "model_index.json").is_file():
            raise FileNotFoundError(
                f"{id} has no model_index.json: give the folder of a diffusers pipeline"
            )
    elif id.count("/") != 1 or id.startswith((".", "~", "/")):
        raise FileNotFoundError(f"there is no folder {id}, and a hub id is OWNER/NAME")


def _about_the_safety_checker(record: logging.LogRecord) -> bool:
    return "safety checker" not in record.getMessage()


def _not_there(id: str, error: OSError) -> str:
    reason = " ".join(str(error).split())[:200]
    if Path(id).is_dir():
        return f"{id} is not a complete diffusers pipeline ({reason}): copy or download it again"
    return (
        f"cannot load {id} ({reason}): check the network, or give another hub id or a local folder "
        f"as model.id=...; {WITHDRAWN}"
    )


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
        for key, value in sorted(network.state_dict().items()):
            digest.update(f"{key} {value.dtype}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
