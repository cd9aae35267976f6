"""Configs and command lines: what Hydra composes, as the objects that everything else takes.

All of Hydra is here, but for what its errors say (endings.py).
"""

import copy
import functools
import hashlib
import inspect
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import AnyNode, DictConfig, ListConfig, OmegaConf

from eval.evaluation import ReferenceSource, floor_digest, stored_source
from eval.preprocessing import PREPROCESSING, Preprocessing
from experiments.answers import answer, command_line, register_models
from experiments.cells import Model, Settings
from experiments.choices import CONFIGS
from experiments.devices import pick_device
from experiments.endings import reported, terminated
from experiments.evaluate import Evaluator
from experiments.help import show_help
from experiments.settings import (
    COMMANDS,
    LOGGERS,
    Checker,
    Group,
    callable_at,
    check_launcher,
    check_words,
    differing,
    typed,
)
from experiments.tracking import Tracker, WandbTracker
from experiments.trust import check_hydra, check_load, check_trust
from experiments.workers import say
from files.images import Samples, image_shape, load_samples
from files.places import ROOT, downloads
from files.prompts import listed_prompts, read_prompts
from models.weights import has_bf16
from sampling.options import check_choice, check_options

Config = DictConfig  # what Hydra composes, for those that only read it
# Settings that say who does the work, where, and how it is watched: they change no result.
CIRCUMSTANCES = (
    *("stage", "only", "part", "parts", "logger", "device", "batch_size", "out"),
    *("trusted", "hydra"),
)
# What a command and sample.py both take, and pixels depend on.
OF_MODEL = ("model", "guidance", "prompts", "label", "noise", "downloads", "trusted")
# Prompts of the experiments, by the folder of downloads that has them, and what makes them.
MAKING = {"coco": "make coco", "vbench": "python -m scripts.vbench prompts"}
# Other configs than those that are checked; the last one even unpickles.
MISSING_IMAGES = "reference.images is missing: give reference.images=DIR, a folder or an .npz"
REFUSED_FLAGS = ("config_path", "config_name", "experimental_rerun")


# --- command lines ------------------------------------------------------------------------------


