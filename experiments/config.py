"""Configs and command lines: what Hydra composes, as the objects that everything else takes.

All of Hydra is here, but for what its errors say (endings.py).
"""

import argparse
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
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from eval.evaluation import ReferenceSource, floor_digest
from eval.preprocessing import PREPROCESSING, Preprocessing
from experiments.cells import Model, Settings
from experiments.devices import pick_device
from experiments.endings import reported, terminated
from experiments.evaluate import Evaluator
from experiments.settings import (
    LOGGERS,
    MISSING,
    Checker,
    callable_at,
    check_launcher,
    check_words,
    factories,
    typed,
)
from experiments.tracking import Tracker, WandbTracker
from files.images import Samples
from files.places import ROOT, downloads
from files.prompts import listed_prompts, read_prompts
from models.adm.cards import Card, card_names, read_card
from models.weights import has_bf16
from sampling.options import check_choice, check_options, check_types

CONFIGS = str(ROOT / "configs")
Config = DictConfig  # what Hydra composes, for those that only read it
# Settings that say who does the work, where, and how it is watched: they change no result.
CIRCUMSTANCES = (
    *("stage", "only", "part", "parts", "logger", "device", "batch_size", "out"),
    *("trusted", "hydra"),
)
# Prompts of the experiments, by the folder of downloads that has them, and what makes them.
MAKING = {"coco": "make coco", "vbench": "python -m scripts.vbench prompts"}
# Other configs than those that are checked; the last one even unpickles.
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
    sys.argv[1:] = map(_quoted, sys.argv[1:])
    reported(_check_command_line, config)
    wrapped = functools.wraps(main)(lambda cfg: _call_job(main, cfg))
    reported(hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config)(wrapped))


def composed(config: str, *overrides: str, with_hydra: bool = False) -> DictConfig:
    """configs/<config>.yaml with overrides, for scripts; with Hydra's own part if wanted.

    Raises ValueError for a setting that is unknown or of another type, Hydra's errors for what cannot
    be composed.
    """
    _register()
    GlobalHydra.instance().clear()
    overrides = tuple(map(_quoted, overrides))
    check_words(config, typed(overrides))
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        try:
            cfg = hydra.compose(config, _forced(overrides), return_hydra_config=with_hydra)
        except RecursionError:
            raise ValueError(
                "configs name each other in a circle: look at their defaults"
            ) from None
        groups = GlobalHydra.instance().config_loader().get_group_options
        own = [str(key) for key in cfg if key != "hydra"]
        settings = cast(dict[str, Any], plain(OmegaConf.masked_copy(cfg, own)))
        _check_trust(settings["trusted"], overrides)
        _check_load(settings.get("model"), settings["trusted"], overrides)
        Checker(config, settings, typed(overrides), groups).check()
        return cfg


def _check_command_line(config: str) -> None:
    """Refuse settings that are wrong before any work, in all jobs of a multirun.

    Every setting is put as Hydra's `++name=value`: what may be set is for `Checker` to say, not for
    the file that happens to name it.
    """
    flags = get_args_parser()
    flags.error = _refuse_flag  # type: ignore[assignment]
    args = flags.parse_args()
    words = list(args.overrides)
    left = iter(zip(words, _forced(words), strict=True))
    word, forced = next(left, (None, None))
    for i, argument in enumerate(sys.argv[1:], 1):
        if argument == word:
            sys.argv[i] = str(forced)
            word, forced = next(left, (None, None))
    if args.help or args.hydra_help or args.info or args.shell_completion:
        return
    check_launcher(words, args.multirun)
    if flag := next((flag for flag in REFUSED_FLAGS if getattr(args, flag)), None):
        raise ValueError(
            f"leave --{flag.replace('_', '-')} out: --config-dir adds configs of your own"
        )
    if args.config_dir and any(word.startswith("hydra.searchpath=") for word in words):
        raise ValueError("give --config-dir or hydra.searchpath, not both")
    if args.config_dir:
        words.append(f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]")
    for job in _jobs(words) if args.multirun else [words]:
        cfg = composed(config, *job, with_hydra=True)
        _check_hydra(cfg.hydra, cfg.trusted, job)


def _quoted(word: str) -> str:
    """`model.flags=--a 1,2 --b=3` in quotes: it is a command line itself, and Hydra would take its
    commas and equals signs for its own."""
    name, _, value = word.partition("=")
    if name.lstrip("+") != "model.flags" or value == "null" or value[:1] in ("'", '"'):
        return word
    return f"{name}={QuotedString(value, Quote.single).with_quotes()}"


def _refuse_flag(message: str) -> None:
    raise ValueError(f"{message}: settings are NAME=VALUE, --help lists the flags")


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


def _check_trust(trusted: Any, overrides: Sequence[str]) -> None:
    """Whom to trust is for the user to say: on the command line, or in configs/common.yaml."""
    ours = yaml.safe_load(Path(CONFIGS, "common.yaml").read_text(encoding="utf-8"))["trusted"]
    by_user = any(key.startswith("trusted") for key, _ in typed(overrides))
    if trusted != ours and not by_user:
        raise ValueError(
            f"a config sets trusted={trusted}, which only the command line and configs/common.yaml "
            "may: remove it there"
        )


