"""Prompts, one a line of a text file."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from files.whole import write_text

AROUND = re.compile(r"^[\s\ufeff]+|[\s\ufeff]+$")  # space, and the byte order mark


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line in UTF-8, without space around them.

    Windows' line ends and byte order mark are no part of them.  Raises FileNotFoundError, or
    ValueError for a file that is not such text, is empty or has a blank line, which would shift the
    prompts of all later samples.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}: give prompts=FILE with one prompt a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None
    if lines[-1].strip() == "":  # the end of the last line
        lines.pop()
    if not lines:
        raise ValueError(f"{path} must have one prompt a line, but it is empty: fill it")
    return checked_prompts(lines, f"{path} must have one prompt a line, but line")


def listed_prompts(entries: Sequence[Any]) -> list[str]:
    """The prompts of a list, as a file of them is read.  Raises ValueError as `read_prompts`."""
    if not entries:
        raise ValueError("prompts=[] has none: give prompts=FILE, or prompts='[a cat,a dog]'")
    for i, entry in enumerate(entries, 1):
        if isinstance(entry, bool) or not isinstance(entry, str | int | float):
            raise ValueError(f"prompts=[...] must be texts, but number {i} is {entry!r}: quote it")
    return checked_prompts([str(entry) for entry in entries], "in prompts=[...] number")


def checked_prompts(texts: Sequence[str], which: str) -> list[str]:
    """The texts without space around them, each of one line, as they will be written and read again.

    `which` begins the message of the ValueError for an empty one or one of several lines.
    """
    prompts = [AROUND.sub("", text) for text in texts]
    for i, prompt in enumerate(prompts, 1):
        if not prompt:
            raise ValueError(f"{which} {i} is blank: remove or fill it")
        if len(prompt.splitlines()) > 1 or "\0" in prompt:
            raise ValueError(f"{which} {i} has a line break ({prompt[:60]!r}): make it one line")
    return prompts


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    """The prompts beside the samples, line i + 1 for label i, where evaluation looks for them."""
    text = "".join(f"{prompt}\n" for prompt in prompts)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
