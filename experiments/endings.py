"""How a command ends: errors that a user can mend are one line, with a remedy, and status 2."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hydra.conf import HydraConf
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from eval import endings
from sampling.options import closest

GROUP = "Config group override must be"  # Hydra's ValueError for a group that is null


def terminated(number: int, frame: object) -> None:
    """A handler of signals: unlike the default, it lets what is half-written be removed."""
    raise SystemExit(128 + number)


def reported(function: Callable[..., None], *args: Any) -> None:
    """Call, and turn the errors that a user can mend into one line."""
    endings.reported(
        lambda: function(*args),
        endings.Ending(
            interrupted="finished shards are kept; run the same command to continue",
            less="lower batch_size",
            place="out=DIR",
            mendable=_mendable,
            words=_one_line,
        ),
    )


def _mendable() -> tuple[type[Exception], ...]:
    """Errors that a user can mend; also those of a launcher whose SLURM job failed."""
    errors = (HydraException, OmegaConfBaseException, ValueError, OSError)
    if "submitit" not in sys.modules:
        return errors
    from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

    return (*errors, FailedJobError, FailedSubmissionError, UncompletedJobError)


def _one_line(error: BaseException) -> str:
    if isinstance(error, MissingMandatoryValue):
        name = str(error.full_key or str(error).rsplit(" ", 1)[-1])
        return f"{name} is missing: give {name}=..."
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").partition("/")
        guess = closest(name, error.options)
        more = f"; did you mean {group}={guess}?" if guess else ""
        return f"no {group} {name!r}: choose one of {', '.join(sorted(error.options))}{more}"
    text = endings.one_line(error)
    if isinstance(error, HydraException | OmegaConfBaseException) or text.startswith(GROUP):
        return _mended(text)
    return text


def _mended(text: str) -> str:
    """What Hydra says, without advice that does not help here."""
    if found := re.match(r"Ambiguous value for argument '\+*([^=]*)=(.*?)' 1\.", text):
        name, value = found.groups()
        return (
            f"{name} has several values: write {name}=[{value}] for a list, \"{name}='{value}'\" for one "
            "text, or add -m to run one after the other"
        )
    if found := re.match(r"Could not override '(hydra\.[^']*)'", text):
        level, _, name = found[1].rpartition(".")
        known = None
        with suppress(
            AttributeError, OmegaConfBaseException
        ):  # where Hydra has a value, not a level
            known = OmegaConf.select(OmegaConf.create({"hydra": HydraConf}), level)
        guess = closest(name, known) if isinstance(known, DictConfig) else None
        more = f"did you mean {level}.{guess}?" if guess else "--hydra-help tells where they are"
        return f"Hydra has no setting {found[1]}: {more}"
    if "Could not delete from config" in text:
        return f"{text.rstrip('.')}: leave that ~ out"
    if found := re.match(r"Could not override '([^']*)'", text):
        return f"there is no group {found[1]}: leave it out"
    if found := re.match(r"Error merging override \+*([^=]*)=(.*)", text):
        return f"{found[1]} cannot be {found[2]}: leave it out, or set what is in it"
    if found := re.match(r"In '([^']*)': Could not load '([^']*)'", text):
        return f"{found[1]} names {found[2]}, which is not there: correct its defaults"
    if text.startswith(GROUP):
        return "a group of configs is set to what is no name: write GROUP=NAME, as in model=digits"
    missing = re.match(r"Interpolation key '([^']*)' not found", text)
    more = f", or give {missing[1]}" if missing else ""
    text, _, key = text.partition(" full_key: ")
    return f"{key.split()[0]}: {text}; correct it{more}" if key else text