def _check_load(model: Any, trusted: Sequence[str], overrides: Sequence[str]) -> None:
    """Whose function `model=function` calls is for the user to say, as whom to trust."""
    load = model.get("load") if isinstance(model, dict) else None
    if load in (None, MISSING) or any(key == "model.load" for key, _ in typed(overrides)):
        return
    if (package := str(load).partition(":")[0].partition(".")[0]) not in trusted:
        raise ValueError(
            f"a config names the function {load}: give model.load={load} on the command line, or "
            f"trusted=[{package}]"
        )


def _check_hydra(config: DictConfig, trusted: Sequence[str], words: Sequence[str]) -> None:
    """Refuse code that a config smuggles into Hydra's own part, which runs it.

    Launchers and sweepers are Hydra's plugins, and nothing else can stand there.
    """
    check_types("hydra.", {"verbose": plain(config.verbose)}, {"verbose": bool | str | list[str]})
    announce = f"{Announce.__module__}.{Announce.__name__}"
    for callback in plain(config.callbacks).values():
        if callback["_target_"] != announce:
            callable_at(callback["_target_"], trusted)
    for logging in (config.job_logging, config.hydra_logging):
        for factory in factories(plain(logging)):
            callable_at(factory, ["logging", "colorlog", *trusted])
    for part, name in ((config.job, "env_set"), (config.sweeper, "params")):
        if part.get(name) and not any(f".{name}" in word for word in words):
            raise ValueError(f"a config sets hydra's {name}, {part[name]}: remove it there")


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
    for card in _adm_models():
        node = {
            "defaults": [
                "adm",
                {"override /reference@_global_.reference": card.reference},
                "_self_",
            ],
            "name": card.name,
            "card": card.name,
            "checkpoint": "${downloads}/" + card.file_name,
            "precision": card.precision,
        }
        ConfigStore.instance().store(group="model", name=card.name, node=node)


def _adm_models() -> list[Card]:
    return [card for card in map(read_card, card_names()) if card.kind == "unet"]


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


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a script whose docstring is its help."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


# --- configs as objects -------------------------------------------------------------------------


def plain(config: Any) -> Any:
    """A config node as dicts, lists and scalars, interpolations resolved."""
    if isinstance(config, DictConfig | ListConfig):
        return OmegaConf.to_container(config, resolve=True)
    return config


def config_digest(cfg: DictConfig) -> str:
    """Of all settings but the circumstances of the work."""
    settings = {key: value for key, value in plain(cfg).items() if key not in CIRCUMSTANCES}
    if settings.get("samplers", ()) is None:  # as before there was such a setting
        del settings["samplers"]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


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
        print("half precision is very slow on a CPU: model.precision=fp32 or bf16 is faster")
    elif options.get("precision") == "bf16" and not has_bf16(device):
        print("bf16 is slow on this device: model.precision=fp32 is faster")
    guidance = plain(cfg.guidance)
    if guidance.pop("name") != "none":
        if "guidance" not in takes:
            raise ValueError(f"model {name} has no classifier: use guidance=none")
        options["guidance"] = guidance
    can_do_without = "prompts" in takes and signature["prompts"].default is None
    if "prompts" in takes and not (can_do_without and cfg.prompts is None):
        options["prompts"] = prompts_of(cfg.prompts)
    elif cfg.prompts is not None and "prompts" not in takes:
        raise ValueError(f"model {name} takes no prompts: use model=sd21 or leave prompts=null")
    check_options(f"model {name}", options, takes)
    return cast("Model", loader(**options, device=device))


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


def evaluator_of(cfg: DictConfig) -> Evaluator:
    """The protocol of configs/metrics against the set of configs/reference."""
    return Evaluator(plain(cfg.metrics), reference_source(cfg), pick_device(cfg.device))


def reference_source(cfg: DictConfig) -> ReferenceSource | None:
    """Where the real images of configs/reference come from; None for reference=none."""
    config, trusted = cfg.reference, cfg.trusted
    if config.name == "none":
        return None
    batch = config.get("batch")
    remedy = config.get("remedy") or (
        f"fetch it with `python -m scripts.download {config.name}` or from {config.get('url')}"
    )
    folder = ROOT / config.folder if config.folder else None
    if batch and _images(config).get("path") != batch:
        folder = None  # other images than the batch's: their features stand for no file
    floor = config.floor
    if floor and floor.get("path", "given") is None:
        floor = None
    preprocess = None
    if config.get("preprocess"):
        preprocess = Preprocessing(config.preprocess, config.size)
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
        store_floor=bool(config.get("store_floor")),
        floor_of=floor_digest(plain(floor)) if floor else None,
    )


def _images(config: DictConfig) -> DictConfig:
    """The real images of a reference; `reference.images=DIR` is a folder or file of them."""
    images = config.images
    if not isinstance(images, str):
        return cast(DictConfig, images)
    return OmegaConf.create({"_target_": "files.images.load_samples", "path": images})


def function_of(config: DictConfig, trusted: Sequence[str]) -> Callable[..., Any]:
    """The function that a part of a config describes: its `_target_`, with the rest as arguments."""
    arguments = cast(dict[str, Any], plain(config))
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


def options_of(group: str) -> list[str]:
    """The names of configs/<group>, those of ADM's cards among the models."""
    names = {path.stem for path in Path(CONFIGS, group).glob("*.yaml")}
    if group == "model":
        names |= {card.name for card in _adm_models()}
    return sorted(names)