def run_command(main: Callable[[DictConfig], None], config: str) -> None:
    """Compose configs/<config>.yaml with the command line's overrides and call `main`.

    What a user can mend ends in one line that starts with `error:` and exit status 2;
    set TRACEBACK=1 for where it came from.  Ctrl-C exits with 130, SIGTERM with 143.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of exiting
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminated)
    doc = sys.modules[main.__module__].__doc__
    reported(answer, config, doc)
    sys.argv[1:] = map(_quoted, sys.argv[1:])
    reported(_check_command_line, config, doc)
    wrapped = functools.wraps(main)(lambda cfg: _call_job(main, cfg))
    reported(hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config)(wrapped))


def composed(config: str, *overrides: str, with_hydra: bool = False) -> DictConfig:
    """configs/<config>.yaml with overrides, for scripts; with Hydra's own part if wanted.

    Raises ValueError for a setting that is unknown or of another type, Hydra's errors for what cannot
    be composed.
    """
    _register()
    GlobalHydra.instance().clear()
    overrides = tuple(map(_quoted, overrides))
    check_words(config, typed(overrides))
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = _composed(config, _forced(overrides), with_hydra)
        groups = GlobalHydra.instance().config_loader().get_group_options
        own = [str(key) for key in cfg if key != "hydra"]
        settings = cast(dict[str, Any], plain(OmegaConf.masked_copy(cfg, own)))
        check_trust(settings["trusted"], overrides)
        check_load(settings, overrides)
        Checker(config, settings, typed(overrides), groups).check()
    if with_hydra:
        check_hydra(_unresolved(cfg.hydra), settings["trusted"], overrides)
        _check_launcher(config, cfg.hydra, overrides)
    return cfg


def _composed(config: str, overrides: list[str], with_hydra: bool) -> DictConfig:
    """What Hydra composes.  Whatever it stumbles over is a ValueError, but for errors of its own."""
    try:
        cfg = hydra.compose(config, overrides, return_hydra_config=with_hydra)
    except RecursionError:
        raise ValueError("configs name each other in a circle: look at their defaults") from None
    except yaml.YAMLError as error:
        raise ValueError(f"a config is no YAML ({error}): correct it there") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"a config is not UTF-8 text ({error}): save it as UTF-8") from None
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"Hydra cannot compose these settings ({error}): take away those of hydra.*, then others"
        ) from None
    for name, kind in COMMANDS[config].items():
        node = cfg._get_node(name) if kind == Group else None
        if isinstance(node, ListConfig | AnyNode):
            raise ValueError(f"{name} must be settings with names: correct its file")
    return cfg


def _check_command_line(config: str, doc: str | None) -> None:
    """Refuse settings that are wrong before any work, in all jobs of a multirun.

    Every setting is put as Hydra's `++name=value`: what may be set is for `Checker` to say, not for
    the file that happens to name it.
    """
    args = command_line()
    words = list(args.overrides)
    left = iter(zip(words, _forced(words), strict=True))
    word, forced = next(left, (None, None))
    for i, argument in enumerate(sys.argv[1:], 1):
        if argument == word:
            sys.argv[i] = str(forced)
            word, forced = next(left, (None, None))
    if args.hydra_help or args.info:
        return
    check_launcher(words, args.multirun)
    if flag := next((flag for flag in REFUSED_FLAGS if getattr(args, flag)), None):
        raise ValueError(
            f"leave --{flag.replace('_', '-')} out: --config-dir adds configs of your own"
        )
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise ValueError(f"--config-dir={args.config_dir} is no folder: correct its name")
    if args.config_dir and any(word.startswith("hydra.searchpath=") for word in words):
        raise ValueError("give --config-dir or hydra.searchpath, not both")
    if args.config_dir:
        words.append(f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]")
    for job in _jobs(words) if args.multirun else [words]:
        composed(config, *job, with_hydra=True)
    if args.help:  # with a choice of the user's own configs
        show_help(config, doc, words)
        sys.exit(0)


def _quoted(word: str) -> str:
    """`model.flags=--a 1,2 --b=3` in quotes: it is a command line itself, and Hydra would take its
    commas and equals signs for its own."""
    name, _, value = word.partition("=")
    if name.lstrip("+") != "model.flags" or value == "null" or value[:1] in ("'", '"'):
        return word
    return f"{name}={QuotedString(value, Quote.single).with_quotes()}"


def _forced(overrides: Sequence[str]) -> list[str]:
    """With `++` before all that are values; without + before names of files, and what Hydra checks."""
    return [
        word
        if word.startswith("~")
        else f"{'++' if _may_be_added(key) else ''}{key}={_readable(key, value)}"
        for word, (key, value) in zip(overrides, typed(overrides), strict=True)
    ]


def _readable(key: str, value: str) -> str:
    """The value as Hydra's grammar has it: quoted where it is plain text that it cannot read.

    Raises ValueError for a name or a value that is neither.
    """
    parser = OverridesParser.create()
    if value.startswith("~/"):  # which no shell expands behind an equals sign
        value = str(Path(value).expanduser())
    try:
        parser.parse_override(f"x={value}")
    except HydraException:
        quoted = QuotedString(value, Quote.single).with_quotes()
        if not re.search(r"""[][{}(),'"\\]""", value):
            return quoted
        meant = shlex.quote(f"{key}={quoted}")
        raise ValueError(f"cannot read {key}={value}: write {meant} if it is text") from None
    try:
        parser.parse_override(f"{key}=0")
    except HydraException:
        raise ValueError(
            f"{key!r} is no name of a setting: write NAME=VALUE, as in seed=1"
        ) from None
    return value


def _may_be_added(key: str) -> bool:
    if key.startswith("hydra."):
        return key.startswith(("hydra.callbacks.", "hydra.job.env_set."))
    return not ("/" in key or "@" in key or Path(CONFIGS, key).is_dir())


def _jobs(words: Sequence[str]) -> Iterator[list[str]]:
    """Every value of a multirun's settings at least once, with the first of the others."""
    parsed = OverridesParser.create().parse_overrides(list(words))
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override() and override.is_discrete_sweep()
        else [word]
        for word, override in zip(words, parsed, strict=True)
    ]
    first = [values[0] for values in choices]
    yield first
    for i, values in enumerate(choices):
        yield from ([*first[:i], value, *first[i + 1 :]] for value in values[1:])


