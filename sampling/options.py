"""Names and options that a user may misspell: refused with the known ones."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


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


def check_types(options: Mapping[str, Any], function: Callable[..., Any], prefix: str = "") -> None:
    """Raise ValueError for an option that is not what `function` annotates its parameter with.

    Annotations of other kinds than numbers, words, lists and choices among these are not looked at.
    """
    parameters = inspect.signature(function).parameters
    for name, value in options.items():
        hint = parameters[name].annotation if name in parameters else Any
        if not _fits(value, hint):
            raise ValueError(f"{prefix}{name} must be {_words(hint)}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, choice) for choice in inner)
    if kind is Literal:
        return value in inner
    if kind is Sequence:
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and type(value) is not bool
    return hint not in (bool, int, str, NoneType) or type(value) is hint


def _words(hint: Any) -> str:
    known = {bool: "true or false", int: "an integer", float: "a number", str: "a word"}
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_words(choice) for choice in inner if choice is not NoneType)
    if kind is Literal:
        return " or ".join(map(str, inner))
    if kind is Sequence:
        lists = get_origin(inner[0]) is Sequence
        return "a list of " + ("lists of numbers" if lists else "numbers")
    return known.get(hint, str(hint))
