"""Configs and command lines: what Hydra composes, as the objects that everything else takes.

All of Hydra is here, and the rule by which errors end a command.
"""

import argparse
import codecs
import errno
import functools
import hashlib
import inspect
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import hydra
import torch
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eval.preprocessing import PREPROCESSING, Preprocessing
from experiments.cells import Settings
from experiments.devices import pick_device
from experiments.evaluate import Evaluator, ReferenceSource
from experiments.tracking import Tracker, WandbTracker
from files.images import Samples
from files.places import ROOT, downloads
from files.prompts import listed_prompts, read_prompts
from files.whole import printable
from models.adm.cards import Card, card_names, read_card
from models.backbone import Backbone
from models.weights import has_bf16
from sampling.options import check_options

CONFIGS = str(ROOT / "configs")
Config = DictConfig  # what Hydra composes, for those that only read it
# Settings that say who does the work, where, and how it is watched: they change no result.
CIRCUMSTANCES = ("stage", "only", "part", "parts", "logger", "device", "batch_size", "out", "hydra")


# --- command lines ------------------------------------------------------------------------------


def run_command(main: Callable[[DictConfig], None], config: str) -> None:
    """Compose configs/<config>.yaml with the command line's overrides and call `main`.

    What a user can mend ends in one line that starts with `error:` and exit status 2;
    set TRACEBACK=1 for where it came from.  Ctrl-C exits with 130, SIGTERM with 143.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of exiting
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    _register()
    wrapped = functools.wraps(main)(lambda cfg: _call_job(main, cfg))
    reported(hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config)(wrapped))


def composed(config: str, *overrides: str, with_hydra: bool = False) -> DictConfig:
    """configs/<config>.yaml with overrides, for scripts; with Hydra's own part if wanted."""
    _register()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        return hydra.compose(config, list(overrides), return_hydra_config=with_hydra)


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


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unlike the default, this removes what is half-written


def reported(function: Callable[..., None], *args: Any) -> None:
    """Call, and turn the errors that a user can mend into one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # where ± cannot be written, a substitute is
            encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else None
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    try:
        function(*args)
    except KeyboardInterrupt:
        sys.stderr.write(
            "\ninterrupted: finished shards are kept; run the same command to continue\n"
        )
        sys.exit(130)
    except torch.OutOfMemoryError as error:
        sys.exit(
            _failure(
                f"out of memory ({_one_line(error)}): lower batch_size, or use a device with more "
                "memory"
            )
        )
    except Exception as error:
        if os.environ.get("TRACEBACK") or not isinstance(error, _mendable()):
            raise
        sys.exit(_failure(_one_line(error)))


def _failure(text: str) -> int:
    print(f"error: {text}", file=sys.stderr)
    return 2


def _mendable() -> tuple[type[Exception], ...]:
    """Errors that a user can mend; also those of a launcher whose SLURM job failed."""
    errors = (HydraException, OmegaConfBaseException, ValueError, OSError)
    if "submitit" not in sys.modules:
        return errors
    from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

    return (*errors, FailedJobError, FailedSubmissionError, UncompletedJobError)


def _one_line(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and error.__cause__:
        error = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").partition("/")
        return f"no {group} {name!r}: choose one of {', '.join(sorted(error.options))}"
    text = printable(" ".join(str(error).split()))
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        text += "; free some space and run the same command to continue"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        text += "; choose another out=DIR that you may write to"
    elif code in (errno.EEXIST, errno.ENOTDIR):
        text += "; a file is where a folder should be, choose another out=DIR"
    return text


# --- configs as objects -------------------------------------------------------------------------


def plain(config: Any) -> Any:
    """A config node as dicts, lists and scalars, interpolations resolved."""
    if isinstance(config, DictConfig | ListConfig):
        return OmegaConf.to_container(config, resolve=True)
    return config


def config_digest(cfg: DictConfig) -> str:
    """Of all settings but the circumstances of the work."""
    settings = {key: value for key, value in plain(cfg).items() if key not in CIRCUMSTANCES}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def load_backbone(cfg: DictConfig, **more: Any) -> Backbone:
    """The model of configs/model, steered as configs/guidance says, with the config's prompts.

    `more` goes to the model's loader.  Raises ValueError if the model takes no such guidance,
    prompts or option.
    """
    device, name = pick_device(cfg.device), cfg.model.name
    model = OmegaConf.to_container(cfg.model, resolve=True, throw_on_missing=True)
    options = {**cast(dict[str, Any], model), **more}
    del options["name"]
    loader = hydra.utils.get_method(options.pop("_target_"))
    takes = list(inspect.signature(loader).parameters)
    if device.type == "cpu" and options.get("precision") == "fp16":
        print("half precision is very slow on a CPU: model.precision=fp32 or bf16 is faster")
    elif options.get("precision") == "bf16" and not has_bf16(device):
        print("bf16 is slow on this device: model.precision=fp32 is faster")
    guidance = plain(cfg.guidance)
    if guidance.pop("name") != "none":
        if "guidance" not in takes:
            raise ValueError(f"model {name} has no classifier: use guidance=none")
        options["guidance"] = guidance
    if "prompts" in takes:
        options["prompts"] = prompts_of(cfg.prompts)
    elif cfg.prompts is not None:
        raise ValueError(f"model {name} takes no prompts: use model=sd21 or leave prompts=null")
    check_options(f"model {name}", options, takes)
    return cast(Backbone, loader(**options, device=device))


def takes_option(model: DictConfig, option: str) -> bool:
    """Whether the model's loader knows an option."""
    return option in inspect.signature(hydra.utils.get_method(model["_target_"])).parameters


