"""The flags of guided-diffusion's scripts: what they say of a network and of its diffusion.

`--image_size 64 --num_channels 192 --class_cond True ...`, as authors print them beside their
checkpoints.  Every flag of the original's `create_model_and_diffusion` is understood, with the
original's default where it is not named; flags that only train, or say how the original's scripts
sample, are told not to be followed, and all others are refused by name.
"""

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from models.adm.cards import Blueprint
from models.adm.networks import Options
from models.adm.shapes import read_shapes
from models.weights import Shapes
from sampling import Schedule

# guided-diffusion's model_and_diffusion_defaults (script_util.py).
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
# Constants of the original's code, which many who train models of their own make flags.
CONSTANTS: dict[str, Any] = {"num_classes": 1000, "in_channels": 3}
# `create_model`'s widths where channel_mult is not given.
WIDTHS: dict[int, list[float]] = {
    512: [0.5, 1, 1, 2, 2, 4, 4],
    256: [1, 1, 2, 2, 4, 4],
    128: [1, 1, 2, 3, 4],
    64: [1, 2, 3, 4],
}
# Of training, or without effect on a finished network.
TRAINING = [
    "data_dir",
    "schedule_sampler",
    "lr",
    "weight_decay",
    "lr_anneal_steps",
    "iterations",
    "anneal_lr",
    "microbatch",
    "ema_rate",
    "log_interval",
    "save_interval",
    "eval_interval",
    "resume_checkpoint",
    "fp16_scale_growth",
]
# Of the original's sampling scripts, and what says the same here.
HERE = {
    "batch_size": "batch_size=",
    "num_samples": "num_samples=",
    "use_ddim": "sampler=ddim",
    "model_path": "model.checkpoint=",
    "clip_denoised": "model.clip=",
}
_SUPER_RESOLUTION = (
    "is of upsamplers, which need a small image besides noise: they cannot be loaded"
)
_NO_IMAGES = "makes no images: write a loader for it, and take model=function"
_GUIDANCE = (
    "is of classifier guidance, which needs a published card (model=adm_imagenet "
    "guidance=classifier): say --classifier_scale 0 to sample without it"
)
REFUSED = dict.fromkeys(("large_size", "small_size", "base_samples"), _SUPER_RESOLUTION)
SCHEDULES = ("linear", "cosine")
# What does not change a pixel of a finished network.
WITHOUT_EFFECT = [
    "dropout",
    "use_checkpoint",
    "use_fp16",
    "use_kl",
    "rescale_learned_sigmas",
    "timestep_respacing",
]


