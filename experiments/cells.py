"""Cells and columns: what is sampled, where it lies, and what its pixels depend on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from experiments.config import plain
from models.adm.cards import read_card
from models.backbone import Backbone
from models.variance import stored_x0_variance
from sampling import Schedule, timesteps
from sampling.adapters import Sampler, num_nodes, sampler_named

LONGEST_NAME = 220  # bytes of a prompt in a file's name, of which most systems allow 255


@dataclass(frozen=True)
class Job:
    """One folder of samples.  `config` is everything that the pixels depend on."""

    plan: Sampler
    folder: Path
    config: dict[str, Any]

    @property
    def digest(self) -> str:
        """Identifies the config; every shard carries it."""
        text = json.dumps(self.config, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def shard(self, k: int) -> Path:
        return self.folder / "shards" / f"shard-{k:05d}.npz"

    def facts(self, k: int) -> Path:
        """How shard k was made: the file beside it."""
        return self.shard(k).with_suffix(".json")

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"


@dataclass(frozen=True)
class Size:
    """How many samples, and how they are cut up; none of it changes a pixel's meaning."""

    num_samples: int
    batch_size: int = 64
    shard_size: int = 256

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "shard_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be at least 1 and an integer, got {value!r}")

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_samples / self.shard_size)

    def ids(self, k: int) -> range:
        return range(k * self.shard_size, min((k + 1) * self.shard_size, self.num_samples))


def video_names(job: Job, backbone: Backbone, ids: Sequence[int]) -> list[str]:
    """File names of videos: 000007.mp4, or with names=prompt `{prompt}-{k}.mp4` as VBench reads.

    k counts the videos of a prompt.  Raises ValueError for prompts that cannot be file names, or
    not two of them.
    """
    if job.config.get("names") != "prompt":
        return [f"{i:06d}.mp4" for i in ids]
    prompts, label = backbone.prompts or (), job.config["label"]
    for j, prompt in enumerate(prompts):
        if "/" in prompt or "\0" in prompt or len(prompt.encode()) > LONGEST_NAME:
            raise ValueError(
                f"prompt {j + 1} cannot be a file name ({prompt[:60]!r}): use names=id"
            )
    if len(set(prompts)) < len(prompts):
        twice = next(p for p in prompts if prompts.count(p) > 1)
        raise ValueError(f"the prompt {twice[:60]!r} is there twice: remove one, or use names=id")
    if label is None:
        return [f"{prompts[i]}-0.mp4" for i in ids]
    if label == "balanced":
        return [f"{prompts[i % len(prompts)]}-{i // len(prompts)}.mp4" for i in ids]
    return [f"{prompts[label]}-{i}.mp4" for i in ids]


TIMESTEPS = ("cutoff", "lo", "hi")  # options of samplers that are timesteps


# Loaders that moved keep the name that folders sampled before know them by.
RENAMED = {"models.adm.load": "models.checkpoints.load"}


def make_job(
    model: DictConfig,
    backbone: Backbone,
    sampler: dict[str, Any],
    *,
    steps: int | None,
    spacing: Any,
    seed: int,
    label: int | str | None,
    out: str | None = None,
    names: str = "id",
) -> Job:
    """One cell: its plan, its folder and everything its pixels depend on, and videos' `names`.

    Without `out` the folder is runs/<model>/<plan>-...-<hash of the config>, so that equal
    cells of different experiments are sampled once and different ones never meet.
    """
    for option in (*TIMESTEPS, "cutoff_sigma", "cutoff_log_snr", "eta", "eta_head", "eta_tail"):
        value = sampler.get(option)
        if value is not None and type(value) not in (int, float):
            raise ValueError(f"sampler.{option} must be a number, got {value!r}")
    k = sampler.get("skipped_steps")
    if k is not None and type(k) is not int:
        raise ValueError(f"sampler.skipped_steps must be an integer, got {k!r}")
    options = {key: value for key, value in sampler.items() if key != "name" and value is not None}
    measured: dict[str, Any] = {}
    if sampler["name"] == "mixpp" and options.get("variance") == "analytic":
        measured["x0_variance"] = stored_x0_variance(backbone)
    grid = timesteps(backbone.schedule, num_nodes(sampler["name"], steps), spacing)
    plan = sampler_named(sampler["name"], backbone.schedule, grid, **options, **measured)
    for option in TIMESTEPS:
        _check_cutoff(option, options.get(option), backbone.schedule)
    config: dict[str, Any] = {
        "model": _identity(plain(model), backbone),
        "sampler": {"name": sampler["name"], **options},
        "steps": len(plan),
        "spacing": spacing,
        "seed": seed,
        "label": label,
    }
    for name, numbers in measured.items():
        config["sampler"][name] = hashlib.sha256(numbers.tobytes()).hexdigest()[:12]
    if backbone.guidance is not None:
        config["guidance"] = backbone.guidance.facts
    if backbone.prompts is not None:
        digest = hashlib.sha256("\n".join(backbone.prompts).encode()).hexdigest()
        config["prompts"] = {"count": len(backbone.prompts), "sha256": digest}
        config["evaluations_per_call"] = backbone.evaluations_per_call
    if backbone.fps is not None:
        if names not in ("id", "prompt"):
            raise ValueError(f"unknown names {names!r}: choose id or prompt")
        config["names"] = names
    job = Job(plan, Path(out or "."), config)
    if out:
        return job
    parts = [sampler["name"], *(f"{k}_{v}" for k, v in options.items()), f"{len(plan)}steps"]
    return replace(job, folder=Path("runs", model.name, f"{'-'.join(parts)}-{job.digest[:8]}"))


def _identity(model: dict[str, Any], backbone: Backbone) -> dict[str, Any]:
    """What of a model's config its samples depend on, wherever its files lie.

    channels_last and compile change the last bits alone, as another GPU does; of a pipeline its
    networks count (`sha256`), not the revision that they are from.  Of a card, which may be one's
    own and change, what it says beyond the weights counts.
    """
    left_out = ("channels_last", "compile", "revision", "variant", "text_cache")
    kept = {key: v for key, v in model.items() if key not in left_out}
    for key in ("checkpoint", "id", "text_encoder", "vae"):
        if key in kept:
            kept[key] = Path(kept[key]).name
    kept["_target_"] = RENAMED.get(kept["_target_"], kept["_target_"])
    if "card" in kept:
        kept["card"] = Path(kept["card"]).stem
        kept["schedule"], kept["shape"] = backbone.schedule.name, list(backbone.shape)
        # Heads and the order of attention change pixels, but no key and no shape.
        kept["network"] = read_card(model["card"]).network
    return {**kept, "sha256": backbone.sha256, "clip": backbone.clip}


def _check_cutoff(option: str, value: float | None, schedule: Schedule) -> None:
    """The builder takes any cutoff >= 0; on a command line one beyond T is a slip."""
    if value is not None and value > schedule.T:
        raise ValueError(
            f"{option} must be in 0..{schedule.T} (0: all Skipped-Step, {schedule.T}: all DDIM), "
            f"got {value}"
        )
