"""Every setting of the commands, and what it may be.

What a level of the configs understands is said once: here for the commands' own settings, and by the
signature of the function that gets them for models, samplers, metrics and images.  All else is
refused before any work, however it came: in a file, or on the command line with + or ++ or without.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from eval.extractors import MAKERS
from eval.scoring import Options
from eval.words import as_word
from files.whole import CONTROL
from models.patched import net_kinds
from models.trainer import ClassifierRecipe, Recipe, Saving
from sampling.borrowed import sampler_kinds
from sampling.options import (
    check_choice,
    check_types,
    closest,
    described,
    fits,
    kinds_of,
    needed_by,
    takes_any_name,
)

Kinds = dict[str, Any]
Group = dict[str, Any]  # a folder of configs/: one of its files, or what stands in it

Label = int | Literal["balanced"] | None
Prompts = Path | list[str] | None
Spacing = str | list[int]

EVERY: Kinds = {"downloads": Path, "device": str, "trusted": list[str]}
SCORING: Kinds = {"metrics": Group, "reference": Group}
SAMPLING: Kinds = {
    **{"model": Group, "guidance": Group, "logger": Group, "out": Path | None, "prompts": Prompts},
    **{"seed": int, "noise": str, "label": Label},
    **{"batch_size": int, "shard_size": int, "part": int, "parts": int},
}
REPRODUCE: Kinds = {
    **{**EVERY, **SCORING, **SAMPLING, "experiment": Group},
    **{"steps": int | list[int] | None, "num_samples": int | list[int] | None},
    **{"samplers": list[str | Group] | None, "out": Path},
    **{"dry": bool, "render_only": bool, "stage": str, "only": int | list[int] | None},
}
COMMANDS: dict[str, Kinds] = {
    "sample": {
        **{**EVERY, **SAMPLING, "sampler": Group, "steps": int | None, "spacing": Spacing},
        **{"num_samples": int | None, "names": str, "format": str, "show_plan": bool | Path},
    },
    "evaluate": {
        **{**EVERY, **SCORING, "logger": Group, "samples": Path, "against": Path | None},
        **{"labels": str, "prompts": Path | None, "out": Path | None, "num_samples": int | None},
    },
    "reproduce": REPRODUCE,
    "tune": {**REPRODUCE, "budget": int | None},
    "advise": {**REPRODUCE, "budget": int | None},
    "train": {
        **{**EVERY, **SCORING, "model": Group, "training": Group, "what": str, "out": Path},
        **{"stop_after": int | None, "compile": bool},
    },
}
# A model brings these along, and the command has no use for them.
BROUGHT = {"sample": ["metrics", "reference"]}

EXPERIMENT: Kinds = {
    **{"name": str, "title": str, "scorer": str, "renderer": str, "paper": Path | None},
    **{"steps": int | list[int], "num_samples": int | list[int], "spacing": Spacing},
    **{"rows": Group, "cutoffs": list[float] | None, "metrics": list[str]},
    **{"names": str, "frames": int},
    # What the settings of that name, of the command or its model, default to:
    **{"label": Label, "prompts": Prompts, "precision": str, "batch_size": int},
}
CONTEST: Kinds = {
    **{"name": str, "title": str, "family": str, "steps": int | list[int], "spacing": Spacing},
    **{"num_samples": int, "label": Label, "metric": str, "metrics": list[str], "rivals": Group},
    **{"precision": str, "batch_size": int},
}
RACED: Kinds = {"grids": list[Spacing], "rounds": list[int], "budget": int}
FAMILIES: dict[str, Kinds] = {  # of the candidates
    "window": {
        **{"tuning_samples": int, "windows": int, "orders": list[list[int]]},
        "variances": list[str],
    },
    "mixstar": {
        **{**RACED, "starts": int, "orders": list[list[int]]},
        **{"generation_samples": int, "finalist_samples": int},
    },
    "named": {**RACED, "against": Group},
}
MAY_BE_ABSENT = ("precision", "batch_size")
REFERENCE: Kinds = {
    **{"name": str, "url": str | None, "batch": Path | None, "remedy": str | None},
    **{
        "file": Path,
        "images": Group | Path,
        "floor": Group | None,
        "held_out": Group,
        "folder": Path | None,
    },
    **{
        "statistics_n": int | None,
        "preprocess": str | None,
        "size": int | None,
        "store_floor": bool,
    },
    "published": dict[str, Group],
}
METRICS: Kinds = {"name": str, "extractor": str, "scores": list[str], "options": Group}
GUIDANCE: dict[str, Kinds] = {
    "none": {"name": str},
    "classifier": {"name": str, "scale": float, "checkpoint": Path | None},
}
LOGGERS: dict[str, Kinds] = {
    "none": {"name": str},
    "wandb": {
        **{"name": str, "mode": str, "project": str},
        **{"entity": str | None, "group": str | None, "dir": Path},
    },
}
# What commands and loaders give a loader besides the model's config; the last three are a dry run's.
GIVEN = ("device", "guidance", "prompts", "untrained", "fetch", "encode")
# What a command can do without: ~experiment.rows.DDPM.
MAY_GO = ("experiment.rows.", "experiment.rivals.", "metrics.options.", "hydra.callbacks.")
Word = tuple[str, str]  # a setting of the command line, without + and ++, and its value
# Whose functions a `_target_` may name without being asked.
OURS = ("models", "files.images")
MISSING = "???"


# --- the command line ---------------------------------------------------------------------------


def typed(overrides: Sequence[str]) -> list[Word]:
    """What was typed, without + and ++.  Raises ValueError for what is no setting, and for taking away one that is needed."""
    words = []
    for word in overrides:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals and not key.startswith("~"):
            raise ValueError(f"{word!r} is no setting: write NAME=VALUE, as in seed=1")
        if key.startswith("~") and not key[1:].startswith(MAY_GO):
            raise ValueError(f"{key} takes away what is needed: leave it out")
        words.append((key.lstrip("~"), value))
    return words


def check_launcher(words: Sequence[str], multirun: bool) -> None:
    slurm = [word for word in words if re.match(r"hydra/launcher=.*slurm$", word)]
    if slurm and not multirun:
        raise ValueError(f"{slurm[0]} is for a multirun: add -m")
    if slurm and shutil.which("sbatch") is None:
        raise FileNotFoundError(
            f"no sbatch here: submit from a login node of a SLURM cluster, or leave {slurm[0]} out"
        )


def check_words(command: str, words: Sequence[Word]) -> None:
    """Raise ValueError at a group of configs that the command does not have, or has no use for."""
    ours = COMMANDS[command]
    for key, _ in words:
        head = re.split(r"[.@/]", key)[0]
        theirs = [
            name
            for name, kinds in COMMANDS.items()
            if head in kinds and name not in ("tune", "advise")
        ]
        if head not in ours and theirs:
            raise ValueError(
                f"{command} has no setting {head}, which is one of {', '.join(theirs)}: leave it out"
            )


def check_file_name(setting: str, name: str) -> None:
    """Raise ValueError for a name that would put files elsewhere, or cannot be part of a file's."""
    if not name or "/" in name or not name.isprintable() or name.strip(".") == "":
        raise ValueError(
            f"{setting} is part of a file's name, got {name!r}: give one of letters and digits"
        )


