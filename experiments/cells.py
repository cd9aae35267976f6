"""Cells and columns: what is sampled, where it lies, and everything that its pixels depend on."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from files.media import Images, Media
from files.whole import check_regular
from models.adm.cards import read_card
from models.backbone import Backbone
from models.variance import stored_x0_variance
from sampling import Noise, Plan, SampleNoise, Schedule, count_calls, sample_labels, scale_eps
from sampling.borrowed import sampler_at, sampler_kinds
from sampling.brownian import BrownianNoise
from sampling.denoise import Denoised
from sampling.options import check_choice, check_options
from sampling.plan import eps_scale_of, read_plan
from sampling.samplers import check_sampler, check_schedule

if TYPE_CHECKING:
    from models.diffusers.running import WholePipeline

# A network, or a whole pipeline that runs a plan: whoever describes cells treats them alike.
Model: TypeAlias = "Backbone | WholePipeline"

TIMESTEPS = ("cutoff", "lo", "hi")  # options of samplers that are timesteps
DIGESTS = ("sha256", "x0_variance")  # what of a sampler's identity is no option of its own
PAPERS_CUTOFF = 291
MOST = 10**9  # samples: the names of files have room for no more
NOISES = ("per_step", "brownian")
NAMES = ("id", "prompt")
LONGEST_NAME = 220  # bytes of a prompt in a file's name, of which most systems allow 255
# Loaders that moved.  `_target_` is in the hash of every folder: without this, samples made before
# would not be found.
FORMER_LOADERS = {"models.adm.load": "models.checkpoints.load"}
# Options that a loader got later, with what held before: a config that says no more than that stays
# the config that it was.
LATER_OPTIONS: dict[str, dict[str, Any]] = {
    "models.adm.load": {"flags": None},
    "models.digits.load": {"precision": "fp32"},
    "models.function.load": {"precision": "fp32"},
}


@dataclass(frozen=True)
class Size:
    """How many samples, and how they are cut up for sampling and for the disk."""

    num_samples: int
    batch_size: int = 64
    shard_size: int = 256

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "shard_size"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be at least 1 and an integer, got {value!r}")
        if self.num_samples > MOST:
            raise ValueError(f"num_samples must be at most {MOST:,}, got {self.num_samples:,}")

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_samples / self.shard_size)

    def ids(self, k: int) -> range:
        """The samples of shard k."""
        return range(k * self.shard_size, min((k + 1) * self.shard_size, self.num_samples))


def shard_path(folder: Path, k: int) -> Path:
    """Shard k of a cell's folder; how it was made lies beside it, in a .json file."""
    return folder / "shards" / f"shard-{k:05d}.npz"


