"""Whether a pipeline is of a model that was distilled to few steps, as far as its files tell.

Schedulers that only such models have are refused by `sampling.inherit`; many have an ordinary one.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.hub import hub_file

# Published ones whose files say nothing of it.
PUBLISHED = (
    "stabilityai/sd-turbo",
    "stabilityai/sdxl-turbo",
    "stabilityai/stable-diffusion-3.5-large-turbo",
    "Tongyi-MAI/Z-Image-Turbo",
    "black-forest-labs/FLUX.1-schnell",
)
# Words of names; Lightning is a framework, too.
NAMES = re.compile(
    r"(?<![a-z])(turbo|lcm|lightning|schnell|tcd|pcm|dmd2?|hyper[-_]?(sd|sdxl|flux)\w*|distill(ed)?"
    r"|(?<![0-9])[1-9][-_]?steps?)(?![a-z])",
    re.IGNORECASE,
)


def check_distilled(
    id: str, revision: str | None, index: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> None:
    """Refuse, or warn of, a model that was distilled: other samplers than its own make no good images.

    `index` and `scheduler` are model_index.json and the scheduler's config.  Raises ValueError where
    the files, or the name of a published model, say so; prints a warning where these only suggest it.
    """
    network = _network(id, revision, index)
    says = _certain(id, index, network, scheduler)
    hints = list(_suspicions(id, (index, network), scheduler))
    if says is None and len(hints) > 1:
        says = " and ".join(hints)
    if says:
        raise ValueError(
            f"{id} was distilled to few steps ({says}), which suits no sampler but its own: give the model "
            "that it was distilled from as model.id=..., or sample it all the same with model.distilled=true"
        )
    for hint in hints:
        print(
            f"warning: {id} may have been distilled to few steps ({hint}): if so, no sampler but its own "
            "suits it; model.distilled=true says that you know"
        )


def _certain(
    id: str, index: Mapping[str, Any], network: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> str | None:
    """What in the files is so in distilled models alone."""
    stated = {id, *(config.get("_name_or_path") for config in (index, network))}
    if published := next((one for one in PUBLISHED if one in stated), None):
        return f"it is {published}"
    if index.get("is_distilled"):
        return "model_index.json says is_distilled"
    if network.get("time_cond_proj_dim") is not None:
        return "its U-Net is told the guidance scale, by time_cond_proj_dim"
    is_flux = index.get("_class_name") == "FluxPipeline"
    if is_flux and not network.get("guidance_embeds") and not scheduler.get("use_dynamic_shifting"):
        return "as FLUX.1-schnell it has no guidance_embeds and no use_dynamic_shifting"
    return None


def _suspicions(
    id: str, configs: tuple[Mapping[str, Any], ...], scheduler: Mapping[str, Any]
) -> Iterator[str]:
    """What is so in most distilled models, and in others, too."""
    paths = [id, *(str(config.get("_name_or_path") or "") for config in configs)]
    if found := next(filter(None, (NAMES.search(Path(path).name) for path in paths)), None):
        yield f"{found[0]!r} is in its name"
    trailing = scheduler.get("timestep_spacing") == "trailing"
    told_noise = scheduler.get("prediction_type", "epsilon") == "epsilon"
    of_text = configs[0].get("_class_name", "").startswith("StableDiffusion")
    if of_text and trailing and told_noise and not scheduler.get("rescale_betas_zero_snr"):
        yield "its scheduler has the trailing grid, by which those of one step run"


def _network(id: str, revision: str | None, index: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the pipeline's network; empty where there is none, which its loader says."""
    for part in ("unet", "transformer"):
        if index.get(part):
            try:
                path = hub_file(id, f"{part}/config.json", revision, "model.id")
                return dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                return {}
    return {}
