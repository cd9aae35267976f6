"""What a command answers at once, before torch is imported: --help, and a shell that completes a line."""

import os
import sys
from argparse import Namespace

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore

from experiments.choices import CONFIGS, adm_models
from experiments.help import show_help, unknown_choices


def answer(command: str, doc: str | None) -> None:
    """Answer and end, if this is a question that needs no more than configs/; else return.

    A name that is not in configs/ and flags that are wrong are left to `run_command`, which says so.
    """
    try:
        args = command_line()
    except ValueError:
        return
    if args.shell_completion:
        complete(command)
    elif args.help and not unknown_choices(command, args.overrides):
        show_help(command, doc, args.overrides)
    else:
        return
    sys.exit(0)


def command_line() -> Namespace:
    """The flags and settings that were typed.  Raises ValueError for flags that Hydra does not have."""
    flags = get_args_parser()
    flags.error = _refuse_flag  # type: ignore[assignment]
    return flags.parse_args()


def _refuse_flag(message: str) -> None:
    raise ValueError(f"{message}: settings are NAME=VALUE, after all flags; --help lists these")


def complete(command: str) -> None:
    """Hydra's `--shell-completion`, of a command that does nothing else."""
    register_models()
    os.environ["HYDRA_FULL_ERROR"] = "0"
    main = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)
    main(lambda config: None)()


def register_models() -> None:
    """Tell Hydra of the models that need no file, those of ADM's cards."""
    for name, node in adm_models().items():
        ConfigStore.instance().store(group="model", name=name, node=node)
