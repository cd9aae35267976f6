"""Names and prompts as text, wherever they are written: they are data, never markup or code.

A row's name, a prompt or a model's name may come from somebody else's records.
"""

import json
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from files.whole import printable

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}


def in_markdown(text: str) -> str:
    """As a cell of a table; Markdown lets HTML through, which a name must not be."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")


def in_latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in printable(text))


def in_csv(value: Any) -> Any:
    """Spreadsheets run a text that begins like a formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def in_figure(text: str) -> str:
    """matplotlib sets what stands between two dollar signs as a formula, or fails at it."""
    return "\n".join(printable(line) for line in text.split("\n")).replace("$", r"\$")


def in_script(data: Any) -> str:
    """JSON inside of a script element, which `</script>` or `<!--<script>` would end or prolong.

    What JSON has no number for, as NaN, is null.
    """
    text = json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def in_link(target: Path, page: Path) -> str:
    """The address of a file for a page in folder `page`: relative, and never a scheme of its own."""
    return quote(Path(os.path.relpath(target, page)).as_posix())
