"""Names, options and values that a user may misstate: refused with what is known.

What a function takes is said once, by its signature: its annotations are the types that commands, configs
and callers from Python may give.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

# A type -> how it is called for one value, and for those of a list.
WORDS = {
    bool: ("true or false", "truth values"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    NoneType: ("null", "nulls"),
}
LISTS = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)


def check_choice(what: str, name: Any, known: Iterable[str]) -> None:
    """Raise ValueError unless `name` is one of the `known` names of a `what`."""
    known = list(known)
    if name not in known:
        choices = ", ".join(known)
        raise ValueError(f"unknown {what} {name!r}: choose one of {choices}{meant(name, known)}")


def check_options(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError at the first of `options` that `what` does not take."""
    known = list(known)
    for option in options:
        if option not in known:
            raise ValueError(
                f"{what} has no option {option!r}: it takes {', '.join(known) or 'none'}"
                f"{meant(option, known)}"
            )


def closest(name: Any, known: Iterable[str]) -> str | None:
    """The known name that somebody who typed `name` may have meant."""
    by_lower = {word.lower(): word for word in known}
    found = get_close_matches(str(name).lower(), by_lower, 1)
    return by_lower[found[0]] if found else None


def meant(name: Any, known: Iterable[str]) -> str:
    """What ends a message about an unknown name: a guess, if there is one."""
    guess = closest(name, known)
    return f"; did you mean {guess}?" if guess else ""


def check_types(what: str, values: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
    """Raise ValueError at the first value that is not of its kind, an annotation.

    `what` is put before its name, as in `model.`; names without a kind may have any value.
    """
    for name, value in values.items():
        kind = kinds.get(name, Any)
        if not fits(value, kind):
            raise ValueError(
                f"{what}{name} must be {described(kind)}, got {value!r}{_as_path(what + name, value, kind)}"
            )


def _as_path(name: str, value: Any, kind: Any) -> str:
    """How a folder is named whose name reads as a number; a list is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f": write {name}=./{value}" if is_number and Path in _parts(kind) else ""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which raises ValueError for an option of another type than it says.

    Looked at is what it takes after its first two parameters, a sampler's schedule and timesteps.
    """

    @functools.wraps(function)
    def checking(*args: P.args, **options: P.kwargs) -> R:
        kinds = _kinds(function)
        positional = dict(zip(list(kinds)[2:], args[2:], strict=False))
        check_types(f"{function.__name__}: ", {**positional, **options}, kinds)
        return function(*args, **options)

    return checking


@functools.cache
def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    return kinds_of(function)


def kinds_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function's parameters, or a class's, may be: their annotations.  None of *args, **kwargs."""
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except NameError:  # of a library: what its annotations name is not there
        parameters = inspect.signature(function).parameters
    return {
        name: Any if parameter.annotation is parameter.empty else parameter.annotation
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def needed_by(function: Callable[..., Any]) -> list[str]:
    """The parameters without a default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind in named]


def takes_any_name(function: Callable[..., Any]) -> bool:
    """Whether a function has **kwargs, whose names it looks at itself."""
    parameters = inspect.signature(function).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that an annotation says.

    An integer is a number, truth is neither, NaN is none.  NumPy's numbers are numbers, its arrays
    lists.  What no setting can be, an array's type, say, is not looked at.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        is_null = Path in inner and NoneType in inner and value == ""  # as a shell's unset variable
        return is_null or any(fits(value, part) for part in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in LISTS or kind in LISTS:
        is_list = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
        return is_list and all(fits(entry, inner[0] if inner else Any) for entry in value)
    if origin in MAPPINGS or kind in MAPPINGS:
        is_mapping = isinstance(value, Mapping)
        return is_mapping and all(fits(v, inner[1] if inner else Any) for v in value.values())
    if kind in (NoneType, None):
        return value is None
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind is Path:
        return isinstance(value, str | Path) and value != ""
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and not math.isnan(value)
    return True


def described(kind: Any) -> str:
    """A kind in words: `an integer or null`."""
    return " or ".join(dict.fromkeys(_described(part) for part in _parts(kind)))


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in LISTS or kind in LISTS:
        of = " or ".join(WORDS[k][1] for k in _parts(inner[0]) if k in WORDS) if inner else ""
        return f"a list of {of}" if of else "a list"
    if origin in MAPPINGS or kind in MAPPINGS:
        return "settings with names"
    return WORDS[kind][0] if kind in WORDS else getattr(kind, "__name__", str(kind))


def _parts(kind: Any) -> tuple[Any, ...]:
    """Those of a union, null last."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return tuple(sorted(parts, key=lambda part: part is NoneType))


def plain(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's, so that a config is JSON."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value