def differing(key: str, value: Any, told: Any) -> list[str]:
    """The words that make of what is `told` of a setting its value.

    Which classes are drawn, and how often, is nothing to repeat, unless it is one class.
    """
    if isinstance(value, dict) and isinstance(told, dict):
        parts = [differing(f"{key}.{k}", v, told.get(k)) for k, v in value.items()]
        return [word for part in parts for word in part]
    if value == told or (key == "label" and value in ("balanced", None)):
        return []
    return [f"{key}={as_word(value)}"]


# --- the functions that configs name ------------------------------------------------------------


def callable_at(target: Any, trusted: Sequence[str] = ()) -> Callable[..., Any]:
    """The function or class that a `_target_` names: the one way from a config to code.

    Only this project's own, which load models and images; those of another installed package where
    the user's own config trusts it.  Raises ValueError for any other, and for none.
    """
    _check_package(target, str(target), trusted)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"_target_ {target} is not there ({error}): correct its name") from None
    if not callable(found):
        raise ValueError(f"_target_ {target} is no function: correct its name")
    # A module shows what it imports, too.
    _check_package(target, f"{found.__module__}.{name}", trusted)
    return found


def _check_package(target: Any, path: str, trusted: Sequence[str]) -> None:
    if any(path.startswith(f"{package}.") for package in (*OURS, *trusted)):
        return
    package = path.partition(".")[0]
    raise ValueError(
        f"_target_ {target} is no function of this project's {' or '.join(OURS)}, and would run code "
        f"of {package or 'nobody knows what'}: remove it, or, if you know that it is meant, "
        f"give trusted=[{package}]"
    )


