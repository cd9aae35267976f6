"""Names and options that a user may misspell: refused with the known ones; their plain values."""

from collections.abc import Iterable
from typing import Any


def check_choice(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of the `known` names of a `what`."""
    known = list(known)
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}: choose one of {', '.join(known)}")


def check_options(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError at the first of `options` that `what` does not take."""
    known = list(known)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{what} has no option {option!r}: it takes {', '.join(known) or 'none'}"
            )


def plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's, so that a config is JSON."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value
