"""Files that are whole or not there, what tells a damaged one, and their SHA-256."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

# Control characters of terminals, and halves of characters that no encoding takes.
HALVES = re.compile(r"[\ud800-\udfff]")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

PARTIAL = ".part-"  # begins the name of a file that is being written
CHECKSUM = "checksum"  # the last entry of a stored JSON object
# What the system has to say of a file is no damage of its content.
NO_DAMAGE = {
    errno.ENOENT,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ESTALE,
}


class Damaged(ValueError):
    """The content of a file is not what was written there."""


class Unreadable(ValueError):
    """A whole file holds what is not read here: how a sentence goes on that begins with its name."""


def check_regular(path: Path | str) -> None:
    """Raise `Damaged` for a pipe, a device or a socket.

    They wait or go on for ever when they are read, and are gone when a file takes their name.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        raise Damaged(f"{path} is a pipe or a device: give a file, or another name")


@contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """Whatever a reader raises in here is damage of the file: `Damaged`, one line that ends in a remedy.

    Readers of a format raise nearly anything for a bit that flipped: they are not asked what.  That
    a file is not there, or may not be read, stays the OSError that it is; so does too little memory.
    """
    try:
        check_regular(path)
        yield
    except (Damaged, MemoryError):
        raise
    except Unreadable as error:
        raise Damaged(f"{path} {error}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_DAMAGE:
            raise
        words = "".join(c if c.isprintable() else " " for c in str(error))
        reason = " ".join(words.split())[:200] or type(error).__name__
        raise Damaged(f"{path} is damaged ({reason}): {remedy}") from None


# --- writing ------------------------------------------------------------------------------------


def write_atomic(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write(temporary)` produce the file, then rename it into place.

    Whatever happens in between (Ctrl-C, a full disk, no power), `path` is the old file or the whole
    new one.  The temporary name keeps the suffix, on which some writers insist, and is like no
    other's, on this machine or on others that share the folder.  `write` may be called again, up to
    5 times.  Without `durable` only power can undo it: for many small files that are looked at again.
    Raises `Damaged` where `path` is a pipe or a device, which would be gone.
    """
    check_regular(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{PARTIAL}{uuid4().hex[:8]}-{path.name}")
    try:
        for attempt in range(5):
            try:
                write(partial)
                if durable:
                    _sync(partial)
                os.replace(partial, path)
                break
            except FileNotFoundError:  # another's `remove_partial` took it for a dead process's
                if attempt == 4:
                    raise
                path.parent.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        # zipfile, interrupted between two members, complains of that instead of passing it on.
        if isinstance(error.__context__, KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        with suppress(OSError):  # not every file system lets a folder be synchronised
            _sync(path.parent)


def _sync(path: Path) -> None:
    """Return when the disk has it: a rename may reach the disk before the content that it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def remove_partial(folder: Path, names: str) -> None:
    """Remove what killed processes left half-written in a folder of files whose `names` match.

    Others may have files of their own there: what is no temporary name of such a file stays.
    """
    pattern = re.compile(f"{re.escape(PARTIAL)}[0-9a-f]{{8}}-(?:{names})")
    for path in folder.glob(f"{PARTIAL}*"):
        if pattern.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


# --- JSON with a checksum -------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Write an object, or a list of objects, each with a checksum of all that it says.

    A file that says just that is left as it is: those of before had no checksums.
    """
    with suppress(OSError, Damaged):
        if _canonical(read_json(path, "write it anew")) == _canonical(content):
            return
    if HALVES.search(json.dumps(content, ensure_ascii=False)):
        content = json.loads(HALVES.sub("\ufffd", json.dumps(content, ensure_ascii=False)))
    whole = [sealed(c) for c in content] if isinstance(content, list) else sealed(content)
    write_text(path, json.dumps(whole, indent=1) + "\n")


def read_json(path: Path, remedy: str) -> Any:
    """What `write_json` wrote, or any other JSON.  Raises OSError, or `Damaged` with the remedy."""
    with reading(path, remedy):
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if "\\ud" in text.lower():  # halves of characters, which could be written nowhere
            json.dumps(content, ensure_ascii=False).encode()
        if isinstance(content, list):
            return [unsealed(entry) for entry in content]
        return unsealed(content)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The object with a checksum of all that it says as its last entry."""
    return {**content, CHECKSUM: _digest(content)}


def unsealed(content: Any) -> Any:
    """The object without its checksum.  ValueError if that is another, or its name is damaged."""
    if not isinstance(content, dict) or not content:
        return content
    last, value = list(content.items())[-1]
    if last != CHECKSUM:
        if CHECKSUM in content or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
            raise ValueError("its checksum is lost")
        return content
    rest = {key: value for key, value in content.items() if key != CHECKSUM}
    if _digest(rest) != value:
        raise ValueError("its checksum is another")
    return rest


def _digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _canonical(content: Any) -> str:
    """One text for equal contents, also for those whose keys are not yet text."""
    return json.dumps(json.loads(json.dumps(content)), sort_keys=True)


# --- space, hashes --------------------------------------------------------------------------------


def check_space(path: Path, needed: int) -> None:
    """Raise OSError (ENOSPC) unless `needed` bytes for path are free on its disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        from tqdm import tqdm

        need, have = (tqdm.format_sizeof(n, "B", 1024) for n in (needed, free))
        raise OSError(errno.ENOSPC, f"{path} needs {need} more on the disk, {have} are free")


Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """Changes whenever another file takes the place of this one; None without one."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def check_writable(path: Path) -> None:
    """Raise PermissionError if no file could be written there, before what takes long."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, f"nothing may be written into {folder}")


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
        text = record.read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    if not (match := re.fullmatch(r"([0-9a-fA-F]{64}) [ *][^\n]+\n?", text)):
        raise ValueError(f"{record} is not in the format of sha256sum: restore or remove it")
    return match[1].lower()


@lru_cache(maxsize=65536)
def sha256_once(path: Path, seen: Stamp | None) -> str:
    """The hash of a file that looks like that (`stamp`): read once by this process."""
    return file_sha256(path)


def printable(text: str) -> str:
    """The text on one line, without what a terminal or a parser would take for a command."""
    return CONTROL.sub(lambda match: " " if match[0] in "\t\n\r" else "\ufffd", text)
