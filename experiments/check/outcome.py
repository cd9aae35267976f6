"""What a check finds: PASS, FAIL or SKIP, in words and with the numbers that it measured."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

OURS = ("files", "sampling", "models", "eval", "experiments")
# What is imported under another name than it is installed by.
PACKAGES = {"hydra": "hydra-core", "yaml": "PyYAML", "torch_fidelity": "torch-fidelity"}


class Skip(Exception):
    """A part that cannot be done here; its text says what it needs."""


class Finding(NamedTuple):
    """Whether a check passed, what it says, and the numbers behind that."""

    ok: bool
    said: str
    numbers: dict[str, float] | None = None


class Outcome(NamedTuple):
    """A check that was made or skipped, as it stands in the record."""

    name: str
    status: str
    said: str
    numbers: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        return f"{self.status}  {self.name}: {self.said} ({self.seconds:.1f} s)"


def perform(name: str, check: Callable[[], Finding]) -> Outcome:
    """Make one check.  Whatever it raises but an interruption is its outcome, not the end."""
    start = time.perf_counter()
    try:
        ok, said, numbers = check()
        status = "PASS" if ok else "FAIL"
    except Exception as error:
        why = lacking(error)
        status, said, numbers = ("SKIP" if why else "FAIL"), why or one_line(error), None
    return Outcome(name, status, said, numbers or {}, round(time.perf_counter() - start, 2))


def lacking(error: Exception) -> str | None:
    """What an error says is lacking on this machine; None for any other error."""
    if isinstance(error, Skip):
        return str(error)
    if isinstance(error, ImportError):
        name = (error.name or "").partition(".")[0]
        if name and name not in OURS:
            return f"needs {PACKAGES.get(name, name)}"
    return None


def one_line(error: BaseException) -> str:
    """An error in one line, as it stands in a record."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def rounded(value: Any) -> float:
    """Three significant digits: enough for a record, and the same on every day."""
    return float(f"{float(value):.3g}")
