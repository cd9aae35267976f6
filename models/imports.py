"""A function of the user's own that a setting names, as MODULE:FUNCTION."""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from models.memory import ran_out
from models.weights import reason


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
    if "/" in name or name.endswith(".py"):
        folder, file = os.path.split(name)
        raise ValueError(
            f"{setting}={path} names a file: in the folder {folder or os.getcwd()} write "
            f"{setting}={file.removesuffix('.py')}:{attribute}"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    missing: FileNotFoundError | None
    with theirs(f"the module {name} of {setting}"):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = _not_found(name, setting, error)
        else:
            missing = None
    if missing:
        raise missing
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


@contextmanager
def theirs(name: str) -> Iterator[None]:
    """What a user's own code raises, said in one line with the place; a full memory stays what it is."""
    try:
        yield
    except Exception as error:
        if ran_out(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is of here
        ways = ("<", __file__, importlib.__file__)
        theirs = [frame for frame in frames if not frame.filename.startswith(ways)]
        theirs = [frame for frame in theirs if "site-packages" not in frame.filename] or theirs
        where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
        raise ValueError(
            f"{name} has raised {type(error).__name__}: {reason(error)}{where}: mend it there; "
            "TRACEBACK=1 before the command tells the way to it"
        ) from error
