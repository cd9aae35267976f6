"""A function of the user's own that a setting names, as MODULE:FUNCTION."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


def imported(path: str, setting: str, returns: str) -> Callable[..., Any]:
    """The function of MODULE:FUNCTION, from the current directory or wherever Python looks.

    The directory comes last, so that nothing in it takes the place of an installed module or of ours.
    `setting` is what names it, `returns` what it is to do.  Raises ValueError or FileNotFoundError,
    with the remedy.
    """
    name, colon, attribute = str(path).partition(":")
    if not colon or not name or not attribute.isidentifier():
        raise ValueError(
            f"{setting}={path} names no function: write MODULE:FUNCTION, as my_package.my_module:load"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _not_found(name, setting, error) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(
            f"{setting}={path}: {module.__file__} has no function {attribute}: write one that "
            f"can {returns}"
        )
    return function


def _not_found(name: str, setting: str, error: ModuleNotFoundError) -> FileNotFoundError:
    missing = error.name or name
    if not f"{name}.".startswith(f"{missing}."):
        return FileNotFoundError(
            f"the module {name} of {setting} needs {missing}: install it first"
        )
    top = sys.modules.get(name.partition(".")[0])
    if top is not None and missing != top.__name__:
        return FileNotFoundError(
            f"there is no module {missing} in {os.path.dirname(top.__file__ or '')}: if yours is "
            f"elsewhere, give its package another name than {top.__name__}"
        )
    return FileNotFoundError(
        f"there is no module {missing} in {os.getcwd()} or where Python looks: run the command in the "
        "folder that has it, or name that folder in PYTHONPATH"
    )
