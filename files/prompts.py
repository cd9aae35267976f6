"""Prompts, one a line of a text file."""

from collections.abc import Sequence
from pathlib import Path

from files.whole import write_text


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line in UTF-8, without space around them.

    Raises FileNotFoundError, or ValueError for a file that is not such text, is empty or has a
    blank line, which would shift the prompts of all later samples.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}: give prompts=FILE with one prompt a line")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from None
    prompts = [line.strip() for line in lines]
    if prompts[-1] == "":  # the end of the last line
        prompts.pop()
    if "" in prompts or not prompts:
        where = f"line {prompts.index('') + 1} is blank" if prompts else "it is empty"
        raise ValueError(f"{path} must have one prompt a line, but {where}: remove or fill it")
    return prompts


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    """The prompts beside the samples, line i + 1 for label i, where evaluation looks for them."""
    text = "".join(f"{prompt}\n" for prompt in prompts)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