@dataclass(frozen=True, kw_only=True)
class Flags(Blueprint):
    """A checkpoint that is known by its flags: `values` are all of them, the defaults too.

    `ignored` are those that are not followed here.
    """

    values: Mapping[str, Any]
    ignored: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return "a checkpoint with flags"

    @property
    def remedy(self) -> str:
        return "give the path of a guided-diffusion checkpoint as model.checkpoint=..."

    @property
    def betas(self) -> Schedule:
        return Schedule.named(self.schedule, self.values["diffusion_steps"])

    @property
    def prediction_type(self) -> str:
        return "sample" if self.values["predict_xstart"] else "epsilon"

    @property
    def time_scale(self) -> float:
        """1000 / T with `rescale_timesteps`: every network is told times up to 1000."""
        T = self.values["diffusion_steps"]
        return 1000 / T if self.values["rescale_timesteps"] else 1.0

    @property
    def facts(self) -> dict[str, Any]:
        """The flags on which pixels depend, however they were written."""
        return {"flags": {k: v for k, v in self.values.items() if k not in WITHOUT_EFFECT}}

    def misfit(self, shapes: Shapes) -> str:
        """The flags that the file's shapes tell otherwise, with their right values."""
        size = self.image_size
        widths = read_shapes(shapes, size).get("channel_mult")
        sizes = [other for other, default in WIDTHS.items() if default == widths]
        if self.values["channel_mult"] == WIDTHS.get(size) and sizes:
            size = sizes[0]  # the widths are another image size's, and so are the resolutions
        right = {"image_size": size, **read_shapes(shapes, size)}
        if size != self.image_size:
            del right["channel_mult"]  # it is the default then
        channels = right.get("in_channels")
        if channels == 6:
            return f"a network of 6 channels {_SUPER_RESOLUTION}"
        if channels not in (None, 1, 3):
            return f"a network of {channels} channels {_NO_IMAGES}"
        wrong = {k: v for k, v in right.items() if self._differs(k, v, size)}
        if not wrong:
            return (
                "its shapes do not tell which flag is wrong: compare model.flags with its authors'"
            )
        told = " ".join(f"--{name} {_text(value)}" for name, value in wrong.items())
        return f"by the file's shapes it should be {told}: say so in model.flags"

    def _differs(self, name: str, right: Any, size: int) -> bool:
        """Whether a flag would have to be said otherwise for the right value, of images of `size`."""
        ours = self.values[name]
        if name == "attention_resolutions":
            levels = {2**k for k in range(len(self.values["channel_mult"]))}
            told = [{size // r for r in each} & levels for each in (ours, right)]
            return told[0] != told[1]
        if name == "num_classes" and None in (ours, right):
            return right not in (None, CONSTANTS[name])
        return bool(ours != right)

    def notes(self, precision: str) -> list[str]:
        """What a user may expect of the flags, and gets by other settings."""
        spaced, notes = str(self.values["timestep_respacing"]), []
        if self.ignored:
            words = [f"--{name} ({HERE[name]})" for name in self.ignored if name in HERE]
            words += [f"--{name}" for name in self.ignored if name not in HERE]
            notes.append(f"not followed, of the original's scripts: {', '.join(words)}")
        if spaced:
            notes.append(f"--timestep_respacing {spaced} is {_spacing(spaced)} here")
        if self.values["use_fp16"] and precision != "fp16":
            notes.append("--use_fp16 True is model.precision=fp16 here")
        if not self.values["learn_sigma"]:
            notes.append(
                "a network without --learn_sigma predicts no variance: the original's is "
                "sampler=ddpm sampler.variance=fixed_large"
            )
        return notes


def read_flags(text: str, shapes: Shapes | None = None) -> Flags:
    """The flags of a command line, `--name value` or `--name=value`; the last of a name counts.

    `shapes` of the checkpoint, where it is there, help with the remedy.  Raises ValueError, naming
    the flag and what to do, for one that is unknown, cannot be followed or has no such value.
    """
    given = _pairs(str(text))
    ignored = tuple(name for name in given if _is_ignored(name, given))
    values = {**DEFAULTS, **CONSTANTS}
    for name, word in given.items():
        if name not in ignored:
            values[name] = _value(name, word)
    _check(values, shapes)
    size = values["image_size"]
    values["channel_mult"] = _numbers("channel_mult", values["channel_mult"]) or WIDTHS[size]
    resolutions = _numbers("attention_resolutions", values["attention_resolutions"])
    values["attention_resolutions"] = sorted(set(resolutions), reverse=True)
    if not values["class_cond"]:
        values["num_classes"] = None
    names = {field.name for field in fields(Options)}
    network = {name: value for name, value in values.items() if name in names}
    network["attention_ds"] = [size // int(resolution) for resolution in resolutions]
    _check_network(size, network)
    return Flags(
        kind="unet",
        sha256=None,
        image_size=size,
        schedule=values["noise_schedule"],
        network=network,
        values=values,
        ignored=ignored,
    )


def _is_ignored(name: str, given: Mapping[str, str]) -> bool:
    """Whether a flag decides nothing here.  Raises ValueError for one that would, and cannot."""
    if name == "clip_denoised" and not _truth(name, given[name]):
        raise ValueError(
            "--clip_denoised False is model.clip=false here: say that, and not the flag"
        )
    if name.startswith("classifier_"):
        try:
            return float(given.get("classifier_scale", "1")) == 0
        except ValueError:
            return False
    return name in (*TRAINING, *HERE)


def _pairs(text: str) -> dict[str, str]:
    """Name -> word of every flag.  Raises ValueError for what is no list of flags."""
    try:
        words = [part for word in shlex.split(text) for part in _parted(word)]
    except ValueError as error:
        raise ValueError(f"model.flags cannot be read ({error}): close its quotes") from None
    pairs = {}
    while words:
        name, *words = words
        if not name.startswith("--"):
            raise ValueError(
                f"model.flags has {name!r} where a flag should be: write --name value, as "
                "'--image_size 64 --num_channels 192'"
            )
        if not words or words[0].startswith("--"):
            raise ValueError(f"the flag {name} has no value: write {name} and a value")
        pairs[name[2:]], *words = words
    return pairs


def _parted(word: str) -> list[str]:
    """`--name=value` as two words."""
    name, equals, value = word.partition("=")
    return [name, value] if equals and name.startswith("--") else [word]


def _value(name: str, word: str) -> Any:
    """A flag's value in the type of its default, as the original's argparse reads it."""
    if name in REFUSED or name.startswith("classifier_"):
        raise ValueError(f"the flag --{name} {REFUSED.get(name, _GUIDANCE)}")
    known = {**DEFAULTS, **CONSTANTS}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"do you mean --{near[0]}?  Else leave it out" if near else "leave it out"
        raise ValueError(
            f"guided-diffusion's create_model_and_diffusion has no flag --{name}: {hint}"
        )
    default = known[name]
    if isinstance(default, bool):
        return _truth(name, word)
    try:
        return type(default)(word)
    except ValueError:
        kind = "an integer" if isinstance(default, int) else "a number"
        raise ValueError(f"--{name} must be {kind}, got {word!r}") from None


def _truth(name: str, word: str) -> bool:
    low = word.lower()
    if low not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise ValueError(f"--{name} must be True or False, got {word!r}")
    return low in ("yes", "true", "t", "y", "1")


def _check(values: Mapping[str, Any], shapes: Shapes | None) -> None:
    """Raise ValueError for values of which no network or diffusion can be made."""
    # Of fewer steps the linear betas, 20 / T at the end, would not stay below 1.
    least = {"image_size": 1, "num_channels": 1, "num_res_blocks": 1, "diffusion_steps": 21}
    for name, number in least.items():
        if values[name] < number:
            raise ValueError(f"--{name} must be at least {number}, got {values[name]}")
    if values["noise_schedule"] not in SCHEDULES:
        raise ValueError(
            f"--noise_schedule {values['noise_schedule']} is not known to guided-diffusion: choose "
            f"{' or '.join(SCHEDULES)}"
        )
    if values["in_channels"] not in (1, 3):
        raise ValueError(f"--in_channels {values['in_channels']} (1 or 3 here) {_NO_IMAGES}")
    if values["num_classes"] < 1:
        raise ValueError(f"--num_classes must be at least 1, got {values['num_classes']}")
    size = values["image_size"]
    if not values["channel_mult"] and size not in WIDTHS:
        told = read_shapes(shapes or {}, size).get("channel_mult", [1, 2, 2, 2])
        which = "by the file's shapes" if shapes else "for instance"
        raise ValueError(
            f"guided-diffusion has no channel_mult for --image_size {size}: add it to model.flags, "
            f"{which} --channel_mult {_text(told)}"
        )


def _check_network(size: int, network: Mapping[str, Any]) -> None:
    """Raise ValueError for a network that could be built, and not be called."""
    mults, width, per_head = (
        network[name] for name in ("channel_mult", "num_channels", "num_head_channels")
    )
    if size % (deepest := 2 ** (len(mults) - 1)):
        raise ValueError(
            f"--image_size {size} cannot be halved {len(mults) - 1} times: give a multiple of "
            f"{deepest}, or fewer --channel_mult"
        )
    for channels in {int(mult * width) for mult in mults}:
        if channels < 1 or channels % 32:
            raise ValueError(
                f"--num_channels {width} with --channel_mult {_text(mults)} makes {channels} "
                "channels, which its norms cannot part in 32 groups: check both"
            )
    attends = {len(mults) - 1, *(k for k in range(len(mults)) if 2**k in network["attention_ds"])}
    for name in ("num_head_channels",) if per_head != -1 else ("num_heads", "num_heads_upsample"):
        parts = network[name]
        if (name, parts) != ("num_heads_upsample", -1) and (
            parts < 1 or any(int(mults[k] * width) % parts for k in attends)
        ):
            raise ValueError(
                f"--{name} {parts} does not divide the channels of attention: check it"
            )


def _numbers(name: str, text: str) -> list[float]:
    """The numbers of a list with commas, integers where they are."""
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [-1]
    if any(not 0 < number < float("inf") for number in numbers) or (
        name == "attention_resolutions" and (not numbers or any(n % 1 for n in numbers))
    ):
        raise ValueError(f"--{name} must be positive numbers with commas between, got {text!r}")
    return [int(number) if number == int(number) else number for number in numbers]


def _text(value: Any) -> str:
    """A value as it is written behind its flag."""
    return ",".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)


def _spacing(respacing: str) -> str:
    """Our settings for the original's timestep_respacing."""
    if respacing.startswith("ddim"):
        return f"steps={respacing[4:]} spacing=ddim"
    return f"steps={respacing}" if "," not in respacing else f"steps=null spacing=\"'{respacing}'\""