def _check_launcher(config: str, composite: DictConfig, words: Sequence[str]) -> None:
    """Refuse what a config from elsewhere says of the launcher: SLURM's shell runs it.

    Not its `setup` alone: a line break in any option of sbatch, or in the folder or name of a job,
    begins another line of that script.
    """
    if not any(key == "hydra.searchpath" for key, _ in typed(words)):
        return
    keys = [word.lstrip("+").partition("=")[0] for word in words]
    own = [w for w, k in zip(words, keys, strict=True) if "hydra" in k and k != "hydra.searchpath"]
    remedy = "give it on the command line, or in configs/site and configs/hydra/launcher here"
    try:
        ours = composed(config, *own, with_hydra=True).hydra
    except HydraException:
        raise ValueError(f"the launcher is from elsewhere than configs/: {remedy}") from None
    for key in ("launcher", "sweep", "run", "job.name"):
        here, there = (_unresolved(OmegaConf.select(c, key)) for c in (ours, composite))
        if here != there:
            raise ValueError(f"a config from elsewhere changes hydra.{key}: {remedy}")


def _unresolved(config: Any) -> Any:
    return OmegaConf.to_container(config) if OmegaConf.is_config(config) else config


def _register() -> None:
    """What configs may say, and the models that need no file: one for every ADM card.

    ${repository:} is its folder, ${downloads_folder:} that of downloads, ${file_name:URL} a URL's
    last part.  ${bf16_or_fp32:DEVICE} is the precision in which a device is fastest, and
    ${fp32_suffix:PRECISION} marks the results of one that is not.
    """
    resolvers: dict[str, Callable[..., str]] = {
        "repository": lambda: str(ROOT),
        "downloads_folder": lambda: str(downloads()),
        "file_name": lambda url: url.rsplit("/", 1)[-1],
        "bf16_or_fp32": lambda device: "bf16" if has_bf16(pick_device(device)) else "fp32",
        "fp32_suffix": lambda precision: "_fp32" if precision == "fp32" else "",
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    # `defaults: [/open/options@_here_]` is an empty `options` that takes any name.
    opened = OmegaConf.create({"options": {}})
    OmegaConf.set_struct(opened.options, False)
    ConfigStore.instance().store(group="open", name="options", node=opened)
    register_models()


def _call_job(main: Callable[[DictConfig], None], cfg: DictConfig) -> None:
    """Call `main` as the command itself, as one of a multirun, or on a node that SLURM chose."""
    _register()
    if "SUBMITIT_EXECUTOR" in os.environ:
        main(cfg)  # submitit brings errors back to the command that waits
    else:
        reported(main, cfg)


class Announce(Callback):
    """Hydra's callback that says what a multirun on SLURM does while nothing seems to happen."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "Slurm" in config.hydra.launcher._target_:
            print(
                f"SLURM jobs, logs in {config.hydra.sweep.dir}; squeue shows them.  Waiting for "
                "all: Ctrl-C ends the waiting, not the jobs",
                flush=True,
            )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if "Slurm" in config.hydra.launcher._target_:
            print("all jobs have ended")


# --- configs as objects -------------------------------------------------------------------------


def plain(config: Any) -> Any:
    """A config node as dicts, lists and scalars, interpolations resolved."""
    if isinstance(config, DictConfig | ListConfig):
        return OmegaConf.to_container(config, resolve=True)
    return config


def with_settings(cfg: DictConfig, **settings: Any) -> DictConfig:
    """The config with other settings of the first level, each as a whole."""
    changed = copy.deepcopy(cfg)
    OmegaConf.set_struct(changed, False)
    for name, value in settings.items():
        changed[name] = value
    return changed


def config_digest(cfg: DictConfig) -> str:
    """Of all settings but the circumstances of the work."""
    settings = {key: value for key, value in plain(cfg).items() if key not in CIRCUMSTANCES}
    if settings.get("samplers", ()) is None:  # as before there was such a setting
        del settings["samplers"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def model_words(cfg: DictConfig) -> list[str]:
    """What samples the same model with sample.py, label by label: words of its command line.

    What was typed of it, with where configs of one's own lie; and what an experiment set besides.
    """
    hydra_cfg, folder = HydraConfig.get(), command_line().config_dir
    words = [word.lstrip("+") for word in [*hydra_cfg.overrides.hydra, *hydra_cfg.overrides.task]]
    kept = [word for word in words if re.split(r"[.=]", word)[0] in OF_MODEL]
    choices = hydra_cfg.runtime.choices
    for group in ("guidance", "model"):
        name = next(v for k, v in choices.items() if k.partition("@")[0] == group)
        if name != "none" and not any(word.startswith(f"{group}=") for word in kept):
            kept.insert(0, f"{group}={name}")
    path = [word for word in words if word.startswith("hydra.searchpath=")]
    if folder:
        path = [f"hydra.searchpath=[file://{Path(folder).absolute()}]"]
    told = composed("sample", *path, *kept)
    for key in OF_MODEL:
        kept += differing(key, plain(cfg[key]), plain(told[key]))
    return [*([f"--config-dir={folder}"] if folder else path), *kept]


def load_backbone(cfg: DictConfig, **more: Any) -> Model:
    """The model of configs/model, steered as configs/guidance says, with the config's prompts.

    `more` goes to the model's loader.  Raises ValueError if the model takes no such guidance,
    prompts or option.
    """
    device, name = pick_device(cfg.device), cfg.model.name
    model = OmegaConf.to_container(cfg.model, resolve=True, throw_on_missing=True)
    options = {**cast(dict[str, Any], model), **more}
    del options["name"]
    loader = callable_at(options.pop("_target_"), cfg.trusted)
    signature = inspect.signature(loader).parameters
    takes = list(signature)
    if device.type == "cpu" and options.get("precision") == "fp16":
        say("half precision is very slow on a CPU: model.precision=fp32 or bf16 is faster")
    elif options.get("precision") == "bf16" and not has_bf16(device):
        say("bf16 is slow on this device: model.precision=fp32 is faster")
    guidance = plain(cfg.guidance)
    if guidance.pop("name") != "none":
        if "guidance" not in takes:
            raise ValueError(f"model {name} has no classifier: use guidance=none")
        options["guidance"] = guidance
    can_do_without = "prompts" in takes and signature["prompts"].default is None
    if "prompts" in takes and not ("prompts" in more or (can_do_without and cfg.prompts is None)):
        options["prompts"] = prompts_of(cfg.prompts)
    elif cfg.prompts is not None and "prompts" not in takes:
        raise ValueError(f"model {name} takes no prompts: use model=sd21 or leave prompts=null")
    check_options(f"model {name}", options, takes)
    backbone = cast("Model", loader(**options, device=device))
    for note in getattr(backbone, "notes", ()):
        say(note)
    return backbone


def takes_option(cfg: DictConfig, option: str) -> bool:
    """Whether the model's loader knows an option."""
    return option in inspect.signature(callable_at(cfg.model["_target_"], cfg.trusted)).parameters


def prompts_of(prompts: str | ListConfig | None) -> list[str]:
    """The prompts of a file, or those of a list itself.  ValueError without any."""
    if prompts is None:
        raise ValueError(
            "a text-to-image model needs prompts: prompts=FILE with one a line, or "
            "prompts='[a cat,a dog]'"
        )
    if isinstance(prompts, str):
        made = next((how for part, how in MAKING.items() if part in Path(prompts).parts), None)
        if made and not Path(prompts).exists():
            raise FileNotFoundError(
                f"no prompts at {prompts}: make them with `{made}`, or give prompts=FILE"
            )
        return read_prompts(Path(prompts))
    if not isinstance(prompts, ListConfig):
        raise ValueError(f"prompts must be a file or a list, got {prompts!r}: prompts='[a cat]'")
    return listed_prompts(plain(prompts))


def settings_of(cfg: DictConfig, backbone: Model, spacing: Any, names: str) -> Settings:
    """What all cells of this config share."""
    return Settings(
        model=plain(cfg.model),
        backbone=backbone,
        spacing=spacing,
        seed=cfg.seed,
        label=cfg.label,
        batch_size=cfg.batch_size,
        shard_size=cfg.shard_size,
        names=names,
        noise=cfg.noise,
    )


def evaluator_of(cfg: DictConfig, scores: Sequence[str] | None = None) -> Evaluator:
    """The protocol of configs/metrics against the set of configs/reference; of its scores all, or some."""
    metrics = plain(cfg.metrics)
    metrics["scores"] = list(scores or metrics["scores"])
    return Evaluator(metrics, reference_source(cfg), pick_device(cfg.device))


def reference_source(cfg: DictConfig) -> ReferenceSource | None:
    """Where the real images of configs/reference come from; None for reference=none."""
    config, trusted = cfg.reference, cfg.trusted
    if config.name == "none":
        return None
    if "file" in config.keys():  # noqa: SIM118
        if OmegaConf.is_missing(config, "file"):
            raise ValueError("reference.file is missing: give the file as reference.file=...")
        return stored_source(config.name, Path(config.file))
    batch = config.get("batch")
    remedy = config.get("remedy") or (
        f"fetch it with `python -m scripts.download {config.name}` or from {config.get('url')}"
    )
    folder = ROOT / config.folder if config.folder else None
    if (batch and _images(config).get("path") != batch) or _has_other(config, "images"):
        folder = None  # other images than those whose features lie there
    floor = config.floor
    if floor and floor.get("path", "given") is None:
        floor = None
    for part in () if batch else filter(None, (_images(config), floor)):
        if OmegaConf.is_missing(part, "path"):
            raise ValueError(MISSING_IMAGES)
        if "path" in set(part) and not Path(part.path).exists():
            raise FileNotFoundError(f"no images at {part.path}: give an .npz file or a folder")
    preprocess = None
    if config.get("preprocess"):
        preprocess = Preprocessing(config.preprocess, config.get("size"))
    elif config.get("size"):
        ways = " or ".join(PREPROCESSING)
        raise ValueError(f"reference.size needs reference.preprocess: {ways}")
    return ReferenceSource(
        name=config.name,
        images=lambda: images_of(_images(config), trusted, preprocess),
        floor=(lambda: images_of(floor, trusted, preprocess)) if floor else None,
        batch=Path(batch) if batch else None,
        remedy=remedy,
        statistics_n=config.get("statistics_n"),
        folder=folder,
        preprocess=preprocess,
        shapes=lambda: [
            _shape_of(part, trusted, preprocess) for part in (_images(config), floor) if part
        ],
        store_floor=bool(config.get("store_floor")) and not _has_other(config, "floor"),
        floor_of=floor_digest(plain(floor)) if floor else None,
    )


def _has_other(config: DictConfig, part: str) -> bool:
    """Whether a reference of configs/ is to have other `images`, or `floor`, than its file says."""
    for path in Path(CONFIGS, "reference").glob("*.yaml"):
        stated = cast(DictConfig, OmegaConf.load(path))
        if "batch" in stated or stated._get_node("folder") != config.folder:
            continue
        if stated.name == config.name:
            return bool(plain(stated[part]) != plain(config[part]))
    return False


def _images(config: DictConfig) -> DictConfig:
    """The real images of a reference; `reference.images=DIR` is a folder or file of them."""
    images = config.images
    if not isinstance(images, str):
        return cast(DictConfig, images)
    return OmegaConf.create({"_target_": "files.images.load_samples", "path": images})


def _shape_of(
    images: DictConfig, trusted: Sequence[str], preprocess: Preprocessing | None
) -> tuple[int, ...]:
    """(N, H, W, C) of the images that a part of configs/reference describes, of files by their beginnings."""
    if images._target_ != f"{load_samples.__module__}.{load_samples.__name__}":
        return images_of(images, trusted, preprocess).images.shape
    if OmegaConf.is_missing(images, "path"):
        raise ValueError(MISSING_IMAGES)
    return image_shape(images.path, preprocess.image if preprocess else None)


def function_of(config: DictConfig, trusted: Sequence[str]) -> Callable[..., Any]:
    """The function that a part of a config describes: its `_target_`, with the rest as arguments."""
    stated = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    arguments = cast(dict[str, Any], stated)
    return functools.partial(callable_at(arguments.pop("_target_"), trusted), **arguments)


def images_of(
    config: DictConfig, trusted: Sequence[str], preprocess: Preprocessing | None = None
) -> Samples:
    """The images that a part of configs/reference describes, with their labels if they have any.

    Those of a folder may have several sizes if there is a preprocessing.
    """
    more = {"prepare": preprocess.image} if preprocess and "path" in config else {}
    return Samples(*function_of(config, trusted)(**more))


def tracker_of(cfg: DictConfig, group: str) -> Tracker:
    """The tracker of configs/logger; runs without a group of their own are in `group`.

    Raises ValueError for an unknown logger or mode.
    """
    options: dict[str, Any] = plain(cfg.logger)
    name = options.pop("name")
    check_choice("logger", name, LOGGERS)
    if name == "none":
        return Tracker()
    if options["mode"] not in WandbTracker.MODES:
        modes = ", ".join(WandbTracker.MODES)
        raise ValueError(f"unknown logger.mode {options['mode']!r}: choose {modes}")
    if options["mode"] == "disabled":
        return Tracker()
    try:
        return WandbTracker(**{**options, "group": options["group"] or group})
    except ImportError:
        raise ValueError("logger=wandb needs the package wandb: pip install wandb") from None


# --- what stands in configs/ --------------------------------------------------------------------