def prompts_of(prompts: str | ListConfig | None) -> list[str]:
    """The prompts of a file, or those of a list itself.  ValueError without any."""
    if prompts is None:
        raise ValueError(
            "a text-to-image model needs prompts: prompts=FILE with one a line, or "
            "prompts='[a cat,a dog]'"
        )
    if isinstance(prompts, str):
        return read_prompts(Path(prompts))
    if not isinstance(prompts, ListConfig):
        raise ValueError(f"prompts must be a file or a list, got {prompts!r}: prompts='[a cat]'")
    return listed_prompts(plain(prompts))


def settings_of(cfg: DictConfig, backbone: Backbone, spacing: Any, names: str) -> Settings:
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
    return Evaluator(plain(cfg.metrics), reference_source(cfg.reference), pick_device(cfg.device))


def reference_source(config: DictConfig) -> ReferenceSource | None:
    """Where the real images of configs/reference come from; None for reference=none."""
    if config.name == "none":
        return None
    batch = config.get("batch")
    remedy = config.get("remedy") or (
        f"fetch it with `python -m scripts.download {config.name}` or from {config.get('url')}"
    )
    folder = config.folder and ROOT / config.folder
    if batch and config.images.get("path") != batch:
        folder = None  # other images than the batch's: their features stand for no file
    # That of one's own images is given by its path.
    has_floor = bool(config.floor) and config.floor.get("path", "given") is not None
    preprocess = None
    if config.get("preprocess"):
        preprocess = Preprocessing(config.preprocess, config.size)
    elif config.get("size"):
        ways = " or ".join(PREPROCESSING)
        raise ValueError(f"reference.size needs reference.preprocess: {ways}")
    return ReferenceSource(
        name=config.name,
        images=lambda: images_of(config.images, preprocess),
        floor=(lambda: images_of(config.floor, preprocess)) if has_floor else None,
        batch=Path(batch) if batch else None,
        remedy=remedy,
        statistics_n=config.get("statistics_n"),
        folder=folder,
        preprocess=preprocess,
        store_floor=bool(config.get("store_floor")),
    )


def function_of(config: DictConfig) -> Callable[..., Any]:
    """The function that a part of a config describes: its `_target_`, with the rest as arguments."""
    return cast(Callable[..., Any], hydra.utils.instantiate(config, _partial_=True))


def images_of(config: DictConfig, preprocess: Preprocessing | None = None) -> Samples:
    """The images that a part of configs/reference describes, with their labels if they have any.

    Those of a folder may have several sizes if there is a preprocessing.
    """
    more = {"prepare": preprocess.image} if preprocess and "path" in config else {}
    return Samples(*hydra.utils.instantiate(config, **more))


def tracker_of(cfg: DictConfig, group: str) -> Tracker:
    """The tracker of configs/logger; runs without a group of their own are in `group`.

    Raises ValueError for an unknown logger or mode.
    """
    options: dict[str, Any] = plain(cfg.logger)
    name = options.pop("name")
    if name not in ("none", "wandb"):
        raise ValueError(f"unknown logger {name!r}: choose none or wandb")
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


def reference_with(batch: str) -> str | None:
    """The reference under configs/reference that a published sample batch belongs to, or None."""
    for path in sorted(Path(CONFIGS, "reference").glob("*.yaml")):
        if batch in (yaml.safe_load(path.read_text(encoding="utf-8")).get("published") or {}):
            return path.stem
    return None


def changed_option(options: DictConfig, protocol: str, names: Sequence[str]) -> str | None:
    """The first of the options that is not as configs/metrics/<protocol>.yaml states it."""
    stated = yaml.safe_load(
        Path(CONFIGS, "metrics", f"{protocol}.yaml").read_text(encoding="utf-8")
    )["options"]
    return next((name for name in names if options.get(name) != stated[name]), None)
