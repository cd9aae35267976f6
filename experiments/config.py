"""Configs, command lines and errors: all of Hydra is here."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.workers import local_rank
from files.places import ROOT, downloads
from files.prompts import read_prompts
from models.backbone import Backbone

CONFIGS = str(ROOT / "configs")


def run_command(main: Callable[[DictConfig], None], config: str) -> None:
    """Compose configs/<config>.yaml with the command line's overrides and call `main`.

    What a user can mend ends in one line that starts with `error:` and exit status 2;
    set TRACEBACK=1 for where it came from.  Ctrl-C exits with 130, SIGTERM with 143.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of exiting
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    register_resolvers()
    wrapped = functools.wraps(main)(lambda cfg: call_job(main, cfg))
    reported(hydra.main(version_base="1.3", config_path=CONFIGS, config_name=config)(wrapped))


def composed(config: str, *overrides: str, with_hydra: bool = False) -> DictConfig:
    """configs/<config>.yaml with overrides, for scripts; with Hydra's own part if wanted."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(CONFIGS, version_base="1.3"):
        return hydra.compose(config, list(overrides), return_hydra_config=with_hydra)


def experiment_of(cfg: DictConfig) -> dict[str, Any]:
    """The experiment of reproduce.py, with `steps` and `num_samples` where they are given."""
    experiment: dict[str, Any] = plain(cfg.experiment)
    if cfg.steps is not None:
        experiment["steps"] = [cfg.steps] if isinstance(cfg.steps, int) else plain(cfg.steps)
    if cfg.num_samples is not None:
        experiment["num_samples"] = plain(cfg.num_samples)
    return experiment


def call_job(main: Callable[[DictConfig], None], cfg: DictConfig) -> None:
    """Call `main` as the command itself, as one of a multirun, or on a node that SLURM chose."""
    register_resolvers()
    if "SUBMITIT_EXECUTOR" in os.environ:
        main(cfg)  # submitit brings errors back to the command that waits
    else:
        reported(main, cfg)


class Announce(Callback):
    """Hydra's callback that says what a multirun on SLURM does while nothing seems to happen."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "Slurm" in config.hydra.launcher._target_:
            print(f"SLURM jobs, logs in {config.hydra.sweep.dir}; squeue shows them.  Waiting for all: "
                  "Ctrl-C ends the waiting, not the jobs", flush=True)  # fmt: skip

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if "Slurm" in config.hydra.launcher._target_:
            print("all jobs have ended")


def _terminated(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # unlike the default, this removes what is half-written


def register_resolvers() -> None:
    """What configs may say: ${repository:} is its folder, ${file_name:URL} a URL's last part."""
    OmegaConf.register_new_resolver("repository", lambda: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("downloads_folder", lambda: str(downloads()), replace=True)
    OmegaConf.register_new_resolver("file_name", lambda url: url.rsplit("/", 1)[-1], replace=True)


def reported(function: Callable[..., None], *args: Any) -> None:
    """Call, and turn the errors that a user can mend into one line."""
    try:
        function(*args)
    except KeyboardInterrupt:
        print("\ninterrupted: finished shards are kept; run the same command to continue",
              file=sys.stderr)  # fmt: skip
        sys.exit(130)
    except torch.OutOfMemoryError as error:
        print(f"error: out of memory ({_one_line(error)}): lower batch_size, or use a device with "
              "more memory", file=sys.stderr)  # fmt: skip
        sys.exit(2)
    except Exception as error:
        if os.environ.get("TRACEBACK") or not isinstance(error, _mendable()):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


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
    text = " ".join(str(error).split())
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        text += "; free some space and run the same command to continue"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        text += "; choose another out=DIR that you may write to"
    elif code in (errno.EEXIST, errno.ENOTDIR):
        text += "; a file is where a folder should be, choose another out=DIR"
    return text


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this process (its local rank) if there is one, else the CPU.

    Also switches TF32 off, which by default rounds a GPU's float32 convolutions to 10 bits of
    mantissa: networks and Inception would then differ from the numbers they are checked against.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError):
            raise ValueError(f"device={name} is not available here: use auto or cpu") from None
    if torch.cuda.is_available():
        # Where SLURM gives each process its own GPU, that is the only one it sees.
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("cpu")


def load_backbone(
    config: DictConfig,
    device: torch.device,
    guidance: DictConfig | None = None,
    prompts: str | ListConfig | None = None,
    **more: Any,
) -> Backbone:
    """The model that configs/model/<name>.yaml describes, steered as configs/guidance/ says.

    `prompts` are those of a text-to-image model, as `read_prompts_setting` takes them.  `more`
    goes to the model's loader.  Raises ValueError if the model takes no such guidance or prompts.
    """
    stated = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    options = {**cast(dict[str, Any], stated), **more}
    loader = hydra.utils.get_method(options.pop("_target_"))
    known = inspect.signature(loader).parameters
    options.pop("name")
    if device.type == "cpu" and options.get("precision") == "fp16":
        print("half precision is very slow on a CPU: model.precision=fp32 or bf16 is faster")
    steering = plain(guidance) or {"name": "none"}
    if steering.pop("name") != "none":
        if "guidance" not in known:
            raise ValueError(f"model {config.name} has no classifier: use guidance=none")
        options["guidance"] = steering
    if "prompts" in known:
        options["prompts"] = read_prompts_setting(prompts)
    elif prompts is not None:
        raise ValueError(
            f"model {config.name} takes no prompts: use model=sd21 or leave prompts=null"
        )
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"model {config.name} has no option {', '.join(unknown)}")
    return cast(Backbone, loader(**options, device=device))


def takes_option(model: DictConfig, option: str) -> bool:
    """Whether the model's loader knows an option."""
    return option in inspect.signature(hydra.utils.get_method(model["_target_"])).parameters


def read_prompts_setting(prompts: str | ListConfig | None) -> list[str]:
    """The prompts of a file, or those of a list itself.  ValueError without any."""
    if prompts is None:
        raise ValueError(
            "a text-to-image model needs prompts: prompts=FILE with one a line, or "
            "prompts='[a cat,a dog]'"
        )
    return read_prompts(Path(prompts)) if isinstance(prompts, str) else [str(p) for p in prompts]


def plain(config: Any) -> Any:
    """A config node as dicts, lists and scalars, interpolations resolved."""
    if isinstance(config, DictConfig | ListConfig):
        return OmegaConf.to_container(config, resolve=True)
    return config
