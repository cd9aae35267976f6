"""How a command ends: errors that a user can mend are one line, with a remedy, and status 2."""

import argparse
import codecs
import errno
import io
import locale
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from files.whole import printable
from models.memory import ran_out

# What helps where the system refuses a file.
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EFBIG, errno.EDQUOT),
        "free some space and run the same command to continue",
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "choose another {place} that you may write to"
    ),
    **dict.fromkeys(
        (errno.EEXIST, errno.ENOTDIR),
        "a file is where a folder should be, choose another {place}",
    ),
    errno.EISDIR: "a folder is where a file should be, move it away or name another",
    errno.ENOENT: "that path is not there, correct it",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "that link leads to itself, remove it",
    errno.EPIPE: "who read the output has ended, let it go into a file",
    errno.EMFILE: "raise the limit, `ulimit -n 4096`, and run the same command to continue",
}


def one_line(error: BaseException) -> str:
    said = str(error) or str(error.__cause__ or "") or type(error).__name__
    return printable(" ".join(said.split()))


class Ending(NamedTuple):
    """What a command's errors say; `mendable` are those that a user can mend.

    `interrupted` is what to know after Ctrl-C, `less` how a batch is made smaller and `place` how
    another place to write to is chosen.
    """

    interrupted: str
    less: str
    place: str
    mendable: Callable[[], tuple[type[Exception], ...]] = lambda: (ValueError, OSError)
    words: Callable[[Exception], str] = one_line


def reported(function: Callable[[], None], ending: Ending) -> None:
    """Call, and turn the errors that a user can mend into one line."""
    if sys.stderr is None:  # closed by whoever started this: what is said is lost, not the work
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    _speak_utf8()
    try:
        function()
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted: {ending.interrupted}\n")
        sys.exit(130)
    except Exception as error:
        if isinstance(error.__context__, SystemExit):  # a signal that came while a lock was held
            raise error.__context__ from None
        if os.environ.get("TRACEBACK"):
            raise
        if isinstance(error, ending.mendable()):
            sys.exit(_failure(ending.words(error) + _remedy(error, ending)))
        if not ran_out(error):
            raise
        sys.exit(
            _failure(
                f"out of memory ({ending.words(error)}): {ending.less}, or use a device with more "
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


def _remedy(error: Exception, ending: Ending) -> str:
    """What to do where the system refuses a file."""
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    named = "correct that name, or move away what is there" if error.filename is not None else None
    remedy = REMEDIES.get(error.errno, named)
    return f"; {remedy.format(place=ending.place)}" if remedy else ""


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The command line of a script whose docstring is its help."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
