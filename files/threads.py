"""How many threads work, and how they wait: what must be said before torch and NumPy load theirs."""

import os
from collections.abc import Mapping

OF_OPENMP = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
OF_OPENBLAS = {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"}


def thread_defaults(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment; nothing where the user has said it.

    GNU's OpenMP, which torch's builds for Linux use, lets a thread that has nothing to do spin for
    some milliseconds.  Where another program wants the core, the working threads then lose their
    turn to one that spins (`python -m scripts.bench busy` shows what that costs): ours soon go to
    sleep.  NumPy's OpenBLAS spins, too, and its products are small here, since torch has the large
    ones: one thread does.  Elsewhere (macOS, Windows) nothing reads the first variable.
    """
    defaults = {}
    if not OF_OPENMP & environment.keys():
        defaults["GOMP_SPINCOUNT"] = "1000"
    if not OF_OPENBLAS & environment.keys():
        defaults["OPENBLAS_NUM_THREADS"] = "1"
    return defaults


def settle_threads() -> None:
    """Set the defaults of this process; to be called before torch and NumPy are imported."""
    os.environ.update(thread_defaults(os.environ))
