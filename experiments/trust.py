"""What a config may not say: whose code is run is for the user alone, on the command line or in configs/.

Each of these raises ValueError, with the remedy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.choices import CONFIGS
from experiments.settings import MISSING, callable_at, factories, typed
from sampling.options import check_types

ANNOUNCE = "experiments.config.Announce"  # the one callback of ours


def check_trust(trusted: Any, overrides: Sequence[str]) -> None:
    """Whom to trust is for the user to say: on the command line, or in configs/common.yaml."""
    ours = yaml.safe_load(Path(CONFIGS, "common.yaml").read_text(encoding="utf-8"))["trusted"]
    by_user = any(key.startswith("trusted") for key, _ in typed(overrides))
    if trusted != ours and not by_user:
        raise ValueError(
            f"a config sets trusted={trusted}, which only the command line and configs/common.yaml "
            "may: remove it there"
        )


def check_load(settings: dict[str, Any], overrides: Sequence[str]) -> None:
    """Whose functions are called, as a model's loader or an extractor, is for the user to say, too."""
    for key in ("model.load", "metrics.extractor"):
        group, name = key.split(".")
        load = (settings.get(group) or {}).get(name)
        is_function = load not in (None, MISSING) and (group == "model" or ":" in str(load))
        if not is_function or any(word == key for word, _ in typed(overrides)):
            continue
        package = str(load).partition(":")[0].partition(".")[0]
        if package not in settings["trusted"]:
            raise ValueError(
                f"a config names the function {load}: give {key}={load} on the command line, or "
                f"trusted=[{package}]"
            )


def check_hydra(config: Mapping[str, Any], trusted: Sequence[str], words: Sequence[str]) -> None:
    """Refuse code that a config smuggles into Hydra's own part, which runs it.

    Launchers and sweepers are Hydra's plugins, and nothing else can stand there.
    """
    check_types("hydra.", {"verbose": config["verbose"]}, {"verbose": bool | str | list[str]})
    for callback in config["callbacks"].values():
        if callback["_target_"] != ANNOUNCE:
            callable_at(callback["_target_"], trusted)
    for logging in (config["job_logging"], config["hydra_logging"]):
        for factory in factories(logging):
            callable_at(factory, ["logging", "colorlog", *trusted])
    for part, name in ((config["job"], "env_set"), (config["sweeper"], "params")):
        if part.get(name) and not any(f".{name}" in word for word in words):
            raise ValueError(f"a config sets hydra's {name}, {part[name]}: remove it there")
