"""How a command ends: errors that a user can mend are one line, with a remedy, and status 2."""

import codecs
import errno
import io
import locale
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hydra.conf import HydraConf
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from files.whole import printable
from models.memory import ran_out
from sampling.options import closest

# What helps where the system refuses a file.
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EFBIG, errno.EDQUOT),
        "free some space and run the same command to continue",
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "choose another out=DIR that you may write to"
    ),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR),
        "a file is where a folder should be, choose another out=DIR",
    ),
    errno.EISDIR: "a folder is where a file should be, move it away or name another",
    errno.ENOENT: "that path is not there, correct it",
    errno.ENAMETOOLONG: "choose a shorter out=",
    errno.ELOOP: "that link leads to itself, remove it",
    errno.EPIPE: "who read the output has ended, let it go into a file",
    errno.EMFILE: "raise the limit, `ulimit -n 4096`, and run the same command to continue",
}
GROUP = "Config group override must be"  # Hydra's ValueError for a group that is null


def terminated(number: int, frame: object) -> None:
    """A handler of signals: unlike the default, it lets what is half-written be removed."""
    raise SystemExit(128 + number)


def reported(function: Callable[..., None], *args: Any) -> None:
    """Call, and turn the errors that a user can mend into one line."""
    if sys.stderr is None:  # closed by whoever started this: what is said is lost, not the work
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    _speak_utf8()
    try:
        function(*args)
    except KeyboardInterrupt:
        sys.stderr.write(
            "\ninterrupted: finished shards are kept; run the same command to continue\n"
        )
        sys.exit(130)
    except Exception as error:
        if isinstance(error.__context__, SystemExit):  # a signal that came while a lock was held
            raise error.__context__ from None
        if os.environ.get("TRACEBACK"):
            raise
        if isinstance(error, _mendable()):
            sys.exit(_failure(_one_line(error)))
        if not ran_out(error):
            raise
        sys.exit(
            _failure(
                f"out of memory ({_one_line(error)}): lower batch_size, or use a device with more "
                "memory"
            )
        )


def _speak_utf8() -> None:
    """Names and messages are UTF-8 whatever the locale says.

    Where that has another encoding, the command starts again in Python's UTF-8 mode, which is for all
    that it reads and names, too.
    """
    if not sys.flags.utf8_mode and codecs.lookup(locale.getencoding()).name != "utf-8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    encoding = None if "PYTHONIOENCODING" in os.environ else "utf-8"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what cannot be written has a substitute
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


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
    if isinstance(error, MissingMandatoryValue):
        name = str(error.full_key or str(error).rsplit(" ", 1)[-1])
        return f"{name} is missing: give {name}=..."
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").partition("/")
        guess = closest(name, error.options)
        more = f"; did you mean {group}={guess}?" if guess else ""
        return f"no {group} {name!r}: choose one of {', '.join(sorted(error.options))}{more}"
    said = str(error) or str(error.__cause__ or "") or type(error).__name__
    text = printable(" ".join(said.split()))
    if isinstance(error, HydraException | OmegaConfBaseException) or text.startswith(GROUP):
        return _mended(text)
    if not isinstance(error, OSError) or error.errno is None:
        return text
    named = "correct that name, or move away what is there" if error.filename is not None else None
    remedy = REMEDIES.get(error.errno, named)
    return f"{text}; {remedy}" if remedy else text


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