@dataclass(frozen=True)
class Cell:
    """One sampler at one step count: its plan, its folder of samples, and how many there are.

    `config` is everything that the pixels depend on.  `row` and `steps` are its place in a table;
    Heun's plan has other calls than the column's `steps`.
    """

    plan: Plan
    folder: Path
    config: dict[str, Any]
    size: Size
    row: str = ""
    steps: int = 0
    media: Media = field(default_factory=Images)

    @property
    def digest(self) -> str:
        """Identifies the config; every shard carries it."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.json"

    def shard(self, k: int) -> Path:
        return shard_path(self.folder, k)

    def facts(self, k: int) -> Path:
        """How shard k was made: the file beside it."""
        return self.shard(k).with_suffix(".json")

    def record(self, protocol: str) -> Path:
        """Where the scores of these samples by a protocol lie."""
        return self.folder / f"evaluation-{protocol}-{self.size.num_samples}.json"


@dataclass(frozen=True)
class Column:
    """The cells of one step count: sampled as one tree, with the same noise."""

    steps: int
    size: Size
    cells: list[Cell]

    @property
    def plans(self) -> list[Plan]:
        return [cell.plan for cell in self.cells]


@dataclass(frozen=True)
class Settings:
    """What all cells of a command share.  `model` is the model's config as a plain dictionary."""

    model: dict[str, Any]
    backbone: Model
    spacing: Any
    seed: int
    label: int | str | None
    batch_size: int = 64
    shard_size: int = 256
    names: str = "id"
    noise: str = "per_step"

    def column(self, samplers: Mapping[str, dict[str, Any]], steps: int, n: int) -> Column:
        """The cells of some samplers, by their rows, at one step count.

        Raises as `cell`, and where a plan from a file makes more calls than the column says.
        """
        cells = [self.cell(row, sampler, steps, n) for row, sampler in samplers.items()]
        for cell in cells:
            if len(cell.plan) > steps:
                raise ValueError(
                    f"the plan of {cell.row} makes {len(cell.plan)} network calls: it has no place "
                    f"in a column of {steps} steps, set steps={len(cell.plan)}"
                )
        return Column(steps, cells[0].size, cells)

    def cell(
        self, row: str, sampler: dict[str, Any], steps: int | None, n: int, out: str | None = None
    ) -> Cell:
        """One cell.

        Without `out` the folder is runs/<model>/<plan>-...-<hash of the config>, so that equal
        cells of different experiments are sampled once and different ones never meet.  A sampler may
        have a `spacing` of its own.  Raises ValueError for options that make no plan.
        """
        if sampler.get("spacing") is not None:
            settings = replace(self, spacing=sampler["spacing"])
            return settings.cell(row, {**sampler, "spacing": None}, steps, n, out)
        sampler = {key: value for key, value in sampler.items() if key != "spacing"}
        name, scale = sampler["name"], eps_scale_of(sampler.get("eps_scale"), "sampler.")
        plan, identity = self._plan(sampler, steps)
        if scale:
            k, b = scale
            identity["eps_scale"] = [k, b] if k else b
            plan = scale_eps(plan, k, b, limited=self.backbone.clip)
        config = self._config({"name": name, **identity}, len(plan))
        if name == "plan":
            config["spacing"] = "plan"  # its timesteps are its own
        size = Size(n, self.batch_size, self.shard_size)
        cell = Cell(
            plan, Path(out or "."), config, size, row, steps or len(plan), self.backbone.media
        )
        if out:
            return cell
        words = [f"{k}_{_word(v)}" for k, v in identity.items() if k not in DIGESTS]
        said = "-".join([name, *words])[: LONGEST_NAME // 2]
        folder = f"{said}-{len(plan)}steps-{cell.digest[:8]}"
        return replace(cell, folder=Path("runs", self.model["name"], folder))

    def _plan(self, sampler: dict[str, Any], steps: int | None) -> tuple[Plan, dict[str, Any]]:
        """A sampler's plan, without a scale of eps, and what its samples depend on besides the name."""
        name = sampler["name"]
        stated = {k: v for k, v in sampler.items() if k not in ("name", "eps_scale")}
        if name == "plan":
            check_options("sampler plan", stated, ["path"])
            plan = stored_plan(stated.get("path"))
            check_schedule(plan, self.backbone.schedule_at(steps or len(plan)))
            return plan, {"sha256": hashlib.sha256(plan.to_json().encode()).hexdigest()}
        schedule = self.backbone.schedule_at(steps)
        path = schedule.straight
        T: float = schedule.T if path is None else int(path.unit) if path.flow else math.inf
        options = _options(name, stated, T)
        identity = dict(options)
        if path is not None:
            # T lies beyond all timesteps: flow matching's first, where there is noise alone, is T.
            options |= {k: math.inf for k in TIMESTEPS if options.get(k) == T}
            if self.spacing != "even":
                raise ValueError(
                    "a model of flow matching has the noise levels that its own scheduler places: leave "
                    "spacing=even"
                )
        if name == "mixpp" and options.get("variance") == "analytic":
            measured = stored_x0_variance(network_of(self.backbone))
            options["x0_variance"] = measured
            identity["x0_variance"] = hashlib.sha256(measured.tobytes()).hexdigest()[:12]
        return sampler_at(name, schedule, steps, self.spacing, **options), identity

    def _config(self, sampler: dict[str, Any], nfe: int) -> dict[str, Any]:
        """Everything that pixels depend on."""
        backbone = self.backbone
        config: dict[str, Any] = {
            "model": _identity(self.model, backbone),
            "sampler": sampler,
            "steps": nfe,
            "spacing": self.spacing,
            "seed": self.seed,
            "label": self.label,
        }
        check_choice("noise", self.noise, NOISES)
        check_choice("names", self.names, NAMES)
        if self.noise != "per_step":
            config["noise"] = self.noise
        if backbone.guidance is not None:
            config["guidance"] = backbone.guidance.facts
        if backbone.prompts is not None:
            digest = prompts_digest(backbone.prompts)
            config["prompts"] = {"count": len(backbone.prompts), "sha256": digest}
            if backbone.encoding is not None:
                config["prompts"]["tokens"] = backbone.encoding
        if backbone.prompts is not None or backbone.evaluations_per_call > 1:
            config["evaluations_per_call"] = backbone.evaluations_per_call
        if not isinstance(backbone.media, Images):
            config["names"] = self.names
        return config


def network_of(model: Model) -> Backbone:
    """The model as a network that can be asked for x0; ValueError for a pipeline that runs as a whole."""
    if isinstance(model, Backbone):
        return model
    raise ValueError(
        "this pipeline runs as a whole, and variance=analytic needs its network: use variance=fixed_small"
    )


def predicts_variance(model: Model) -> bool:
    """Whether the network has a learned variance, by one call of it.

    Of a pipeline that is there to be counted alone nobody knows: True.
    """
    if not isinstance(model, Backbone):
        return model.pipe is None or model.learned_variance()
    labels = torch.zeros(1, dtype=torch.int64) if model.num_classes else None
    noise = SampleNoise(0, [0], model.shape, device=model.device)
    with torch.no_grad():
        seen = model.given(labels)(noise.start(), float(model.schedule.times[-1]))
    return Denoised(*seen).v is not None


def network_calls(model: Model, plans: Sequence[Plan]) -> int:
    """How many calls a sample takes for these plans: a network's as one tree, a pipeline's one by one."""
    return count_calls(plans) if isinstance(model, Backbone) else sum(map(len, plans))


def stored_plan(path: Any) -> Plan:
    """The plan at `sampler.path`.  Raises ValueError for what is none."""
    if not isinstance(path, str):
        raise ValueError(
            "sampler=plan needs sampler.path=FILE.json: `python sample.py ... show_plan=FILE.json` "
            "writes one"
        )
    check_regular(path)
    return read_plan(path)


def _word(value: Any) -> str:
    """An option's value in a folder's name."""
    return "_".join(map(_word, value)) if isinstance(value, list) else str(value)


def _options(name: str, stated: Mapping[str, Any], T: float) -> dict[str, Any]:
    """The options of a sampler that are not null, as a command line may misstate them.

    T is infinite where a network is told sigma in the place of timesteps, and a cutoff is one.  Raises ValueError for one that the sampler does not have, even as null, and for a timestep beyond T:
    the builder takes any cutoff >= 0; in a command one beyond T is a slip.
    """
    kinds = {k: kind | None for k, kind in sampler_kinds(name, stated.get("scheduler")).items()}
    kinds.pop("x0_variance", None)  # measured, and read from its file
    check_sampler(name, stated, kinds)
    options = {option: value for option, value in stated.items() if value is not None}
    for option in TIMESTEPS:
        if options.get(option) == PAPERS_CUTOFF and T != 1000:
            if math.isinf(T):
                alpha, sigma = Schedule.linear().level(PAPERS_CUTOFF)
                has, words = "is told sigma", f"{sigma / alpha:.2g} for the same sigma"
            else:
                same = round(PAPERS_CUTOFF * T / 1000)
                has, words = f"has {T}", f"{same} for the same share of them"
            raise ValueError(
                f"{option}={PAPERS_CUTOFF} is the paper's, a timestep of 1000, and this model {has}: say "
                f"sampler.{option}={words}, in an experiment experiment.rows.NAME.{option}=... (in tuning and "
                f"advice experiment.rivals.NAME.{option}=...) or "
                f"samplers='[{{name:{name},{option}:...}}]'"
            )
        if option in options and options[option] > T:
            raise ValueError(
                f"{option} must be in 0..{T} (0: all Skipped-Step, {T}: all DDIM), "
                f"got {options[option]}"
            )
    return options


def _identity(model: dict[str, Any], backbone: Model) -> dict[str, Any]:
    """What of a model's config its samples depend on, wherever its files lie.

    channels_last and compile change the last bits alone, as another GPU does; of a pipeline its
    networks count (`sha256`), not the revision that they are from.  Of a card, which may be one's
    own and change, what it says beyond the weights counts.
    """
    left_out = ("channels_last", "compile", "revision", "variant", "text_cache", "distilled")
    identity = {key: v for key, v in model.items() if key not in left_out}
    loader = identity["_target_"]
    for key, value in LATER_OPTIONS.get(loader, {}).items():
        if identity.get(key) == value:
            del identity[key]
    identity["_target_"] = FORMER_LOADERS.get(loader, loader)
    for key in ("checkpoint", "id", "text_encoder", "vae"):
        if identity.get(key):
            identity[key] = Path(identity[key]).name
    if identity.get("card"):
        identity["card"] = Path(identity["card"]).stem
        identity["schedule"], identity["shape"] = backbone.schedule.name, list(backbone.shape)
        # Heads and the order of attention change pixels, but no key and no shape.
        identity["network"] = read_card(model["card"]).network
    return {**identity, **backbone.facts, "sha256": backbone.sha256, "clip": backbone.clip}


def prompts_digest(prompts: Sequence[str]) -> str:
    """What tells one list of prompts from another in manifests."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def labels_of(cell: Cell, backbone: Model, ids: Sequence[int]) -> Tensor | None:
    """Class of each sample, a function of (seed, i) alone; None if the model has no classes.

    The config's `label` is one class for all, "balanced" (class i mod num_classes: equally many of
    each) or None: uniform at random, as guided-diffusion; of a model with prompts, prompt i for
    sample i.  Raises ValueError for any other label, and for samples beyond the last prompt.
    """
    num_classes, label = backbone.num_classes, cell.config["label"]
    if num_classes is None:
        if label is not None:
            raise ValueError("this model is unconditional: leave label=null")
        return None
    if label is None and backbone.prompts is None:
        return sample_labels(cell.config["seed"], ids, num_classes)
    if label is None:
        if ids and ids[-1] >= num_classes:
            raise ValueError(
                f"sample i is of prompt i, and there are {num_classes} prompts for "
                f"{ids[-1] + 1} samples: lower num_samples, or let the prompts repeat with "
                "label=balanced"
            )
        return torch.tensor(list(ids), dtype=torch.int64)
    if label == "balanced":
        return torch.tensor(list(ids), dtype=torch.int64) % num_classes
    if type(label) is not int or not 0 <= label < num_classes:
        raise ValueError(f"label must be in 0..{num_classes - 1}, balanced or null, got {label}")
    return torch.full((len(ids),), label, dtype=torch.int64)


def noise_of(cell: Cell, backbone: Model, ids: Sequence[int]) -> Noise:
    """The noise of these samples, each a function of (seed, i) alone; raises as `SampleNoise`."""
    seed, shape, device = cell.config["seed"], backbone.shape, backbone.device
    if cell.config.get("noise") == "brownian":
        return BrownianNoise(seed, ids, shape, backbone.schedule, device=device)
    return SampleNoise(seed, ids, shape, device=device)


def file_names(cell: Cell, backbone: Model, ids: Sequence[int]) -> list[str]:
    """File names of videos: 000007.mp4, or with names=prompt `{prompt}-{k}.mp4` as VBench reads.

    k counts the videos of a prompt.  Raises ValueError for prompts that cannot be file names, or
    not two of them.
    """
    if cell.config.get("names") != "prompt":
        return [f"{i:06d}.mp4" for i in ids]
    prompts, label = backbone.prompts or (), cell.config["label"]
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
