"""Names and options that a user may misspell: refused with the known ones."""

from collections.abc import Iterable


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
