"""Files that are whole or not there, their SHA-256, and what reading a damaged one raises."""

import errno
import hashlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

# What NumPy and zipfile raise for a damaged .npz; a RuntimeError for one that seems encrypted.
UNREADABLE = (KeyError, ValueError, OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)

# Control characters of terminals, and halves of characters that no encoding takes.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

PARTIAL = ".part-"  # begins the name of a file that is being written


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write(temporary)` produce the file, then rename it into place.

    Whatever happens in between (Ctrl-C, a full disk), `path` is the old file or the whole new
    one.  The temporary name keeps the suffix, on which some writers insist, and is like no other's,
    on this machine or on others that share the folder.  `write` may be called again, up to 5 times.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    try:
        for attempt in range(5):
            write(partial)
            try:
                os.replace(partial, path)
                return
            except FileNotFoundError:  # another's `remove_partial` took it for a dead process's
                if attempt == 4:
                    raise
    except ValueError as error:
        # zipfile, interrupted between two members, complains of that instead of passing it on.
        if isinstance(error.__context__, KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left in a folder half-written."""
    for path in folder.glob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


def check_space(path: Path, needed: int) -> None:
    """Raise OSError (ENOSPC) unless `needed` bytes for path are free on its disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        from tqdm import tqdm

        need, have = (tqdm.format_sizeof(n, "B", 1024) for n in (needed, free))
        raise OSError(errno.ENOSPC, f"{path} needs {need} more on the disk, {have} are free")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_sha256(path: Path) -> str | None:
    """The hash in `<path>.sha256`, which a download writes; None if there is no such file.

    Raises ValueError if it is not in sha256sum's format.
    """
    record = path.with_name(path.name + ".sha256")
    try:
        text = record.read_text(errors="replace")
    except FileNotFoundError:
        return None
    if not (match := re.fullmatch(r"([0-9a-fA-F]{64}) [ *][^\n]+\n?", text)):
        raise ValueError(f"{record} is not in the format of sha256sum: restore or remove it")
    return match[1].lower()


def printable(text: str) -> str:
    """The text on one line, without what a terminal or a parser would take for a command."""
    return CONTROL.sub(lambda match: " " if match[0] in "\t\n\r" else "\ufffd", text)