def factories(logging: Any) -> Iterator[Any]:
    """What Python's logging.config would call."""
    for key, value in logging.items() if isinstance(logging, Mapping) else ():
        if key in ("()", "class"):
            yield value
        yield from factories(value)


# --- one level after the other ------------------------------------------------------------------


@dataclass(frozen=True)
class Checker:
    """Compares the settings of a command with what is understood.

    `words` are the command line's, (key, value) without + and ++; `groups` says which names a folder
    of configs/ has.
    """

    command: str
    cfg: Mapping[str, Any]
    words: Sequence[Word]
    groups: Callable[[str], Sequence[str]]

    def check(self) -> None:
        """Raise ValueError at the first setting that is unknown, missing or of another type."""
        kinds = COMMANDS[self.command]
        brought = dict.fromkeys(BROUGHT.get(self.command, ()), Group)
        self.level("", self.cfg, {**kinds, **brought}, list(kinds))
        for name, value in self.cfg.items():
            if part := getattr(self, name, None) if kinds.get(name) == Group else None:
                part(value)
            if kinds.get(name) == Group and value.get("name") is not None:
                check_file_name(f"{name}.name", value["name"])
        for name in brought:
            getattr(self, name)(self.cfg[name])

    def level(
        self, path: str, values: Mapping[str, Any], kinds: Kinds, needed: Sequence[str] = ()
    ) -> None:
        """Compare one level, whose settings are called `path` and their name."""
        if absent := [key for key in needed if key not in values]:
            raise ValueError(f"{path}{absent[0]} is missing: give {path}{absent[0]}=...")
        for key, value in values.items():
            if key not in kinds:
                raise ValueError(self.unknown(path, str(key), value, kinds))
        check_types(path, {k: v for k, v in values.items() if v != MISSING}, kinds)
        name = str(values.get("name", "plain"))
        if "/" in name or CONTROL.search(name) or name in ("", ".", ".."):
            raise ValueError(
                f"{path}name is part of a file's name: give one without / and line breaks"
            )

    def call(self, path: str, config: Any, more: Kinds, given: Sequence[str] = ()) -> None:
        """Compare a level that describes the call of its `_target_`, but for what is `given`."""
        if config is None or config == MISSING:
            return
        if "_target_" not in config:
            raise ValueError(f"{path}_target_ is missing: name the function that reads it")
        function = callable_at(config["_target_"], self.cfg["trusted"])
        kinds = {key: kind for key, kind in kinds_of(function).items() if key not in given}
        if takes_any_name(function):
            kinds = {**dict.fromkeys(config, Any), **kinds}
        needed = [key for key in needed_by(function) if key not in given]
        self.level(path, config, {**kinds, **more, "_target_": str}, [*more, *needed])

    def model(self, model: Mapping[str, Any]) -> None:
        self.call("model.", model, {"name": str}, GIVEN)
        if isinstance(model.get("net"), Mapping):
            self.level("model.net.", model["net"], net_kinds())

    def guidance(self, guidance: Mapping[str, Any]) -> None:
        self._named("guidance", guidance, GUIDANCE)

    def logger(self, logger: Mapping[str, Any]) -> None:
        self._named("logger", logger, LOGGERS)

    def _named(self, group: str, config: Mapping[str, Any], kinds: Mapping[str, Kinds]) -> None:
        check_choice(group, config.get("name"), kinds)
        self.level(f"{group}.", config, kinds[config["name"]], list(kinds[config["name"]]))

    def sampler(self, sampler: Any, path: str = "sampler.") -> None:
        if not isinstance(sampler, Mapping) or "name" not in sampler:
            raise ValueError(f"{path}name is missing: give the sampler's name")
        if sampler["name"] == "plan":
            kinds: Kinds = {"path": Path}
        else:
            kinds = sampler_kinds(sampler["name"], sampler.get("scheduler"))
        kinds.pop("x0_variance", None)  # measured, and read from its file
        kinds["eps_scale"] = float | list[float]  # of every plan
        if path != "sampler.":
            kinds["spacing"] = Spacing  # of a row, where it is not that of all
        nullable = {option: kind | None for option, kind in kinds.items()}
        self.level(path, sampler, {"name": str, **nullable})

    def metrics(self, metrics: Mapping[str, Any]) -> None:
        kinds: Kinds = {"batch_size": int | None}
        for extractor in MAKERS:
            kinds |= kinds_of(extractor)
        given = ("device", "mode", "network", "function")  # by the extractor's name
        kinds = {key: kind for key, kind in kinds.items() if key not in given}
        self.level("metrics.", metrics, {**kinds, **METRICS}, list(METRICS))
        self.level("metrics.options.", metrics["options"], kinds_of(Options))

    def reference(self, reference: Mapping[str, Any]) -> None:
        needed: tuple[str, ...] = ("name", "images", "floor", "folder")
        if reference.get("name") == "none" or "file" in reference:
            needed = ("name",)
        self.level("reference.", reference, REFERENCE, needed)
        for part in ("images", "floor", "held_out"):
            described = reference.get(part)
            if part == "images" and isinstance(described, str):
                continue  # a folder or a file
            optional = (
                part == "floor" and described and described.get("path", "") is None
            )  # no floor
            self.call(
                f"reference.{part}.",
                described,
                {"path": Path | None} if optional else {},
                ("prepare",),
            )

    def experiment(self, experiment: Mapping[str, Any]) -> None:
        if "family" in experiment:
            check_choice("experiment.family", experiment["family"], FAMILIES)
            kinds = {**CONTEST, **FAMILIES[experiment["family"]]}
            absent = {*MAY_BE_ABSENT, *({"num_samples"} if "against" in kinds else ())}
            needed = [key for key in kinds if key not in absent]
            self.level("experiment.", experiment, kinds, needed)
        else:
            self.level("experiment.", experiment, EXPERIMENT)
        for part in ("rows", "rivals"):
            for row, sampler in (experiment.get(part) or {}).items():
                if not isinstance(row, str) or not row.strip():
                    raise ValueError(
                        f"experiment.{part} has a row of the name {row!r}, which is no text: write it in "
                        "quotes"
                    )
                self.sampler(sampler, f"experiment.{part}.{row}.")

    def training(self, training: Mapping[str, Any]) -> None:
        calls, recipes = (
            ("images", "network", "classifier", "augment"),
            {"unet": Recipe, "saving": Saving, "classifier_recipe": ClassifierRecipe},
        )
        parts = (*calls, *recipes)
        self.level("training.", training, dict.fromkeys(parts, Group), parts)
        for part in calls:
            self.call(f"training.{part}.", training.get(part), {}, ("split", "x"))
        for part, recipe in recipes.items():
            kinds = {key: kind for key, kind in kinds_of(recipe).items() if key != "folder"}
            self.level(f"training.{part}.", training[part], kinds, list(kinds))

    # --- what may have been meant ---------------------------------------------------------------

    def unknown(self, path: str, key: str, value: Any, kinds: Kinds) -> str:
        """What is said of an unknown setting; a guess is one that can be typed, if it fits."""
        fit = [name for name, kind in kinds.items() if self._takes(path + name, value, kind)]
        close = closest(key, fit)
        guess = f"{path}{close}" if close else self._elsewhere(path, key)
        said = f"there is no setting {path}{key}"
        if guess:
            return f"{said}: did you mean {self._typed(path + key, guess)}?"
        if other := closest(key, kinds):
            is_group = kinds[other] == Group and not path
            wanted = (
                f"one of {', '.join(self.groups(other))}" if is_group else described(kinds[other])
            )
            return f"{said}: {path}{other} must be {wanted}"
        return f"{said}: choose among {', '.join(path + name for name in kinds) or 'none'}"

    def _takes(self, path: str, value: Any, kind: Any) -> bool:
        if kind == Group and isinstance(value, str):
            return value in self.groups(path)
        return fits(value, kind)

    def _elsewhere(self, path: str, key: str) -> str | None:
        """A setting of that very name at another level, or None."""
        if key in COMMANDS[self.command]:
            return key
        for group, part in self.cfg.items():
            known = isinstance(part, Mapping) and group in COMMANDS[self.command]
            if known and key in part and f"{group}." != path:
                return f"{group}.{key}"
        return None

    def _typed(self, path: str, guess: str) -> str:
        """The guess in place of `path` in the word of the command line that has it."""
        for key, value in self.words:
            if key == path or key.startswith(f"{path}."):
                return shlex.quote(f"{guess}{key[len(path) :]}={value}")
        return guess
